/**
 * A step without its values. The options of the call and the headers of its files give names, offsets, groups, stages and output
 * places; one layout serves all calls with the same options and headers.
 */
import { bytesOf } from "../codec/dtype.ts";
import { compareCanonical, type Safetensors, type TensorDescription, type TensorInfo, writeHeaderInTurns } from "../codec/safetensors.ts";
import { sorted, TURN_ITEMS, TURN_PASSES, type Turns } from "../codec/turns.ts";
import { StepdError } from "../errors/errors.ts";
import type { StepParams } from "../generated/wire.gen.ts";
import type { Hyperparameters, Values } from "../optimizers/registry.ts";
import { groupFinder } from "./groups.ts";
import type { Matched, Pair } from "./match.ts";
import { type Plan, planOf } from "./plan.ts";
import { type Kind, type Recipe, Recipes, type Treatment } from "./recipe.ts";
import { type KernelCall, MADE, STATE, sumBytes, type Target } from "./runner.ts";
import { MASTER_PARAM, newStateHeader, requireFamily, STEP, type StateHeader, slotDtype, wantedSlots } from "./state.ts";
import { inOrder } from "./tensors.ts";

/** Everything that a step is asked, beside its tensors. */
export type StepOptions = Omit<StepParams, "params" | "grads" | "state">;

/** A tensor that is stepped. */
export interface StepTarget extends Target {
  readonly recipe: Recipe;
  /** Where its step and its scalar slots are in the state; undefined where the state has none yet. */
  readonly step: number | undefined;
  readonly scalars: ReadonlyMap<string, number> | undefined;
}

/** An entry of the new state: a slot in its block, or a scalar of a target or of a parameter that rests. */
export interface OutputEntry extends TensorDescription {
  /** The slot of a scalar. */
  readonly scalar: string | undefined;
  /** Index of the target; undefined for a parameter that rests. */
  readonly target: number | undefined;
  /** Undefined for a scalar that the state does not have yet. */
  readonly block: typeof STATE | typeof MADE | undefined;
  readonly offset: number;
}

export interface Output {
  readonly header: Buffer;
  /** In canonical order. */
  readonly entries: readonly OutputEntry[];
}

/** A slot that starts from another value than 0. */
interface Filling {
  readonly offset: number;
  readonly elements: number;
  readonly dtype: string;
  readonly value: number;
}

/** Parameters in BF16, beside those of the step. */
export interface Rounding {
  readonly header: Buffer;
  readonly bytes: number;
  readonly tensors: readonly TensorInfo[];
  readonly targets: readonly (Target & { readonly calls: readonly KernelCall[] })[];
}

export interface Layout {
  readonly options: StepOptions;
  readonly plan: Plan;
  /** The norm over all gradients that the optimizer itself clips to. */
  readonly maxGradNorm: number | undefined;
  /** Whether all gradients are measured before the first stage: for their norm, or because the step may not be made. */
  readonly isMeasured: boolean;
  /** In the order of their names' bytes, so that nothing depends on the order in the request. */
  readonly targets: readonly StepTarget[];
  readonly stages: number;
  /** Different recipes of the targets. */
  readonly recipes: number;
  /** Parameters of the state that have no gradient, with the places of their steps. */
  readonly resting: readonly (readonly [name: string, offset: number])[];
  /** Undefined where the new state takes the place of the old. */
  readonly output: Output | undefined;
  readonly rounding: Rounding | undefined;
  /** Bytes of the slots that the step makes, and of gradients and sums between kernels. */
  readonly madeBytes: number;
  readonly workBytes: number;
  readonly fillings: readonly Filling[];
  /** Whether the rounded parameters or the state have all that the step changes of the parameters. */
  readonly isRecoverable: boolean;
  /** Elements of the targets' parameters by dtype, for metrics. */
  readonly elements: Readonly<Record<string, number>>;
}

/** A cache line, at which memory for widened gradients starts. */
const ALIGNMENT = 64;

export const aligned = (bytes: number): number => Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;

/**
 * Compiles a step. `values` are the hyperparameters of each target where a schedule changes them. Throws INVALID_PARAMS,
 * TENSOR_MISMATCH, STATE_CORRUPT, STATE_MISMATCH, UNSUPPORTED_DTYPE.
 */
export function* compile(options: StepOptions, matched: Matched, kernel: (name: string) => number, values?: readonly Values<Hyperparameters>[]): Turns<Layout> {
  const { clip = {}, non_finite: nonFinite = "error", stats = "none", reply = {}, master_weights: masterWeights = false } = options;
  const plan = planOf(options);
  const { optimizer } = plan;
  const maxGradNorm = normLimit(plan);
  if (clip.total_norm !== undefined && clip.max_norm === undefined && maxGradNorm === undefined) {
    throw StepdError.mismatch("INVALID_PARAMS", "/clip/total_norm", "max_norm beside it, or an optimizer with max_grad_norm", "neither");
  }
  const needsNorm = (clip.max_norm !== undefined || maxGradNorm !== undefined) && clip.total_norm === undefined;
  const isMeasured = needsNorm || nonFinite === "skip" || (nonFinite === "error" && options.others_non_finite === true);
  const treatment: Treatment = {
    lossScale: options.loss_scale ?? 1,
    maxValue: clip.max_value,
    isMeasured,
    look: isMeasured ? undefined : stats !== "none" ? "norm" : nonFinite === "error" ? "check" : undefined,
    wantsStats: stats !== "none",
    seed: options.stochastic_rounding?.seed,
    isRounded: reply.params === "bf16",
  };

  const { params, pairs, state, resting, isCanonical, master, elements } = matched;
  if (state) requireFamily(state, optimizer);
  if (master !== undefined && !masterWeights) {
    throw StepdError.mismatch("STATE_MISMATCH", "/state", "master_weights: true, because the state has master copies", "false", [master]);
  }
  const recipes = new Recipes(kernel);
  const kinds = new Kinds(plan, recipes, treatment, masterWeights);

  const targets: StepTarget[] = [];
  const made: Made[] = [];
  let workBytes = 0;
  for (const [index, pair] of pairs.entries()) {
    const { param, grad, places } = pair;
    if (index % TURN_ITEMS === TURN_ITEMS - 1) yield;
    const { name, elements, dtype } = param;
    const recipe = kinds.of(pair, values?.[index]);
    const offsets = [param.offset, grad.offset, workBytes];
    workBytes += aligned(elements * recipe.homeStride);
    for (const [slot, isMade] of recipe.slots) {
      if (isMade) made.push({ name: `${slot}/${name}`, dtype: slotDtype(dtype), shape: param.shape, slot, target: index, elements, at: offsets.length });
      offsets.push(places?.slots.get(slot)?.offset ?? 0);
    }
    targets.push({ name, elements, offsets, sums: workBytes, recipe, step: places?.step, scalars: optimizer.scalarSlots && places?.scalars });
    workBytes += sumBytes(elements, recipe.columns);
  }
  const { madeBytes, fillings } = yield* place(made, targets, optimizer.initial);
  const isInPlace =
    isCanonical && made.length === 0 && state?.optimizer === optimizer && state.revision === optimizer.revision && !addsScalars(targets, optimizer);
  return {
    options,
    plan,
    maxGradNorm,
    isMeasured,
    targets,
    recipes: kinds.count,
    stages: targets.reduce((most, { recipe }) => Math.max(most, recipe.phases.length), 0),
    resting,
    output: isInPlace ? undefined : yield* outputOf(plan, targets, made, state),
    rounding: treatment.isRounded ? yield* roundingOf(params, recipes) : undefined,
    madeBytes,
    workBytes,
    fillings,
    isRecoverable: targets.every(({ recipe: { param, slots } }) => (treatment.isRounded && param === "BF16") || slots.some(([slot]) => slot === MASTER_PARAM)),
    elements,
  };
}

/** The norm over all gradients that the optimizer itself clips to. */
const normLimit = ({ optimizer, base }: Plan): number | undefined =>
  optimizer.normLimit === undefined ? undefined : ((base[optimizer.normLimit] as number | null) ?? undefined);

/** Makes each recipe once. */
class Kinds {
  readonly #plan: Plan;
  readonly #recipes: Recipes;
  readonly #treatment: Treatment;
  readonly #masterWeights: boolean;
  readonly #groupOf: (name: string) => number;
  readonly #known = new Map<Values<Hyperparameters>, Map<string, Recipe>>();
  /** Recipes that it has made. */
  count = 0;

  constructor(plan: Plan, recipes: Recipes, treatment: Treatment, masterWeights: boolean) {
    this.#plan = plan;
    this.#recipes = recipes;
    this.#treatment = treatment;
    this.#masterWeights = masterWeights;
    this.#groupOf = groupFinder(plan.groups);
  }

  /** The recipe of a pair, under other hyperparameters than its group's where these are given. */
  of({ param, grad, places, kind: key }: Pair, changed: Values<Hyperparameters> | undefined): Recipe {
    const { optimizer, groups, base } = this.#plan;
    const values = changed ?? groups[this.#groupOf(param.name)]?.values ?? base;
    const known = this.#known.get(values) ?? new Map<string, Recipe>();
    this.#known.set(values, known);
    let recipe = known.get(key);
    if (recipe) return recipe;
    const slots = wantedSlots(optimizer, values, param.dtype, this.#masterWeights).map((slot) => [slot, !places?.slots.has(slot)] as const);
    const made = slots.filter(([slot, isMade]) => isMade && slot !== MASTER_PARAM).map(([slot]) => slot);
    const needed = made.filter((slot) => !optimizer.lateSlots.includes(slot));
    const kind: Kind = { param: param.dtype, grad: grad.dtype, values, stages: optimizer.stages(values), slots, isFirst: made.length > 0, needed };
    recipe = this.#recipes.step(kind, this.#treatment);
    known.set(key, recipe);
    this.count++;
    return recipe;
  }
}

/** A slot that the step makes. */
interface Made extends TensorDescription {
  readonly slot: string;
  /** Index of its target, and of its offset there. */
  readonly target: number;
  readonly at: number;
  readonly elements: number;
}

/** Gives the slots that are made their places: one block in the order of the file, so that it goes out in one piece. */
function* place(
  made: readonly Made[],
  targets: readonly StepTarget[],
  initial: Plan["optimizer"]["initial"],
): Turns<{ readonly madeBytes: number; readonly fillings: readonly Filling[] }> {
  const fillings: Filling[] = [];
  let madeBytes = 0;
  for (const [index, { slot, target, at, elements, dtype }] of (yield* sorted(made, compareCanonical)).entries()) {
    if (index % TURN_PASSES === TURN_PASSES - 1) yield;
    const { offsets, recipe } = targets[target] as StepTarget;
    (offsets as number[])[at] = madeBytes;
    const value = initial?.(recipe.values)[slot] ?? 0;
    if (value !== 0) fillings.push({ offset: madeBytes, elements, dtype, value });
    madeBytes += elements * (bytesOf(dtype) as number);
  }
  return { madeBytes, fillings };
}

/** Whether the step adds a count or a scalar slot to the state. */
const addsScalars = (targets: readonly StepTarget[], { scalarSlots = {} }: Plan["optimizer"]): boolean => {
  const slots = Object.keys(scalarSlots);
  return targets.some(({ step, scalars }) => step === undefined || slots.some((slot) => !scalars?.has(slot)));
};

const scalar = (slot: string, name: string) => ({ name: `${slot}/${name}`, dtype: slot === STEP ? "I64" : "F64", shape: [], scalar: slot });

/** The canonical file of the state after the step. */
function* outputOf({ optimizer }: Plan, targets: readonly StepTarget[], made: readonly Made[], state: StateHeader | undefined): Turns<Output> {
  const scalarSlots = Object.keys(optimizer.scalarSlots ?? {});
  const indexOf = new Map<string, number>();
  for (const [index, { name }] of targets.entries()) {
    indexOf.set(name, index);
    if (index % TURN_PASSES === TURN_PASSES - 1) yield;
  }
  const entries: OutputEntry[] = [];
  let read = 0;
  for (const [name, { step, slots, scalars }] of state?.parameters ?? []) {
    const target = indexOf.get(name);
    entries.push({ ...scalar(STEP, name), target, block: STATE, offset: step as number });
    for (const slot of scalarSlots) {
      const offset = scalars.get(slot);
      if (offset !== undefined) entries.push({ ...scalar(slot, name), target, block: STATE, offset });
      else if (target !== undefined) entries.push({ ...scalar(slot, name), target, block: undefined, offset: 0 });
    }
    for (const info of slots.values())
      entries.push({ name: info.name, dtype: info.dtype, shape: info.shape, scalar: undefined, target, block: STATE, offset: info.offset });
    if (++read % TURN_ITEMS === 0) yield;
  }
  for (const [target, { name, step }] of targets.entries()) {
    if (step === undefined) for (const slot of [STEP, ...scalarSlots]) entries.push({ ...scalar(slot, name), target, block: undefined, offset: 0 });
    if (target % TURN_ITEMS === TURN_ITEMS - 1) yield;
  }
  for (const [index, { name, dtype, shape, target, at }] of made.entries()) {
    if (index % TURN_PASSES === TURN_PASSES - 1) yield;
    entries.push({ name, dtype, shape, scalar: undefined, target, block: MADE, offset: targets[target]?.offsets[at] ?? 0 });
  }
  const ordered = yield* sorted(entries, compareCanonical);
  return { header: yield* newStateHeader(optimizer, ordered), entries: ordered };
}

/** The parameters as another file in BF16. There is no direct way from F64 to BF16, and two roundings are not to nearest. */
function* roundingOf({ metadata, tensors, header: given }: Safetensors, recipes: Recipes): Turns<Rounding> {
  const double = tensors.find(({ dtype }) => dtype === "F64");
  if (double) throw StepdError.mismatch("UNSUPPORTED_DTYPE", "/reply/params", "same, where there are parameters in F64", "bf16", [double.name]);
  const rounded = yield* inOrder(tensors.map(({ name, shape }) => ({ name, shape, dtype: "BF16" })));
  // Tensors by name have no header.
  const header = given ? yield* writeHeaderInTurns(Object.fromEntries(metadata), rounded) : Buffer.alloc(0);
  const callsOf = new Map(["F32", "F16", "BF16"].map((dtype) => [dtype, recipes.round(dtype)]));
  return {
    header,
    bytes: rounded.reduce((sum, { bytes }) => sum + bytes, header.length),
    tensors: rounded,
    targets: tensors.map(({ name, elements, dtype, offset }, index) => ({
      name,
      elements,
      offsets: [offset, header.length + (rounded[index]?.offset ?? 0)],
      sums: 0,
      calls: callsOf.get(dtype) ?? [],
    })),
  };
}

/** Bytes that a layout takes in memory, about; its options have the text `key`. */
export const layoutBytes = ({ recipes, targets, output, rounding }: Layout, key: string): number => {
  const ofOutput = output ? output.header.length + 260 * output.entries.length : 0;
  const ofRounding = rounding ? rounding.header.length + 400 * rounding.targets.length : 0;
  return 8192 + 8 * key.length + 6144 * recipes + 280 * targets.length + ofOutput + ofRounding;
};
