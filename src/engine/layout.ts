/**
 * A step's layout contains names, offsets, groups, stages and the entries of the new state. It is compiled from the call's options and
 * the files' headers. It contains no tensor values, so calls with the same options and headers share it.
 */
import { bytesOf, elementsOf } from "../codec/dtype.ts";
import { compareCanonical, type Safetensors, type TensorDescription, type TensorInfo, writeHeaderInTurns } from "../codec/safetensors.ts";
import { CHEAP_ITEMS_PER_YIELD, ITEMS_PER_YIELD, sorted, type Task } from "../codec/turns.ts";
import { pointerEscape, StepdError } from "../errors/errors.ts";
import type { StepParams } from "../generated/wire.gen.ts";
import type { Hyperparameters, OptimizerDefinition, Values } from "../optimizers/registry.ts";
import type { Matched, Pair } from "./match.ts";
import { normLimit, type Plan, planOf } from "./plan.ts";
import { type Recipe, type RecipeInput, Recipes, type TensorOptions } from "./recipe.ts";
import { type KernelCall, NEW_SLOTS, STATE, sumBytes, type Target } from "./runner.ts";
import { type SliceOffsets, sliceOffsets } from "./slices.ts";
import {
  COMMON_SLOTS,
  codesOf,
  MASTER_PARAM,
  newStateHeader,
  type OtherOptimizers,
  requireContinuable,
  requiredSlots,
  STEP,
  type StateHeader,
  scalarSlotsOf,
  scaleCount,
  slotShape,
} from "./state.ts";
import { withOffsets } from "./tensors.ts";

/** A step's call without its tensors. */
export type StepOptions = Omit<StepParams, "params" | "grads" | "reduce" | "state" | "receipt">;

/** A parameter that the step updates. */
export interface StepTarget extends Target {
  readonly recipe: Recipe;
  /** The offset of the parameter's step count in the state; undefined if the state has none. */
  readonly step: number | undefined;
  /** The offset of each scalar slot in the state. */
  readonly scalars: ReadonlyMap<string, number> | undefined;
}

/** An entry of the new state: a slot, or a scalar such as a step count. */
export interface OutputEntry extends TensorDescription {
  /** The scalar's name; undefined for a slot. */
  readonly scalar: string | undefined;
  /** The index of the entry's target. Undefined for a resting parameter, which has state but no gradient in this step. */
  readonly target: number | undefined;
  /** The memory block of the entry's content; undefined for a new scalar. */
  readonly block: typeof STATE | typeof NEW_SLOTS | undefined;
  readonly offset: number;
}

/** The file of the new state. */
export interface StateOutput {
  readonly header: Buffer;
  readonly others: OtherOptimizers;
  /** The entries in canonical order. */
  readonly entries: readonly OutputEntry[];
}

/** The initial value of a new slot, if that is not 0. */
interface InitialValue {
  readonly offset: number;
  readonly elements: number;
  readonly dtype: string;
  readonly value: number;
}

/** The additional file of all parameters, rounded to BF16. */
export interface Rounding {
  readonly header: Buffer;
  readonly bytes: number;
  readonly tensors: readonly TensorInfo[];
  readonly targets: readonly (Target & { readonly calls: readonly KernelCall[] })[];
}

export interface Layout {
  readonly options: StepOptions;
  readonly plan: Plan;
  /** The optimizer's own limit of the norm over all gradients, if it has one. */
  readonly maxGradNorm: number | null;
  /** True if a separate pass measures all gradients before the first stage: to clip by norm, or because the step may be skipped or rejected. */
  readonly isMeasured: boolean;
  /** The targets, sorted by the bytes of their names: the order in the request must not change the result. */
  readonly targets: readonly StepTarget[];
  /** The largest number of stages of any target. */
  readonly stages: number;
  readonly recipeCount: number;
  /** The names and step-count offsets of resting parameters, which have state but no gradient. */
  readonly resting: readonly (readonly [name: string, offset: number])[];
  /** The new state's file. Undefined if the new state overwrites the old one in place. */
  readonly output: StateOutput | undefined;
  readonly rounding: Rounding | undefined;
  /** The bytes of all slots that the step creates. */
  readonly newSlotBytes: number;
  /** The bytes of widened gradients and of the kernels' sums. */
  readonly workBytes: number;
  readonly initialValues: readonly InitialValue[];
  /** True if the caller can recover the new parameters from the rounded ones or from the state. */
  readonly isRecoverable: boolean;
  /** The number of updated elements by optimizer and dtype, for metrics. */
  readonly elements: ElementCounts;
}

/** The number of elements by optimizer, then by dtype. */
export type ElementCounts = Readonly<Record<string, Readonly<Record<string, number>>>>;

/** Widened gradients start at a cache line. */
const ALIGNMENT = 64;

export const aligned = (bytes: number): number => Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;

/**
 * Compiles the layout of a step. `values` are the targets' hyperparameters if a schedule changes them. Throws INVALID_PARAMS,
 * TENSOR_MISMATCH, STATE_CORRUPT, STATE_MISMATCH and UNSUPPORTED_DTYPE.
 */
export function* compile(options: StepOptions, matched: Matched, kernel: (name: string) => number, values?: readonly Values<Hyperparameters>[]): Task<Layout> {
  const { clip = {}, non_finite: nonFinite = "error", stats = "none", reply = {}, master_weights: masterWeights = false } = options;
  const plan = planOf(options);
  const maxGradNorm = normLimit(plan.base);
  if (clip.total_norm !== undefined && clip.max_norm === undefined && maxGradNorm === null) {
    throw StepdError.mismatch("INVALID_PARAMS", "/clip/total_norm", "max_norm beside it, or an optimizer with max_grad_norm", "neither");
  }
  const needsNorm = (clip.max_norm !== undefined || maxGradNorm !== null) && clip.total_norm === undefined;
  const isMeasured = needsNorm || nonFinite === "skip" || (nonFinite === "error" && options.others_non_finite === true);
  const tensorOptions: TensorOptions = {
    lossScale: options.loss_scale ?? 1,
    maxValue: clip.max_value,
    isMeasured,
    gradientCheck: isMeasured ? undefined : stats !== "none" ? "norm" : nonFinite === "error" ? "check" : undefined,
    wantsStats: stats !== "none",
    seed: options.stochastic_rounding?.seed,
    isRounded: reply.params === "bf16",
  };

  const { params, pairs, state, resting, isCanonical, firstMaster } = matched;
  const others = yield* otherOptimizers(plan, matched);
  if (state) yield* requireContinuable(state, plan.hasOneOptimizer, (name) => others.get(name) ?? plan.base.optimizer);
  if (firstMaster !== undefined && !masterWeights) {
    throw StepdError.mismatch("STATE_MISMATCH", "/state", "master_weights: true, because the state has master copies", "false", [firstMaster]);
  }
  const slices = yield* sliceOffsets(options.slices, params.tensors, "/params");
  if (slices.size > 0) refuseSums(options, [...slices.keys()][0] as string, needsNorm);
  const recipes = new Recipes(kernel);
  const recipeCache = new RecipeCache(plan, recipes, tensorOptions, masterWeights, slices);

  const targets: StepTarget[] = [];
  const newSlots: NewSlot[] = [];
  const elementCounts: Record<string, Record<string, number>> = {};
  let workBytes = 0;
  for (const [index, pair] of pairs.entries()) {
    const { param, grad, stateEntries } = pair;
    if (index % ITEMS_PER_YIELD === ITEMS_PER_YIELD - 1) yield;
    const { name, elements } = param;
    const recipe = recipeCache.of(pair, values?.[index]);
    const offsets = [param.offset, grad.offset, workBytes];
    workBytes += aligned(elements * recipe.wideGradStride);
    for (const [slot, isNew, dtype] of recipe.slots) {
      if (isNew) {
        const shape = codesOf(slot) === undefined ? (slotShape(recipe.optimizer, slot, param.shape) ?? []) : [scaleCount(elements)];
        newSlots.push({ name: `${slot}/${name}`, dtype, shape, elements: elementsOf(shape), slot, target: index, at: offsets.length });
      }
      offsets.push(stateEntries?.slots.get(slot)?.offset ?? 0);
    }
    for (const bytes of recipe.buffers) {
      offsets.push(workBytes);
      workBytes += aligned(bytes);
    }
    const { optimizer } = recipe;
    targets.push({
      name,
      elements,
      first: slices.get(name) ?? 0,
      offsets,
      sums: workBytes,
      recipe,
      step: stateEntries?.step,
      scalars: optimizer.scalarSlots && stateEntries?.scalars,
    });
    elementCounts[optimizer.name] ??= {};
    const counts = elementCounts[optimizer.name] as Record<string, number>;
    counts[param.dtype] = (counts[param.dtype] ?? 0) + elements;
    workBytes += sumBytes(elements, recipe.columns);
  }
  const { newSlotBytes, initialValues } = yield* assignOffsets(newSlots, targets);
  const isInPlace = isCanonical && newSlots.length === 0 && state !== undefined && hasOptimizers(state, plan, others) && !addsScalars(targets);
  return {
    options,
    plan,
    maxGradNorm,
    isMeasured,
    targets,
    recipeCount: recipeCache.count,
    stages: targets.reduce((most, { recipe }) => Math.max(most, recipe.phases.length), 0),
    resting,
    output: isInPlace ? undefined : yield* stateOutputOf(plan, others, targets, newSlots, state),
    rounding: tensorOptions.isRounded ? yield* roundingOf(params, recipes) : undefined,
    newSlotBytes,
    workBytes,
    initialValues,
    isRecoverable: targets.every(
      ({ recipe: { param, slots } }) => (tensorOptions.isRounded && param === "BF16") || slots.some(([slot]) => slot === MASTER_PARAM),
    ),
    elements: elementCounts,
  };
}

/** Finds the parameters of a call and of its state that are under another optimizer than the base. */
function* otherOptimizers(plan: Plan, { pairs, state }: Matched): Task<OtherOptimizers> {
  const others = new Map<string, OptimizerDefinition>();
  if (plan.hasOneOptimizer) return others;
  let found = 0;
  const add = (name: string): void => {
    const { optimizer } = plan.settingsOf(name);
    if (optimizer !== plan.base.optimizer) others.set(name, optimizer);
  };
  for (const { param } of pairs) {
    add(param.name);
    if (++found % ITEMS_PER_YIELD === 0) yield;
  }
  for (const name of state?.parameters.keys() ?? []) {
    add(name);
    if (++found % ITEMS_PER_YIELD === 0) yield;
  }
  return others;
}

/** True if a state names the call's optimizers in their current revisions. */
const hasOptimizers = (state: StateHeader, plan: Plan, others: OtherOptimizers): boolean => {
  const isCurrent = ({ name, revision }: OptimizerDefinition): boolean => state.revisions.get(name) === revision;
  if (state.optimizer !== plan.base.optimizer || !isCurrent(state.optimizer) || state.others.size !== others.size) return false;
  return [...others].every(([name, optimizer]) => state.others.get(name) === optimizer && isCurrent(optimizer));
};

/** Throws INVALID_PARAMS if the step needs sums over whole tensors, of which it has a slice. */
const refuseSums = ({ stats = "none" }: StepOptions, slice: string, needsNorm: boolean): void => {
  const reason = `because ${JSON.stringify(slice)} is a slice of a tensor`;
  if (stats !== "none") throw StepdError.mismatch("INVALID_PARAMS", "/stats", `none, ${reason}`, stats, [slice]);
  if (needsNorm) throw StepdError.mismatch("INVALID_PARAMS", "/clip/total_norm", `the norm over all gradients, ${reason}`, "none", [slice]);
};

/** Returns whether an optimizer with these hyperparameters needs whole tensors, so that calls cannot have slices. */
export const needsWhole = ({ wholeTensors }: OptimizerDefinition, values: Values<Hyperparameters>): boolean =>
  wholeTensors === true || (wholeTensors !== undefined && values[wholeTensors] === true);

/** Throws INVALID_PARAMS if an optimizer needs the whole tensor. */
const refuseSlice = (optimizer: OptimizerDefinition, values: Values<Hyperparameters>, slice: string, offset: number): void => {
  if (!needsWhole(optimizer, values)) return;
  const { name, wholeTensors } = optimizer;
  const cause = wholeTensors === true ? name : `${name} with ${wholeTensors}`;
  throw StepdError.mismatch("INVALID_PARAMS", `/slices/${pointerEscape(slice)}`, `the whole tensor, which ${cause} needs`, `a slice from element ${offset}`, [
    slice,
  ]);
};

/** Throws TENSOR_MISMATCH for a tensor that is no matrix. */
const requireMatrix = ({ name: optimizer }: OptimizerDefinition, { name, shape }: TensorInfo): void => {
  if (shape.length === 2) return;
  const expected = `a matrix for ${optimizer}, or a group that gives the tensor another optimizer`;
  throw StepdError.mismatch("TENSOR_MISMATCH", `/params/${pointerEscape(name)}`, expected, `shape [${shape}]`, [name]);
};

class RecipeCache {
  readonly #plan: Plan;
  readonly #recipes: Recipes;
  readonly #tensorOptions: TensorOptions;
  readonly #masterWeights: boolean;
  readonly #slices: SliceOffsets;
  readonly #recipesOf = new Map<Values<Hyperparameters>, Map<string, Recipe>>();
  count = 0;

  constructor(plan: Plan, recipes: Recipes, tensorOptions: TensorOptions, masterWeights: boolean, slices: SliceOffsets) {
    this.#plan = plan;
    this.#recipes = recipes;
    this.#tensorOptions = tensorOptions;
    this.#masterWeights = masterWeights;
    this.#slices = slices;
  }

  /** Returns the recipe of a pair. `changed` replaces the hyperparameters of its group. */
  of({ param, grad, stateEntries, recipeKey }: Pair, changed: Values<Hyperparameters> | undefined): Recipe {
    const { optimizer, values: own, field } = this.#plan.settingsOf(param.name);
    const values = changed ?? own;
    const byKey = this.#recipesOf.get(values) ?? new Map<string, Recipe>();
    this.#recipesOf.set(values, byKey);
    // The last slice of a tensor may be short, but Q8 stores it in codes, as it stores the tensor.
    const first = this.#slices.get(param.name);
    if (optimizer.matrices) requireMatrix(optimizer, param);
    const shape = optimizer.shapes ? param.shape : [];
    const key = [recipeKey, ...(first === undefined ? [] : [first > 0]), ...shape].join(" ");
    const whole = { dtype: param.dtype, shape: param.shape, elements: (first ?? 0) + param.elements };
    if (first !== undefined) refuseSlice(optimizer, values, param.name, first);
    let recipe = byKey.get(key);
    if (recipe) return recipe;
    const { state_dtype: stateDtype = "F32" } = values as { readonly state_dtype?: string };
    if (stateDtype !== "F32" && param.dtype === "F64") {
      throw StepdError.mismatch("UNSUPPORTED_DTYPE", `${field}/state_dtype`, "F32 for a parameter in F64, whose moments are F64", stateDtype, [param.name]);
    }
    const slots = requiredSlots(optimizer, values, whole, this.#masterWeights).map(([slot, dtype]) => [slot, !stateEntries?.slots.has(slot), dtype] as const);
    for (const [slot, isNew, dtype] of slots) {
      const found = stateEntries?.slots.get(slot)?.dtype ?? stateEntries?.slots.get(codesOf(slot) ?? "")?.dtype;
      if (found === undefined || (found === dtype && !isNew) || (isNew && codesOf(slot) === undefined)) continue;
      const expected = `${slot}/${param.name} in ${dtype}, as state_dtype ${stateDtype} stores it; state.convert changes it`;
      throw StepdError.mismatch("STATE_MISMATCH", "/state", expected, found, [param.name]);
    }
    const newSlots = slots.filter(([slot, isNew]) => isNew && !COMMON_SLOTS.includes(slot) && codesOf(slot) === undefined).map(([slot]) => slot);
    const slotsRequiredLater = newSlots.filter((slot) => !optimizer.lateSlots.includes(slot));
    const input: RecipeInput = {
      param: param.dtype,
      grad: grad.dtype,
      optimizer,
      values,
      shape,
      slots,
      isFirst: newSlots.length > 0,
      slotsRequiredLater,
    };
    recipe = this.#recipes.step(input, this.#tensorOptions);
    byKey.set(key, recipe);
    this.count++;
    return recipe;
  }
}

/** A slot that the state lacks and the step creates. */
interface NewSlot extends TensorDescription {
  readonly slot: string;
  /** The index of the slot's target. */
  readonly target: number;
  /** The slot's index in the target's `offsets`. */
  readonly at: number;
  readonly elements: number;
}

/** Assigns offsets to the new slots. The slots form one block in the order of the new state's file, so they are sent in one piece. */
function* assignOffsets(
  newSlots: readonly NewSlot[],
  targets: readonly StepTarget[],
): Task<{ readonly newSlotBytes: number; readonly initialValues: readonly InitialValue[] }> {
  const initialValues: InitialValue[] = [];
  let newSlotBytes = 0;
  for (const [index, { slot, target, at, elements, dtype }] of (yield* sorted(newSlots, compareCanonical)).entries()) {
    if (index % CHEAP_ITEMS_PER_YIELD === CHEAP_ITEMS_PER_YIELD - 1) yield;
    const { offsets, recipe } = targets[target] as StepTarget;
    (offsets as number[])[at] = newSlotBytes;
    const value = recipe.optimizer.initial?.(recipe.values)[slot] ?? 0;
    if (value !== 0) initialValues.push({ offset: newSlotBytes, elements, dtype, value });
    newSlotBytes += elements * (bytesOf(dtype) as number);
  }
  return { newSlotBytes, initialValues };
}

/** True if the step adds a step count or a scalar slot to the state. */
const addsScalars = (targets: readonly StepTarget[]): boolean =>
  targets.some(({ step, scalars, recipe }) => step === undefined || scalarSlotsOf(recipe.optimizer).some((slot) => !scalars?.has(slot)));

const scalarEntry = (slot: string, name: string) => ({ name: `${slot}/${name}`, dtype: slot === STEP ? "I64" : "F64", shape: [], scalar: slot });

/** Lists the entries of the new state's file in canonical order and writes its header. */
function* stateOutputOf(
  { base: { optimizer: base } }: Plan,
  others: OtherOptimizers,
  targets: readonly StepTarget[],
  newSlots: readonly NewSlot[],
  state: StateHeader | undefined,
): Task<StateOutput> {
  const indexOf = new Map<string, number>();
  for (const [index, { name }] of targets.entries()) {
    indexOf.set(name, index);
    if (index % CHEAP_ITEMS_PER_YIELD === CHEAP_ITEMS_PER_YIELD - 1) yield;
  }
  const entries: OutputEntry[] = [];
  let read = 0;
  for (const [name, { step, slots, scalars }] of state?.parameters ?? []) {
    const target = indexOf.get(name);
    entries.push({ ...scalarEntry(STEP, name), target, block: STATE, offset: step as number });
    for (const slot of scalarSlotsOf(others.get(name) ?? base)) {
      const offset = scalars.get(slot);
      if (offset !== undefined) entries.push({ ...scalarEntry(slot, name), target, block: STATE, offset });
      else if (target !== undefined) entries.push({ ...scalarEntry(slot, name), target, block: undefined, offset: 0 });
    }
    for (const info of slots.values())
      entries.push({ name: info.name, dtype: info.dtype, shape: info.shape, scalar: undefined, target, block: STATE, offset: info.offset });
    if (++read % ITEMS_PER_YIELD === 0) yield;
  }
  for (const [target, { name, step, recipe }] of targets.entries()) {
    if (step === undefined)
      for (const slot of [STEP, ...scalarSlotsOf(recipe.optimizer)]) entries.push({ ...scalarEntry(slot, name), target, block: undefined, offset: 0 });
    if (target % ITEMS_PER_YIELD === ITEMS_PER_YIELD - 1) yield;
  }
  for (const [index, { name, dtype, shape, target, at }] of newSlots.entries()) {
    if (index % CHEAP_ITEMS_PER_YIELD === CHEAP_ITEMS_PER_YIELD - 1) yield;
    entries.push({ name, dtype, shape, scalar: undefined, target, block: NEW_SLOTS, offset: targets[target]?.offsets[at] ?? 0 });
  }
  const ordered = yield* sorted(entries, compareCanonical);
  return { header: yield* newStateHeader(base, others, ordered), others, entries: ordered };
}

/** Lays out the rounded parameters. Rejects F64: no kernel converts it to BF16 directly, and rounding twice may miss the nearest value. */
function* roundingOf({ metadata, tensors, header: given }: Safetensors, recipes: Recipes): Task<Rounding> {
  const double = tensors.find(({ dtype }) => dtype === "F64");
  if (double) throw StepdError.mismatch("UNSUPPORTED_DTYPE", "/reply/params", "same, where there are parameters in F64", "bf16", [double.name]);
  const rounded = yield* withOffsets(tensors.map(({ name, shape }) => ({ name, shape, dtype: "BF16" })));
  // Parameters that were given as plain numbers have no header.
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

/** Estimates the heap size of a layout and its cache key, in bytes. */
export const layoutBytes = ({ recipeCount, targets, output, rounding }: Layout, key: string): number => {
  const ofOutput = output ? output.header.length + 260 * output.entries.length : 0;
  const ofRounding = rounding ? rounding.header.length + 400 * rounding.targets.length : 0;
  return 8192 + 8 * key.length + 6144 * recipeCount + 280 * targets.length + ofOutput + ofRounding;
};
