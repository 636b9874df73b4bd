/**
 * Runs a step from its layout: reads step counts and learning rates, then runs the stages on the pool, in place. A failed step needs
 * no undo, because the caller keeps its own copy and gets a reply only from a finished step.
 */
import type { Lease } from "../arena/arena.ts";
import { bytesOf } from "../codec/dtype.ts";
import { Parts } from "../codec/parts.ts";
import { CHEAP_ITEMS_PER_YIELD, inTurns, mapInTurns, mapped, type Task } from "../codec/turns.ts";
import { StepdError } from "../errors/errors.ts";
import type { OptimizerDefinition, StepContext } from "../optimizers/registry.ts";
import type { Pool } from "../pool/pool.ts";
import type { ElementCounts, Layout, StepTarget } from "./layout.ts";
import { writeOutput } from "./output.ts";
import type { Rates } from "./plan.ts";
import type { Reduced } from "./reduce.ts";
import { clipScale, type GradientSums, gradientSums, reportOf, requireFinite, type StepReport, type TensorResult, type ValueCount } from "./report.ts";
import { isRepeatable, type KernelCall, NEW_SLOTS, type QueueTime, Runner, type ScalarInputs, STATE, type Target } from "./runner.ts";
import { newStateHeader, readStep, STEP, writeStep } from "./state.ts";
import { encodeTensors, type ReplyTensors, type TensorFile } from "./tensors.ts";

/** The cached results that a step reads. Undefined for an input that came with the call. */
export interface RetainedFiles {
  readonly params: Buffer | undefined;
  readonly state: Buffer | undefined;
}

/** The inputs of a step, loaded into the arena. */
export interface StepFiles {
  readonly params: TensorFile;
  readonly grads: TensorFile;
  /** The JSON pointer of the gradients, or of the reduction that made them. */
  readonly gradsField: "/grads" | "/reduce";
  readonly state: Buffer | undefined;
  /** The workers copy the parameters and the state from here. */
  readonly retained: RetainedFiles;
}

export interface StepOutput {
  readonly params: ReplyTensors;
  /** The new parameters rounded to BF16, if the call requests them. */
  readonly rounded: ReplyTensors | undefined;
  /** The files of the new parameters, whole and rounded. */
  readonly files: { readonly params: TensorFile; readonly rounded: TensorFile | undefined };
  /** True if the caller can recover the new parameters from the rounded ones or from the state. */
  readonly isRecoverable: boolean;
  readonly state: Parts;
  readonly report: StepReport;
  /** The reduction that made the gradients. */
  readonly reduced?: Reduced;
  /** The number of updated elements by optimizer and dtype, for metrics. */
  readonly elements: ElementCounts;
}

/** The step counts before a step, and the learning rates of the step. */
export interface Progress {
  /** Each target's number of steps before this one. */
  readonly taken: readonly number[];
  /** Each target's hyperparameters and learning rate in this step. */
  readonly rates: readonly Rates[];
  /** The largest step count of the resting parameters: those with state but no gradient. */
  readonly restingStep: number;
}

/** Reads step counts from the state and evaluates the schedule. Throws STATE_CORRUPT, STATE_MISMATCH and INVALID_PARAMS. */
export function* readProgress({ plan, targets, resting }: Layout, state: Buffer | undefined): Task<Progress> {
  let restingStep = 0;
  for (const [index, [name, offset]] of resting.entries()) {
    restingStep = Math.max(restingStep, readStep(state as Buffer, offset, name));
    if (index % CHEAP_ITEMS_PER_YIELD === CHEAP_ITEMS_PER_YIELD - 1) yield;
  }
  const taken = yield* mapped(targets, ({ name, step }) => (step === undefined ? 0 : readStep(state as Buffer, step, name)));
  // Most tensors of a group have the same step count, so the last rates are reused.
  const lastRates = new Map<unknown, { readonly count: number; readonly rates: Rates }>();
  const rates = yield* mapped(targets, ({ name, recipe: { values } }, index): Rates => {
    const count = taken[index] as number;
    if (count >= Number.MAX_SAFE_INTEGER) throw StepdError.mismatch("STATE_MISMATCH", "/state", `${STEP}/${name} below 2^53 - 1`, String(count), [name]);
    const known = lastRates.get(values);
    if (known?.count === count) return known.rates;
    const rates = plan.ratesAt(values, count);
    lastRates.set(values, { count, rates });
    return rates;
  });
  return { taken, rates, restingStep };
}

/** Runs a step. It overwrites the inputs in the lease. */
export const runStep = async (layout: Layout, progress: Progress, files: StepFiles, lease: Lease, pool: Pool, queueTime: QueueTime): Promise<StepOutput> => {
  const { retained } = files;
  const { options, plan, isMeasured, targets, newSlotBytes, workBytes } = layout;
  const nonFinite = options.non_finite ?? "error";
  const newest = progress.taken.reduce((most, taken) => Math.max(most, taken), 0);
  const results = await mapInTurns(targets, (target, index) => newResult(target, progress, index, files.state));
  await inTurns(shareScalars(targets, results));
  const work = workBytes === 0 ? 0 : lease.alloc(workBytes);
  const bases = [
    files.params.bytes.byteOffset,
    files.grads.bytes.byteOffset,
    files.state?.byteOffset ?? 0,
    0,
    0,
    work,
    retained.params?.byteOffset ?? 0,
    retained.state?.byteOffset ?? 0,
  ];
  const runner = new Runner(lease, pool, queueTime, bases);
  const lr = plan.ratesAt(plan.base.values, targets.length > 0 ? newest : progress.restingStep).lr;
  const rounding = async (): Promise<RoundedParams | undefined> => layout.rounding && roundParams(layout.rounding, files.params, lease, pool, queueTime);
  const output = async (isSkipped: boolean, rounded: RoundedParams | undefined, details: Pick<StepReport, "stats" | "warnings"> = {}): Promise<StepOutput> => ({
    params: await encodeTensors(files.params),
    rounded: rounded?.params,
    files: { params: files.params, rounded: rounded?.file },
    isRecoverable: isSkipped || layout.isRecoverable,
    state: await writeNewState(layout, results, files.state, bases, lease, isSkipped),
    report: { step: Math.max(newest + (isSkipped || targets.length === 0 ? 0 : 1), progress.restingStep), lr, skipped: isSkipped, ...details },
    elements: layout.elements,
  });

  const copiesOf = ({ recipe: { copies } }: StepTarget): readonly KernelCall[] => [
    ...(retained.params ? copies.params : []),
    ...(retained.state ? copies.state : []),
  ];

  let gradSums: readonly GradientSums[] = [];
  if (isMeasured) {
    await runner.run(targets, ({ recipe }) => recipe.measure?.calls ?? [], isRepeatable(options.loss_scale));
    gradSums = await mapInTurns(targets, (target) => gradientSums(runner.total(target, target.recipe.measure?.sums)));
    if (nonFinite === "error") requireFinite(layout, gradSums, files.gradsField);
    if (nonFinite === "skip" && (options.others_non_finite || gradSums.some((sums) => sums.nonFinite > 0))) {
      await runner.run(targets, copiesOf, true);
      return output(true, await rounding());
    }
  }
  const scale = clipScale(layout, gradSums);
  if (newSlotBytes > 0) bases[NEW_SLOTS] = await inTurns(createSlots(layout, lease));
  const scalars = (target: StepTarget, index: number): ScalarInputs => ({ context: (results[index] as MutableResult).context, scale, target });
  const suspects = new Set<number>();
  for (let stage = 0; stage < layout.stages; stage++) {
    const callsOf = (target: StepTarget): readonly KernelCall[] => [...(stage === 0 ? copiesOf(target) : []), ...(target.recipe.phases[stage]?.calls ?? [])];
    const found = await runner.run(targets, callsOf, false, scalars, ({ recipe }) => recipe.phases[stage]?.rows);
    for (const index of found) suspects.add(index);
    if (stage === 0 && !isMeasured) {
      gradSums = await mapInTurns(targets, (target) => gradientSums(runner.total(target, target.recipe.phases[0]?.gradientSums)));
      if (nonFinite === "error") requireFinite(layout, gradSums, files.gradsField);
    }
    const storeSums = (target: StepTarget, index: number): void => {
      const result = results[index] as MutableResult;
      const phase = target.recipe.phases[stage];
      const sums = runner.total(target, phase?.stageSums);
      result.context.sums.push(sums);
      if (target.recipe.optimizer.shared) addSums(result.context.allSums, stage, sums);
      if (phase?.statsSums) result.stats = runner.total(target, phase.statsSums);
    };
    await mapInTurns(targets, storeSums);
  }
  const rounded = await rounding();
  const suspected = targets.filter(({ name }, index) => suspects.has(index) || rounded?.suspects.has(name));
  return output(false, rounded, reportOf(layout, results, gradSums, await nonFiniteResults(suspected, runner), scale));
};

/** Counts non-finite values in new parameters. A kernel that writes a suspicious value reports its tensor as suspect. */
const nonFiniteResults = async (suspected: readonly StepTarget[], runner: Runner): Promise<readonly ValueCount[]> => {
  if (suspected.length === 0) return [];
  await runner.run(suspected, ({ recipe }) => recipe.results.calls, true);
  return suspected.map((target) => ({ name: target.name, count: runner.total(target, target.recipe.results.sums)[0] ?? 0 })).filter(({ count }) => count > 0);
};

interface MutableResult extends TensorResult {
  readonly context: StepContext & { readonly sums: number[][]; allSums: number[][]; scalarSlots: StepContext["scalarSlots"] };
  stats: readonly number[];
}

/**
 * Creates a target's result before its first stage. Throws STATE_MISMATCH if the state lacks a slot after the first step. Slots in
 * `lateSlots` may be missing.
 */
const newResult = ({ name, elements, recipe, scalars }: StepTarget, progress: Progress, index: number, state: Buffer | undefined): MutableResult => {
  const taken = progress.taken[index] as number;
  const [missing] = taken > 0 ? recipe.slotsRequiredLater : [];
  if (missing !== undefined) throw StepdError.mismatch("STATE_MISMATCH", "/state", `slot ${missing}/${name}, after ${taken} steps`, "none", [name]);
  // After the first step, a scalar slot is missing if the state is from another optimizer of the family. The optimizer recomputes it.
  const scalarSlots: Record<string, number> = taken === 0 ? { ...recipe.optimizer.scalarSlots } : {};
  if (scalars) for (const [slot, offset] of scalars) scalarSlots[slot] = (state as Buffer).readDoubleLE(offset);
  return {
    context: { step: taken + 1, lr: (progress.rates[index] as Rates).lr, isFirst: taken === 0 || recipe.isFirst, elements, scalarSlots, sums: [], allSums: [] },
    stats: [],
  };
};

/**
 * Gives all tensors of an optimizer with `shared` the scalar slots of the tensor with the largest count, and the same sums. A tensor
 * without a gradient in the last steps has older ones. Throws STATE_MISMATCH if two tensors with equal counts differ.
 */
function* shareScalars(targets: readonly StepTarget[], results: readonly MutableResult[]): Task<void> {
  const newest = new Map<OptimizerDefinition, number>();
  const slotsOf = (index: number): StepContext["scalarSlots"] => (results[index] as MutableResult).context.scalarSlots;
  for (const [index, { recipe }] of targets.entries()) {
    if (index % CHEAP_ITEMS_PER_YIELD === CHEAP_ITEMS_PER_YIELD - 1) yield;
    const { shared } = recipe.optimizer;
    if (!shared) continue;
    const best = newest.get(recipe.optimizer);
    const countOf = (at: number): number => slotsOf(at)[shared.count] ?? 0;
    if (best === undefined || countOf(index) > countOf(best)) newest.set(recipe.optimizer, index);
  }
  if (newest.size === 0) return;
  for (const [index, { name, recipe }] of targets.entries()) {
    if (index % CHEAP_ITEMS_PER_YIELD === CHEAP_ITEMS_PER_YIELD - 1) yield;
    const best = newest.get(recipe.optimizer);
    if (best === undefined) continue;
    const [own, common] = [slotsOf(index), slotsOf(best)];
    const { count } = recipe.optimizer.shared as NonNullable<OptimizerDefinition["shared"]>;
    const different = Object.keys(common).find((slot) => own[count] === common[count] && !Object.is(own[slot], common[slot]));
    if (different !== undefined) {
      const other = (targets[best] as StepTarget).name;
      const expected = `${different}/${name} to be ${common[different]}, as ${different}/${other} at the same ${count}`;
      throw StepdError.mismatch("STATE_MISMATCH", "/state", expected, String(own[different]), [name, other]);
    }
    const { context } = results[index] as MutableResult;
    context.scalarSlots = common;
    context.allSums = (results[best] as MutableResult).context.allSums;
  }
}

/** Adds the sums of a tensor to those of all tensors after the same stage. */
const addSums = (all: number[][], stage: number, sums: readonly number[]): void => {
  const row = all[stage] ?? sums.map(() => 0);
  all[stage] = row;
  for (const [index, sum] of sums.entries()) row[index] = (row[index] as number) + sum;
};

/** Filling new slots yields after this many bytes. */
const FILLED_BYTES_PER_YIELD = 2 ** 23;

/** Allocates the slots that the state lacks and fills in their initial values. Returns the address of the first. */
export function* createSlots({ newSlotBytes, initialValues }: Layout, lease: Lease): Task<number> {
  const base = lease.alloc(newSlotBytes);
  const fill = function* (value: Buffer, start: number, end: number): Task<void> {
    for (let at = start; at < end; at += FILLED_BYTES_PER_YIELD) {
      if (at > start) yield;
      lease.bytes.fill(value, at, Math.min(at + FILLED_BYTES_PER_YIELD, end));
    }
  };
  yield* fill(Buffer.alloc(1), base, base + newSlotBytes);
  for (const [index, { offset, elements, dtype, value }] of initialValues.entries()) {
    if (index % CHEAP_ITEMS_PER_YIELD === CHEAP_ITEMS_PER_YIELD - 1) yield;
    const one = Buffer.alloc(bytesOf(dtype) as number);
    if (dtype === "F64") one.writeDoubleLE(value);
    else one.writeFloatLE(value);
    yield* fill(one, base + offset, base + offset + elements * one.length);
  }
  return base;
}

/** Writes new step counts and scalar slots. They go into the state in place, or into a new file if the header changes. */
const writeNewState = async (
  layout: Layout,
  results: readonly MutableResult[],
  file: Buffer | undefined,
  bases: readonly number[],
  lease: Lease,
  isSkipped: boolean,
): Promise<Parts> => {
  const { plan, targets, output } = layout;
  const next = (index: number): Readonly<Record<string, number>> => {
    const { optimizer, values } = (targets[index] as StepTarget).recipe;
    return optimizer.nextScalarSlots?.(values, (results[index] as MutableResult).context) ?? {};
  };
  if (!output) {
    const state = file as Buffer;
    if (isSkipped) return new Parts([state]);
    const write = ({ step, scalars }: StepTarget, index: number): void => {
      writeStep(state, step as number, (results[index] as MutableResult).context.step);
      const values = scalars ? next(index) : {};
      for (const [slot, offset] of scalars ?? []) state.writeDoubleLE(values[slot] as number, offset);
    };
    await mapInTurns(targets, write);
    return new Parts([state]);
  }
  if (isSkipped) {
    const entries = output.entries.filter(({ block }) => block === STATE);
    const header = await inTurns(newStateHeader(plan.base.optimizer, output.others, entries));
    return inTurns(writeOutput({ header, entries }, file, bases, () => undefined, lease));
  }
  const values = await mapInTurns(results, ({ context }, index) => ({ ...next(index), [STEP]: context.step }) as Readonly<Record<string, number>>);
  return inTurns(writeOutput(output, file, bases, (target, scalar) => values[target]?.[scalar], lease));
};

interface RoundedParams {
  readonly params: ReplyTensors;
  readonly file: TensorFile;
  /** The names of tensors in which a kernel suspects NaN or infinity. */
  readonly suspects: ReadonlySet<string>;
}

const roundParams = async (
  { header, bytes, tensors, targets }: NonNullable<Layout["rounding"]>,
  params: TensorFile,
  lease: Lease,
  pool: Pool,
  queueTime: QueueTime,
): Promise<RoundedParams> => {
  const file = bytes === 0 ? lease.view(0, 0) : lease.view(lease.alloc(bytes), bytes);
  if (header.length > 0) file.fill(header, 0, header.length);
  const found = await new Runner(lease, pool, queueTime, [params.bytes.byteOffset, 0, 0, 0, file.byteOffset, 0]).run(targets, ({ calls }) => calls, true);
  const rounded: TensorFile = { bytes: file, plain: params.plain && tensors };
  return {
    params: await encodeTensors(rounded),
    file: rounded,
    suspects: new Set(found.map((index) => (targets[index] as Target).name)),
  };
};
