/** The files of a step, by their headers: each gradient with its parameter and what the state has for it, whatever the options. */
import { compareCanonical, compareUtf8, type Safetensors, type TensorInfo } from "../codec/safetensors.ts";
import { sorted, TURN_ITEMS, TURN_PASSES, type Turns } from "../codec/turns.ts";
import { pointerEscape, StepdError } from "../errors/errors.ts";
import { MASTER_PARAM, type ParameterPlaces, readStateHeader, type StateHeader, slotDtype, stateHeader } from "./state.ts";
import { isSameShape } from "./tensors.ts";

export interface Headers {
  readonly params: Safetensors;
  readonly grads: Safetensors;
  readonly state: Safetensors | undefined;
}

/** A gradient, its parameter, and its places in the state. */
export interface Pair {
  readonly param: TensorInfo;
  readonly grad: TensorInfo;
  readonly places: ParameterPlaces | undefined;
  /** The same text for pairs of the same dtypes and slots. */
  readonly kind: string;
}

export interface Matched {
  readonly params: Safetensors;
  /** In the order of their names' bytes, so that nothing depends on the order in the request. */
  readonly pairs: readonly Pair[];
  readonly state: StateHeader | undefined;
  /** Parameters of the state that have no gradient, with the places of their steps. */
  readonly resting: readonly (readonly [name: string, offset: number])[];
  /** Whether the state's header is the one that stepd writes. */
  readonly isCanonical: boolean;
  /** A parameter with a master copy. */
  readonly master: string | undefined;
  /** Elements of the pairs' parameters by dtype. */
  readonly elements: Readonly<Record<string, number>>;
}

/** Throws TENSOR_MISMATCH, STATE_CORRUPT, STATE_MISMATCH. */
export function* match({ params, grads, state: file }: Headers): Turns<Matched> {
  const paramOf = new Map<string, TensorInfo>();
  for (const [index, info] of params.tensors.entries()) {
    paramOf.set(info.name, info);
    if (index % TURN_PASSES === TURN_PASSES - 1) yield;
  }
  const state = file && (yield* readStateHeader(file));
  const pairs: Pair[] = [];
  const elements: Record<string, number> = {};
  for (const grad of grads.tensors) {
    const { name, shape } = grad;
    const param = paramOf.get(name);
    const field = `/grads/${pointerEscape(name)}`;
    if (!param) throw StepdError.mismatch("TENSOR_MISMATCH", field, "the name of a parameter", `${JSON.stringify(name)}, which params does not have`, [name]);
    if (!isSameShape(shape, param.shape)) throw StepdError.mismatch("TENSOR_MISMATCH", field, `shape [${param.shape}] as in params`, `[${shape}]`, [name]);
    const places = state?.parameters.get(name);
    pairs.push({ param, grad, places, kind: `${param.dtype} ${grad.dtype} ${places ? [...places.slots.keys()].join(" ") : ""}` });
    elements[param.dtype] = (elements[param.dtype] ?? 0) + param.elements;
    if (pairs.length % TURN_ITEMS === 0) yield;
  }
  const stepped = new Set<string>();
  for (const [index, { param }] of pairs.entries()) {
    stepped.add(param.name);
    if (index % TURN_PASSES === TURN_PASSES - 1) yield;
  }
  const resting: [string, number][] = [];
  let master: string | undefined;
  let checked = 0;
  for (const [name, places] of state?.parameters ?? []) {
    requireFit(name, places, paramOf.get(name));
    if (++checked % TURN_ITEMS === 0) yield;
    if (places.slots.has(MASTER_PARAM)) master ??= name;
    if (!stepped.has(name)) resting.push([name, places.step as number]);
  }
  return {
    params,
    pairs: yield* sorted(pairs, (a, b) => compareUtf8(a.param.name, b.param.name)),
    state,
    resting,
    isCanonical: state !== undefined && file?.header?.equals(yield* stateHeader(state, yield* sorted(file.tensors, compareCanonical))) === true,
    master,
    elements,
  };
}

/** Checks that the slots of a parameter are of its shape. Throws STATE_MISMATCH. */
const requireFit = (name: string, { slots }: ParameterPlaces, param: TensorInfo | undefined): void => {
  const mismatch = (expected: string, found: string): StepdError => StepdError.mismatch("STATE_MISMATCH", "/state", expected, found, [name]);
  if (!param) throw mismatch("state of tensors that params has", `state of ${JSON.stringify(name)}`);
  const expected = slotDtype(param.dtype);
  if (slots.has(MASTER_PARAM) && expected === param.dtype) throw mismatch(`a BF16 or F16 parameter beside ${MASTER_PARAM}/${name}`, param.dtype);
  for (const [slot, { dtype, shape }] of slots) {
    if (dtype !== expected || !isSameShape(shape, param.shape)) {
      throw mismatch(`${slot}/${name} to be ${expected} [${param.shape}] for a parameter in ${param.dtype}`, `${dtype} [${shape}]`);
    }
  }
};

/** Bytes that it takes in memory, about. */
export const matchedBytes = ({ params, pairs, state }: Matched): number =>
  4096 + 400 * params.tensors.length + 400 * pairs.length + 800 * (state?.parameters.size ?? 0);
