/**
 * Runs the layout of a step on its values: counts and rates, then stage by stage on the pool, in place. A failure at any point
 * leaves nothing to undo: the reply is written only from a finished step.
 */
import type { Lease } from "../arena/arena.ts";
import { bytesOf } from "../codec/dtype.ts";
import { Parts } from "../codec/parts.ts";
import { inTurns, mapInTurns, mapped, TURN_PASSES, type Turns } from "../codec/turns.ts";
import { StepdError } from "../errors/errors.ts";
import type { StepContext } from "../optimizers/registry.ts";
import type { Pool } from "../pool/pool.ts";
import type { Layout, StepTarget } from "./layout.ts";
import { writeOutput } from "./output.ts";
import type { Rates } from "./plan.ts";
import { type Count, clipScale, type GradientSums, gradientSums, reportOf, requireFinite, type StepReport, type TensorResult } from "./report.ts";
import { isRepeatable, MADE, type QueueTime, Runner, type Scalars, STATE, type Target } from "./runner.ts";
import { newStateHeader, readStep, STEP, writeStep } from "./state.ts";
import { type Reply, replyOf, type TensorFile } from "./tensors.ts";

/** The files of a step in the arena. */
export interface Files {
  readonly params: TensorFile;
  readonly grads: TensorFile;
  readonly state: Buffer | undefined;
}

export interface StepOutput {
  readonly params: Reply;
  /** The parameters rounded to BF16. */
  readonly rounded: Reply | undefined;
  /** Whether the rounded parameters or the state have all that the step changed of the parameters. */
  readonly isRecoverable: boolean;
  readonly state: Parts;
  readonly report: StepReport;
  /** Elements of the parameters that have a gradient, by dtype. */
  readonly elements: Readonly<Record<string, number>>;
}

/** The values of a step beside its tensors. */
export interface Now {
  /** Steps taken before, by target. */
  readonly taken: readonly number[];
  readonly rates: readonly Rates[];
  /** The largest step of the parameters that rest. */
  readonly rested: number;
}

/** Reads how many steps were taken, and what the schedule says of the next. Throws STATE_CORRUPT, STATE_MISMATCH, INVALID_PARAMS. */
export function* readNow({ plan, targets, resting }: Layout, state: Buffer | undefined): Turns<Now> {
  let rested = 0;
  for (const [index, [name, offset]] of resting.entries()) {
    rested = Math.max(rested, readStep(state as Buffer, offset, name));
    if (index % TURN_PASSES === TURN_PASSES - 1) yield;
  }
  const taken = yield* mapped(targets, ({ name, step }) => (step === undefined ? 0 : readStep(state as Buffer, step, name)));
  // Most tensors of a group took as many steps.
  const last = new Map<unknown, { readonly count: number; readonly rates: Rates }>();
  const rates = yield* mapped(targets, ({ name, recipe: { values } }, index): Rates => {
    const count = taken[index] as number;
    if (count >= Number.MAX_SAFE_INTEGER) throw StepdError.mismatch("STATE_MISMATCH", "/state", `${STEP}/${name} below 2^53 - 1`, String(count), [name]);
    const known = last.get(values);
    if (known?.count === count) return known.rates;
    const rates = plan.at(values, count);
    last.set(values, { count, rates });
    return rates;
  });
  return { taken, rates, rested };
}

/** Runs `optimizer.step`. The caller's bytes are overwritten in the lease. */
export const runStep = async (layout: Layout, now: Now, files: Files, lease: Lease, pool: Pool, queueTime: QueueTime): Promise<StepOutput> => {
  const { options, plan, isMeasured, targets, madeBytes, workBytes } = layout;
  const nonFinite = options.non_finite ?? "error";
  const newest = now.taken.reduce((most, taken) => Math.max(most, taken), 0);
  const results = await mapInTurns(targets, (target, index) => resultOf(layout, target, now, index, files.state));
  const work = workBytes === 0 ? 0 : lease.alloc(workBytes);
  const bases = [files.params.bytes.byteOffset, files.grads.bytes.byteOffset, files.state?.byteOffset ?? 0, 0, 0, work];
  const runner = new Runner(lease, pool, queueTime, bases);
  const usedLr = plan.at(plan.base, targets.length > 0 ? newest : now.rested).lr;
  const rounding = async (): Promise<Rounded | undefined> => layout.rounding && round(layout.rounding, files.params, lease, pool, queueTime);
  const output = async (isSkipped: boolean, rounded: Rounded | undefined, said: Pick<StepReport, "stats" | "warnings"> = {}): Promise<StepOutput> => ({
    params: await replyOf(files.params),
    rounded: rounded?.params,
    isRecoverable: isSkipped || layout.isRecoverable,
    state: await stateOf(layout, results, files.state, bases, lease, isSkipped),
    report: { step: Math.max(newest + (isSkipped || targets.length === 0 ? 0 : 1), now.rested), lr: usedLr, skipped: isSkipped, ...said },
    elements: layout.elements,
  });

  let seen: readonly GradientSums[] = [];
  if (isMeasured) {
    await runner.run(targets, ({ recipe }) => recipe.measure?.calls ?? [], isRepeatable(options.loss_scale));
    seen = await mapInTurns(targets, (target) => gradientSums(runner.total(target, target.recipe.measure?.look)));
    if (nonFinite === "error") requireFinite(layout, seen);
    if (nonFinite === "skip" && (options.others_non_finite || seen.some((sums) => sums.nonFinite > 0))) return output(true, await rounding());
  }
  const scale = clipScale(layout, seen);
  if (madeBytes > 0) bases[MADE] = await inTurns(makeSlots(layout, lease));
  const scalars = (target: StepTarget, index: number): Scalars => ({ moment: (results[index] as Result).moment, scale, target });
  const suspects = new Set<number>();
  for (let stage = 0; stage < layout.stages; stage++) {
    const found = await runner.run(targets, ({ recipe }) => recipe.phases[stage]?.calls ?? [], false, scalars);
    for (const index of found) suspects.add(index);
    if (stage === 0 && !isMeasured) {
      seen = await mapInTurns(targets, (target) => gradientSums(runner.total(target, target.recipe.phases[0]?.look)));
      if (nonFinite === "error") requireFinite(layout, seen);
    }
    const keepSums = (target: StepTarget, index: number): void => {
      const result = results[index] as Result;
      const phase = target.recipe.phases[stage];
      result.moment.sums.push(runner.total(target, phase?.stage));
      if (phase?.stats) result.stats = runner.total(target, phase.stats);
    };
    await mapInTurns(targets, keepSums);
  }
  const rounded = await rounding();
  const suspected = targets.filter(({ name }, index) => suspects.has(index) || rounded?.suspects.has(name));
  return output(false, rounded, reportOf(layout, results, seen, await nonFiniteResults(suspected, runner), scale));
};

/** Counts the values of new parameters that are not finite, in those where a kernel could not rule it out. */
const nonFiniteResults = async (suspected: readonly StepTarget[], runner: Runner): Promise<readonly Count[]> => {
  if (suspected.length === 0) return [];
  await runner.run(suspected, ({ recipe }) => recipe.results.calls, true);
  return suspected.map((target) => ({ name: target.name, count: runner.total(target, target.recipe.results.look)[0] ?? 0 })).filter(({ count }) => count > 0);
};

interface Result extends TensorResult {
  readonly moment: StepContext & { readonly sums: number[][] };
  stats: readonly number[];
}

/** A target's result before its first stage. Throws STATE_MISMATCH for a slot that steps were taken without, unless the optimizer lets it start late. */
const resultOf = (
  { plan: { optimizer } }: Layout,
  { name, elements, recipe, scalars }: StepTarget,
  now: Now,
  index: number,
  state: Buffer | undefined,
): Result => {
  const taken = now.taken[index] as number;
  const [missing] = taken > 0 ? recipe.needed : [];
  if (missing !== undefined) throw StepdError.mismatch("STATE_MISMATCH", "/state", `slot ${missing}/${name}, after ${taken} steps`, "none", [name]);
  // After its first step a parameter that lacks a scalar slot came from another optimizer of the family, which knows how to go on.
  const scalarSlots: Record<string, number> = taken === 0 ? { ...optimizer.scalarSlots } : {};
  if (scalars) for (const [slot, offset] of scalars) scalarSlots[slot] = (state as Buffer).readDoubleLE(offset);
  return {
    moment: { step: taken + 1, lr: (now.rates[index] as Rates).lr, isFirst: taken === 0 || recipe.isFirst, elements, scalarSlots, sums: [] },
    stats: [],
  };
};

/** Bytes that are filled between two yields. */
const FILLED_BYTES = 2 ** 23;

/** Makes the slots that the state lacks, at their starting values. Returns their address. */
export function* makeSlots({ madeBytes, fillings }: Layout, lease: Lease): Turns<number> {
  const base = lease.alloc(madeBytes);
  const fill = function* (value: Buffer, start: number, end: number): Turns<void> {
    for (let at = start; at < end; at += FILLED_BYTES) {
      if (at > start) yield;
      lease.bytes.fill(value, at, Math.min(at + FILLED_BYTES, end));
    }
  };
  yield* fill(Buffer.alloc(1), base, base + madeBytes);
  for (const [index, { offset, elements, dtype, value }] of fillings.entries()) {
    if (index % TURN_PASSES === TURN_PASSES - 1) yield;
    const one = Buffer.alloc(bytesOf(dtype) as number);
    if (dtype === "F64") one.writeDoubleLE(value);
    else one.writeFloatLE(value);
    yield* fill(one, base + offset, base + offset + elements * one.length);
  }
  return base;
}

/** Writes the counts and the scalar slots of a step into the state, or a new file where its header is another. */
const stateOf = async (
  layout: Layout,
  results: readonly Result[],
  file: Buffer | undefined,
  bases: readonly number[],
  lease: Lease,
  isSkipped: boolean,
): Promise<Parts> => {
  const { plan, targets, output } = layout;
  const { nextScalarSlots } = plan.optimizer;
  const next = (index: number): Readonly<Record<string, number>> =>
    nextScalarSlots?.((targets[index] as StepTarget).recipe.values, (results[index] as Result).moment) ?? {};
  if (!output) {
    const state = file as Buffer;
    if (isSkipped) return new Parts([state]);
    const write = ({ step, scalars }: StepTarget, index: number): void => {
      writeStep(state, step as number, (results[index] as Result).moment.step);
      if (!nextScalarSlots) return;
      const values = next(index);
      for (const [slot, offset] of scalars ?? []) state.writeDoubleLE(values[slot] as number, offset);
    };
    await mapInTurns(targets, write);
    return new Parts([state]);
  }
  if (isSkipped) {
    const entries = output.entries.filter(({ block }) => block === STATE);
    return inTurns(writeOutput({ header: await inTurns(newStateHeader(plan.optimizer, entries)), entries }, file, bases, () => undefined, lease));
  }
  const values = await mapInTurns(results, ({ moment }, index) => ({ ...next(index), [STEP]: moment.step }) as Readonly<Record<string, number>>);
  return inTurns(writeOutput(output, file, bases, (target, scalar) => values[target]?.[scalar], lease));
};

interface Rounded {
  readonly params: Reply;
  /** Names of tensors that may not be finite. */
  readonly suspects: ReadonlySet<string>;
}

const round = async (
  { header, bytes, tensors, targets }: NonNullable<Layout["rounding"]>,
  params: TensorFile,
  lease: Lease,
  pool: Pool,
  queueTime: QueueTime,
): Promise<Rounded> => {
  const file = bytes === 0 ? lease.view(0, 0) : lease.view(lease.alloc(bytes), bytes);
  if (header.length > 0) file.fill(header, 0, header.length);
  const found = await new Runner(lease, pool, queueTime, [params.bytes.byteOffset, 0, 0, 0, file.byteOffset, 0]).run(targets, ({ calls }) => calls, true);
  return { params: await replyOf({ bytes: file, plain: params.plain && tensors }), suspects: new Set(found.map((index) => (targets[index] as Target).name)) };
};
