/** Imports a file of torch, qhoptim or optax as a state. Slots are converted in place in the arena. */
import type { Lease } from "../arena/arena.ts";
import { COMPUTED } from "../codec/dtype.ts";
import { readSafetensorsInTurns, type TensorInfo } from "../codec/safetensors.ts";
import { ITEMS_PER_YIELD, type Task } from "../codec/turns.ts";
import { emptyState, OPTIMIZER_KEY, type ParameterState, readOptimizer, STEP, type State } from "../engine/state.ts";
import type { ArenaTensor } from "../engine/tensors.ts";
import { pointerEscape, StepdError } from "../errors/errors.ts";
import type { OptimizerDefinition } from "../optimizers/registry.ts";
import { rescale, widen } from "./_elements.ts";
import {
  COUNT,
  type Convention,
  type ForeignFormat,
  firstNames,
  keyForm,
  readKey,
  requireBetas,
  type StorageLayout,
  storageLayoutOf,
  WEIGHTS,
} from "./_formats.ts";
import { isWeightOf, stepsOf, weightAt } from "./_weights.ts";

const FIELD = "/state";

const corrupt = (expected: string, found: string): StepdError => StepdError.mismatch("STATE_CORRUPT", FIELD, expected, found);

/** One parameter's entries of a file, before its step count is known. */
interface ParameterDraft {
  readonly optimizer: OptimizerDefinition;
  readonly slots: Map<string, ArenaTensor>;
  readonly scalars: Map<string, number>;
}

interface FileContents {
  readonly drafts: ReadonlyMap<string, ParameterDraft>;
  /** The step count that all parameters of an optax file share. */
  readonly count: number | undefined;
}

export interface Imported {
  readonly state: State;
  /** Sentences that name what the conversion loses. */
  readonly lost: readonly string[];
}

/** Reads a file of a foreign format. Throws STATE_CORRUPT, STATE_MISMATCH, UNSUPPORTED_DTYPE and INVALID_PARAMS. */
export function* importState(file: Buffer, convention: Convention, optimizer: OptimizerDefinition, lease: Lease): Task<Imported> {
  const layouts = new Map<OptimizerDefinition, StorageLayout>();
  const layoutOf = (own: OptimizerDefinition): StorageLayout => {
    const layout = layouts.get(own) ?? storageLayoutOf(convention.format as ForeignFormat, own, "/from");
    layouts.set(own, layout);
    return layout;
  };
  const betasOf = (own: OptimizerDefinition): readonly [number, number] | undefined =>
    layoutOf(own).isCorrected ? requireBetas(convention, "/from") : undefined;
  betasOf(optimizer);
  const { drafts, count } = yield* readFile(file, convention, optimizer, layoutOf);
  const state = emptyState(optimizer, layouts.keys());
  for (const [name, { optimizer, slots, scalars }] of drafts) {
    const betas = betasOf(optimizer);
    const step = betas ? stepFromWeights(name, scalars, betas, convention.step) : (scalars.get(STEP) ?? count ?? convention.step);
    if (step === undefined) throw missingStepError("the count of steps, which the file does not have", name);
    const scalarSlots = [...scalars].filter(([slot]) => slot in (optimizer.scalarSlots ?? {}));
    state.parameters.set(name, { optimizer, step, slots, scalars: Object.fromEntries(scalarSlots) });
    if (state.parameters.size % ITEMS_PER_YIELD === 0) yield;
  }
  let read = 0;
  const corrected = new Map<string, ParameterState>();
  for (const [name, parameter] of state.parameters) {
    const { optimizer, slots } = parameter;
    const layout = layoutOf(optimizer);
    if (layout.isCorrected) corrected.set(name, parameter);
    for (const [slot, tensor] of slots) if (tensor.dtype !== "F32" && tensor.dtype !== "F64") slots.set(slot, yield* widen(lease, tensor));
    for (const [slot, tensor] of slots) if (layout.negated.includes(slot)) yield* rescale(lease, tensor, -1, false);
    if (++read % ITEMS_PER_YIELD === 0) yield;
  }
  return { state, lost: corrected.size > 0 ? yield* removeBiasCorrection(corrected, drafts, requireBetas(convention, "/from"), lease) : [] };
}

const missingStepError = (expected: string, name: string): StepdError =>
  StepdError.mismatch("INVALID_PARAMS", "/from/step", expected, `none for ${firstNames([name])}`, [name]);

function* readFile(
  file: Buffer,
  convention: Convention,
  base: OptimizerDefinition,
  layoutOf: (optimizer: OptimizerDefinition) => StorageLayout,
): Task<FileContents> {
  const drafts = new Map<string, ParameterDraft>();
  let count: number | undefined;
  const { metadata, tensors } = yield* readSafetensorsInTurns(file, FIELD, "STATE_CORRUPT");
  for (const [index, info] of tensors.entries()) {
    if (index % ITEMS_PER_YIELD === ITEMS_PER_YIELD - 1) yield;
    if (layoutOf(base).isCountShared && info.name === COUNT) {
      count = readScalar(file, info, ["I32", "I64"], true);
      continue;
    }
    const key = readKey(info.name, convention);
    const optimizer = key && metadata.has(OPTIMIZER_KEY + key.parameter) ? readOptimizer(metadata, OPTIMIZER_KEY + key.parameter) : base;
    const { slots, scalars } = layoutOf(optimizer);
    // A torch file may have a step count even for an optimizer that stores none, so the step count is always read.
    const dtypes =
      key && (key.slot === STEP && convention.format === "torch" ? ["F32", "F64", "I64"] : Object.hasOwn(scalars, key.slot) ? scalars[key.slot] : undefined);
    const slot = key && [...slots].find(([, foreign]) => foreign === key.slot)?.[0];
    if (!key || (slot === undefined && !dtypes)) {
      const known = [...slots.values(), ...Object.keys(scalars)];
      throw corrupt(`keys ${keyForm(convention)} with a slot among ${known.join(", ")}`, JSON.stringify(info.name));
    }
    const draft = drafts.get(key.parameter) ?? { optimizer, slots: new Map(), scalars: new Map() };
    drafts.set(key.parameter, draft);
    if (dtypes) draft.scalars.set(key.slot, readScalar(file, info, dtypes, key.slot === STEP));
    else if (slot !== undefined) draft.slots.set(slot, slotTensor(file, info, key.parameter));
  }
  return { drafts, count };
}

const slotTensor = (file: Buffer, { offset, ...info }: TensorInfo, name: string): ArenaTensor => {
  if (!(COMPUTED as readonly string[]).includes(info.dtype)) {
    throw StepdError.mismatch("UNSUPPORTED_DTYPE", `${FIELD}/${pointerEscape(info.name)}`, `dtype ${COMPUTED.join(", ")}`, info.dtype, [info.name]);
  }
  return { ...info, name, address: file.byteOffset + offset };
};

/** Reads a scalar of the file. A step count must be a whole number. */
const readScalar = (file: Buffer, { name, dtype, shape, offset }: TensorInfo, dtypes: readonly string[], isCount: boolean): number => {
  if (!dtypes.includes(dtype) || shape.length > 0) throw corrupt(`${name} to be a scalar in ${dtypes.join(" or ")}`, `${dtype} [${shape}]`);
  const value = {
    F32: () => file.readFloatLE(offset),
    F64: () => file.readDoubleLE(offset),
    I32: () => file.readInt32LE(offset),
    I64: () => Number(file.readBigInt64LE(offset)),
  }[dtype as "F32" | "F64" | "I32" | "I64"]();
  if (isCount && !(Number.isSafeInteger(value) && value >= 0)) throw corrupt(`${name} to be a whole number from 0 to 2^53 - 1`, String(value));
  return value;
};

const weightsOf = (name: string, scalars: ParameterDraft["scalars"]): readonly [number, number] => {
  const [first, second] = WEIGHTS.map((key) => {
    const weight = scalars.get(key);
    if (weight === undefined) throw corrupt(`${key} beside the moments of ${firstNames([name])}`, "none");
    if (!(weight === 0 || (weight >= 1 && Number.isFinite(weight)))) throw corrupt(`${key} of ${firstNames([name])} to be 0 or at least 1`, String(weight));
    return weight;
  }) as [number, number];
  return [first, second];
};

/** Returns the step count that a parameter's weights imply, or `given` if the weights have stopped growing. */
const stepFromWeights = (name: string, scalars: ParameterDraft["scalars"], betas: readonly [number, number], given: number | undefined): number => {
  const weights = weightsOf(name, scalars);
  const implied = stepsOf(weights, betas);
  const steps = implied ?? given;
  if (steps === undefined) throw missingStepError("the count of steps, because the weights have stopped growing and no longer tell it", name);
  weights.forEach((weight, index) => {
    const beta = betas[index] as number;
    if (isWeightOf(weight, beta, steps)) return;
    throw StepdError.mismatch(
      "STATE_MISMATCH",
      implied === undefined ? "/from/step" : "/from/betas",
      `${WEIGHTS[index]} of ${firstNames([name])} to be ${weightAt(beta, steps)}, as after ${steps} steps with beta ${beta}`,
      String(weight),
      [name],
    );
  });
  return steps;
};

/** Removes the bias correction from the moments, in place. Returns the losses as sentences. */
function* removeBiasCorrection(
  parameters: ReadonlyMap<string, ParameterState>,
  drafts: FileContents["drafts"],
  betas: readonly [number, number],
  lease: Lease,
): Task<readonly string[]> {
  let read = 0;
  let changed = 0;
  let elements = 0;
  const changedWeights: string[] = [];
  for (const [name, { step, slots }] of parameters) {
    if (++read % ITEMS_PER_YIELD === 0) yield;
    const weights = weightsOf(name, drafts.get(name)?.scalars ?? new Map());
    if (weights.some((weight, index) => weight !== weightAt(betas[index] as number, step))) changedWeights.push(name);
    for (const [index, slot] of ["exp_avg", "exp_avg_sq"].entries()) {
      const tensor = slots.get(slot);
      if (!tensor || step === 0) continue;
      changed += yield* rescale(lease, tensor, (weights[index] as number) * (1 - (betas[index] as number)), false);
      elements += tensor.elements;
    }
  }
  return [
    ...(changed > 0 ? [`stepd keeps raw moments: ${changed} of ${elements} values are rounded so that the way back gives another last bit`] : []),
    ...(changedWeights.length > 0
      ? [`stepd keeps steps in place of the weights, which the way back computes anew, with other last bits for ${firstNames(changedWeights)}`]
      : []),
  ];
}
