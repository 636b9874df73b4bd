/** What a step costs, from shapes and dtypes alone: bytes in and out, state, arena, and into how many calls to split it. */
import { bytesOf, elementsOf } from "../codec/dtype.ts";
import { canonicalOrder, type TensorDescription, writeHeader } from "../codec/safetensors.ts";
import { pointerEscape, StepdError } from "../errors/errors.ts";
import { groupFinder } from "../planner/groups.ts";
import type { Plan } from "./plan.ts";
import { STEP, slotDtype, stateHeader } from "./state.ts";
import { wantedSlots } from "./step.ts";
import { requireCountable } from "./tensors.ts";

/** A call beside its blobs, and the sums and job of its step: an upper bound. */
const OVERHEAD_BYTES = 65536;
const OVERHEAD_BYTES_PER_TENSOR = 1024;

/** Calls are suggested of at most this share of the arena, so that several fit beside each other. */
const SHARE = 8;

/** And of at most this size: larger ones do not go faster, and cost more to repeat. */
const LARGEST_CALL = 256 * 2 ** 20;

export interface EstimateInput {
  readonly plan: Plan;
  readonly tensors: Readonly<Record<string, { readonly shape: readonly number[]; readonly dtype?: string }>>;
  /** Dtype of all gradients; that of each parameter where it is not given. */
  readonly gradDtype: string | undefined;
  readonly masterWeights: boolean;
  readonly capacity: number;
}

export interface Estimate {
  /** Elements of all parameters. */
  readonly parameters: number;
  readonly bytes_in: number;
  readonly bytes_out: number;
  readonly state_bytes: number;
  /** Memory of the arena that the step holds as one call. */
  readonly arena_bytes: number;
  readonly fits: boolean;
  /** How many calls are suggested; 0 where a tensor alone does not fit. */
  readonly requests: number;
  /** Tensors that alone are more than this server's arena. */
  readonly too_large: readonly string[];
}

interface Cost {
  readonly name: string;
  readonly bytesIn: number;
  readonly bytesOut: number;
  readonly state: number;
  readonly arena: number;
}

export const estimate = ({ plan, tensors, gradDtype, masterWeights, capacity }: EstimateInput): Estimate => {
  const params = Object.entries(tensors).map(([name, { shape, dtype = "F32" }]) => ({ name, shape, dtype }));
  for (const { name, shape } of params) requireCountable(shape, `/tensors/${pointerEscape(name)}/shape`, name);
  const grads = params.map(({ dtype, ...param }) => ({ ...param, dtype: gradDtype ?? dtype }));
  const find = groupFinder(plan.groups);
  const entries = params.map((param) => stateEntries(plan, find(param.name), param, masterWeights));
  const state = canonicalOrder(entries.flat());
  const costs = params.map((param, index) => costOf(param, grads[index] as TensorDescription, entries[index] ?? []));
  const total = (key: "bytesIn" | "bytesOut" | "state" | "arena"): number => costs.reduce((sum, cost) => sum + cost[key], 0);
  const stateHeaderBytes = stateHeader(plan.optimizer, state).length;
  const paramHeaderBytes = writeHeader({}, params).length;
  const headers = 2 * paramHeaderBytes + stateHeaderBytes;
  const arena = total("arena") + headers + OVERHEAD_BYTES;
  if (arena > Number.MAX_SAFE_INTEGER) throw StepdError.mismatch("INVALID_PARAMS", "/tensors", "at most 2^53 - 1 bytes in one step", `${arena}`);
  const tooLarge = costs.filter((cost) => cost.arena + OVERHEAD_BYTES > capacity).map(({ name }) => name);
  return {
    parameters: params.reduce((sum, { shape }) => sum + elementsOf(shape), 0),
    bytes_in: total("bytesIn") + headers,
    bytes_out: total("bytesOut") + paramHeaderBytes + stateHeaderBytes,
    state_bytes: total("state") + stateHeaderBytes,
    arena_bytes: arena,
    fits: arena <= capacity,
    requests: tooLarge.length > 0 ? 0 : requestsFor(costs, Math.min(capacity / SHARE, LARGEST_CALL)),
    too_large: tooLarge,
  };
};

const bytes = ({ shape, dtype }: TensorDescription): number => elementsOf(shape) * (bytesOf(dtype) as number);

const stateEntries = (plan: Plan, group: number, param: TensorDescription, masterWeights: boolean): readonly TensorDescription[] => {
  const { values } = plan.at(plan.groups[group]?.values ?? plan.base, 0);
  const { slots } = wantedSlots(plan.optimizer, values, param, masterWeights);
  return [
    { name: `${STEP}/${param.name}`, dtype: "I64", shape: [] },
    ...Object.keys(plan.optimizer.scalarSlots ?? {}).map((slot) => ({ name: `${slot}/${param.name}`, dtype: "F64", shape: [] })),
    ...slots.map((slot) => ({ name: `${slot}/${param.name}`, dtype: slotDtype(param.dtype), shape: param.shape })),
  ];
};

const costOf = (param: TensorDescription, grad: TensorDescription, entries: readonly TensorDescription[]): Cost => {
  const state = entries.reduce((sum, entry) => sum + bytes(entry), 0);
  // A gradient in another dtype than the arithmetic's may need memory of its own.
  const widened = grad.dtype === slotDtype(param.dtype) ? 0 : bytes({ ...grad, dtype: slotDtype(param.dtype) });
  const bytesIn = bytes(param) + bytes(grad) + state;
  return { name: param.name, bytesIn, bytesOut: bytes(param) + state, state, arena: bytesIn + widened + OVERHEAD_BYTES_PER_TENSOR };
};

/** Packs tensors in their order into calls of at most `limit` bytes; a larger tensor goes alone. */
const requestsFor = (costs: readonly Cost[], limit: number): number => {
  let requests = 0;
  let room = 0;
  for (const { arena } of costs) {
    if (arena <= room) {
      room -= arena;
      continue;
    }
    requests++;
    room = limit - arena;
  }
  return requests;
};
