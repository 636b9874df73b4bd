/** Matches each gradient with its parameter and with the parameter's entries in the state. The step's options have no influence. */
import { compareCanonical, compareUtf8, type Safetensors, type TensorInfo } from "../codec/safetensors.ts";
import { CHEAP_ITEMS_PER_YIELD, ITEMS_PER_YIELD, sorted, type Task } from "../codec/turns.ts";
import { pointerEscape, StepdError } from "../errors/errors.ts";
import {
  codeDtype,
  codesOf,
  isCoded,
  MASTER_PARAM,
  type ParameterEntries,
  readStateHeader,
  type StateHeader,
  slotDtype,
  slotShape,
  stateHeader,
} from "./state.ts";
import { isSameShape } from "./tensors.ts";

export interface StepHeaders {
  readonly params: Safetensors;
  readonly grads: Safetensors;
  readonly state: Safetensors | undefined;
}

/** A gradient with its parameter and the parameter's entries in the state. */
export interface Pair {
  readonly param: TensorInfo;
  readonly grad: TensorInfo;
  readonly stateEntries: ParameterEntries | undefined;
  /** The pair's dtypes and slots. Pairs with equal keys and equal hyperparameters share a recipe. */
  readonly recipeKey: string;
}

export interface Matched {
  readonly params: Safetensors;
  /** The pairs, sorted by the bytes of their names: the order in the request must not change the result. */
  readonly pairs: readonly Pair[];
  readonly state: StateHeader | undefined;
  /** The names and step-count offsets of resting parameters. A resting parameter has state but no gradient. */
  readonly resting: readonly (readonly [name: string, offset: number])[];
  /** True if the state's header equals, byte for byte, the header that stepd would write. */
  readonly isCanonical: boolean;
  /** The name of the first parameter with a master copy, if any has one. */
  readonly firstMaster: string | undefined;
}

/** Matches gradients, parameters and state entries. Throws TENSOR_MISMATCH, STATE_CORRUPT and STATE_MISMATCH. */
export function* match({ params, grads, state: file }: StepHeaders): Task<Matched> {
  const paramOf = new Map<string, TensorInfo>();
  for (const [index, info] of params.tensors.entries()) {
    paramOf.set(info.name, info);
    if (index % CHEAP_ITEMS_PER_YIELD === CHEAP_ITEMS_PER_YIELD - 1) yield;
  }
  const state = file && (yield* readStateHeader(file));
  const pairs: Pair[] = [];
  for (const grad of grads.tensors) {
    const { name, shape } = grad;
    const param = paramOf.get(name);
    const field = `/grads/${pointerEscape(name)}`;
    if (!param) throw StepdError.mismatch("TENSOR_MISMATCH", field, "the name of a parameter", `${JSON.stringify(name)}, which params does not have`, [name]);
    if (!isSameShape(shape, param.shape)) throw StepdError.mismatch("TENSOR_MISMATCH", field, `shape [${param.shape}] as in params`, `[${shape}]`, [name]);
    const stateEntries = state?.parameters.get(name);
    pairs.push({ param, grad, stateEntries, recipeKey: recipeKeyOf(param, grad, stateEntries) });
    if (pairs.length % ITEMS_PER_YIELD === 0) yield;
  }
  const stepped = new Set<string>();
  for (const [index, { param }] of pairs.entries()) {
    stepped.add(param.name);
    if (index % CHEAP_ITEMS_PER_YIELD === CHEAP_ITEMS_PER_YIELD - 1) yield;
  }
  const resting: [string, number][] = [];
  let firstMaster: string | undefined;
  let checked = 0;
  for (const [name, stateEntries] of state?.parameters ?? []) {
    requireMatchingSlots(name, stateEntries, paramOf.get(name));
    if (++checked % ITEMS_PER_YIELD === 0) yield;
    if (stateEntries.slots.has(MASTER_PARAM)) firstMaster ??= name;
    if (!stepped.has(name)) resting.push([name, stateEntries.step as number]);
  }
  return {
    params,
    pairs: yield* sorted(pairs, (a, b) => compareUtf8(a.param.name, b.param.name)),
    state,
    resting,
    isCanonical: state !== undefined && file?.header?.equals(yield* stateHeader(state, yield* sorted(file.tensors, compareCanonical))) === true,
    firstMaster,
  };
}

/** Builds the recipe key of a pair from its dtypes, its slots, and whether Q8 would store its moments as codes. */
const recipeKeyOf = (param: TensorInfo, grad: TensorInfo, stateEntries: ParameterEntries | undefined): string => {
  const slots = stateEntries ? [...stateEntries.slots].map(([slot, { dtype }]) => `${slot} ${dtype}`) : [];
  return [param.dtype, grad.dtype, isCoded(param.elements), ...slots].join(" ");
};

/** Checks that the slots of a parameter have the right shape and dtype. Throws STATE_MISMATCH. */
const requireMatchingSlots = (name: string, { optimizer, slots }: ParameterEntries, param: TensorInfo | undefined): void => {
  const mismatch = (expected: string, found: string): StepdError => StepdError.mismatch("STATE_MISMATCH", "/state", expected, found, [name]);
  if (!param) throw mismatch("state of tensors that params has", `state of ${JSON.stringify(name)}`);
  const expected = slotDtype(param.dtype);
  if (slots.has(MASTER_PARAM) && expected === param.dtype) throw mismatch(`a BF16 or F16 parameter beside ${MASTER_PARAM}/${name}`, param.dtype);
  for (const [slot, { dtype, shape }] of slots) {
    if (codesOf(slot) !== undefined) continue;
    const kind = optimizer.moments?.[slot];
    const dtypes = kind && expected === "F32" ? [expected, "BF16", codeDtype(kind)] : [expected];
    const expectedShape = slotShape(optimizer, slot, param.shape);
    if (!expectedShape) throw mismatch(`no slot ${slot} for a parameter of shape [${param.shape}]`, `${dtype} [${shape}]`);
    if (!dtypes.includes(dtype) || !isSameShape(shape, expectedShape)) {
      throw mismatch(`${slot}/${name} to be ${dtypes.join(" or ")} [${expectedShape}] for a parameter in ${param.dtype}`, `${dtype} [${shape}]`);
    }
  }
};

/** Estimates the heap size of matched headers, in bytes. */
export const matchedBytes = ({ params, pairs, state }: Matched): number =>
  4096 + 400 * params.tensors.length + 400 * pairs.length + 800 * (state?.parameters.size ?? 0);
