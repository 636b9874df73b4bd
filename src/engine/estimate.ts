/** Estimates the cost of a step from shapes and dtypes alone: bytes sent, received, in the state and in the arena, and the number of calls. */
import { bytesOf, elementsOf } from "../codec/dtype.ts";
import { type Safetensors, type TensorDescription, writeHeaderInTurns } from "../codec/safetensors.ts";
import { mapped, type Task } from "../codec/turns.ts";
import { pointerEscape, StepdError } from "../errors/errors.ts";
import type { PlanParams } from "../generated/wire.gen.ts";
import { SHARD_ELEMENTS } from "../pool/pool.ts";
import { compile, needsWhole, type StepTarget } from "./layout.ts";
import { match } from "./match.ts";
import { codesOf, SCALAR_BYTES, scalarSlotsOf, scaleCount, slotShape } from "./state.ts";
import { requireCountable, withOffsets } from "./tensors.ts";

// These upper bounds cover everything in the arena except tensors, such as the encoded job.
const OVERHEAD_BYTES = 65536;
const OVERHEAD_BYTES_PER_TENSOR = 1024;

/** A suggested call takes at most 1/8 of the arena, so that several calls fit at once. */
const CALLS_PER_ARENA = 8;

/** A suggested call has at most this many bytes. Larger calls are not faster, and they cost more to repeat. */
const MAX_CALL_BYTES = 256 * 2 ** 20;

export interface Estimate {
  /** The number of elements of all parameters. */
  readonly parameters: number;
  readonly bytes_in: number;
  readonly bytes_out: number;
  readonly state_bytes: number;
  /** A single call for the whole step takes this many bytes of the arena. */
  readonly arena_bytes: number;
  /** The multiplications and additions in matrix products. */
  readonly matrix_flops: number;
  readonly fits: boolean;
  /** The suggested number of calls. It is 0 if one tensor alone does not fit. */
  readonly requests: number;
  /** The names of tensors that do not fit into this server's arena even alone, and that their optimizer needs whole. */
  readonly too_large: readonly string[];
}

/** Estimates the cost from the layout of a first step. The new state has the same size after every later step. */
export function* estimate({ tensors, grad_dtype: gradDtype, ...options }: PlanParams, kernel: (name: string) => number, capacity: number): Task<Estimate> {
  const names = Object.keys(tensors);
  yield;
  const described = yield* mapped(names, (name) => {
    const { shape, dtype = "F32" } = tensors[name] as PlanParams["tensors"][string];
    requireCountable(shape, `/tensors/${pointerEscape(name)}/shape`, name);
    return { name, shape, dtype };
  });
  const params = yield* fileOf(described);
  const grads = gradDtype === undefined ? params : yield* fileOf(params.tensors.map(({ name, shape }) => ({ name, shape, dtype: gradDtype })));
  // A step that measures its gradients takes the most memory. These options make the step measure them.
  const layout = yield* compile({ ...options, non_finite: "skip", stats: "tensor" }, yield* match({ params, grads, state: undefined }), kernel);
  const costs = yield* mapped(layout.targets, costOf);
  const total = (key: keyof Cost): number => costs.reduce((sum, cost) => sum + cost[key], 0);
  const paramHeader = params.header?.length ?? 0;
  const stateBytes = total("state") + (layout.output?.header.length ?? 0);
  const bytesIn = total("param") + total("grad") + paramHeader + (grads.header?.length ?? 0) + stateBytes;
  const arena = bytesIn + layout.workBytes + OVERHEAD_BYTES + OVERHEAD_BYTES_PER_TENSOR * costs.length;
  if (arena > Number.MAX_SAFE_INTEGER) throw StepdError.mismatch("INVALID_PARAMS", "/tensors", "at most 2^53 - 1 bytes in one step", `${arena}`);
  const isLarge = (cost: Cost): boolean => arenaOf(cost) + OVERHEAD_BYTES > capacity;
  const tooLarge = layout.targets
    .filter(({ recipe: { optimizer, values } }, index) => isLarge(costs[index] as Cost) && needsWhole(optimizer, values))
    .map(({ name }) => name);
  const pieces = layout.targets.map(({ elements }, index): Pieces => {
    const bytes = arenaOf(costs[index] as Cost);
    if (!isLarge(costs[index] as Cost)) return { count: 1, bytes };
    const count = Math.ceil(elements / SHARD_ELEMENTS);
    return { count, bytes: Math.ceil(bytes / count) + OVERHEAD_BYTES_PER_TENSOR };
  });
  return {
    parameters: layout.targets.reduce((sum, { elements }) => sum + elements, 0),
    bytes_in: bytesIn,
    bytes_out: total("param") + paramHeader + stateBytes,
    state_bytes: stateBytes,
    arena_bytes: arena,
    matrix_flops: layout.targets.reduce((sum, { recipe: { optimizer, values, shape } }) => sum + (optimizer.matrices?.flops(values, shape) ?? 0), 0),
    fits: arena <= capacity,
    requests: tooLarge.length > 0 ? 0 : requestsFor(pieces, Math.min(capacity / CALLS_PER_ARENA, MAX_CALL_BYTES)),
    too_large: tooLarge,
  };
}

function* fileOf(described: readonly TensorDescription[]): Task<Safetensors> {
  const header = yield* writeHeaderInTurns({}, described);
  yield;
  return { header, metadata: new Map(), tensors: yield* withOffsets(described) };
}

/** The bytes that one tensor needs. */
interface Cost {
  readonly param: number;
  readonly grad: number;
  readonly state: number;
  /** The bytes of the gradient's copy in the wider arithmetic dtype. */
  readonly wideGrad: number;
  /** The bytes of buffers in work memory. */
  readonly buffers: number;
}

const costOf = ({ elements, recipe: { param, grad, optimizer, shape, slots, wideGradStride, buffers } }: StepTarget): Cost => {
  const slotBytes = (slot: string, dtype: string): number => {
    const count = codesOf(slot) !== undefined ? scaleCount(elements) : optimizer.shapes ? elementsOf(slotShape(optimizer, slot, shape) ?? []) : elements;
    return count * (bytesOf(dtype) as number);
  };
  const bytes = (dtype: string): number => elements * (bytesOf(dtype) as number);
  return {
    param: bytes(param),
    grad: bytes(grad),
    state: (1 + scalarSlotsOf(optimizer).length) * SCALAR_BYTES + slots.reduce((sum, [slot, , dtype]) => sum + slotBytes(slot, dtype), 0),
    wideGrad: elements * wideGradStride,
    buffers: buffers.reduce((sum, size) => sum + size, 0),
  };
};

const arenaOf = ({ param, grad, state, wideGrad, buffers }: Cost): number => param + grad + state + wideGrad + buffers + OVERHEAD_BYTES_PER_TENSOR;

/** A tensor, or the shards of one that goes in slices. */
interface Pieces {
  readonly count: number;
  /** The bytes of one piece in the arena. */
  readonly bytes: number;
}

/** Packs pieces in name order into calls of at most `limit` bytes, and counts the calls. A larger piece gets its own call. */
const requestsFor = (pieces: readonly Pieces[], limit: number): number => {
  let requests = 0;
  let room = 0;
  for (const { count, bytes } of pieces) {
    const here = Math.min(count, Math.max(Math.floor(room / bytes), 0));
    room -= here * bytes;
    if (here === count) continue;
    const left = count - here;
    const perCall = Math.max(Math.floor(limit / bytes), 1);
    const calls = Math.ceil(left / perCall);
    requests += calls;
    room = limit - (left - (calls - 1) * perCall) * bytes;
  }
  return requests;
};
