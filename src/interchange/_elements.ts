/** Loops over the elements of slots in JavaScript, with yields. These loops run too rarely for kernels. */
import type { Lease } from "../arena/arena.ts";
import { bytesOf, readElement } from "../codec/dtype.ts";
import type { Task } from "../codec/turns.ts";
import type { ArenaTensor } from "../engine/tensors.ts";

/** The loops yield after this many elements, about 4 ms. */
const ELEMENTS_PER_YIELD = 2 ** 18;

const F32_BYTES = 4;
const F64_BYTES = 8;

/** Calls `run` with consecutive ranges that cover all elements, and yields in between. */
function* inRanges(elements: number, run: (from: number, to: number) => void): Task<void> {
  for (let from = 0; from < elements; from += ELEMENTS_PER_YIELD) {
    if (from > 0) yield;
    run(from, Math.min(from + ELEMENTS_PER_YIELD, elements));
  }
}

/**
 * Multiplies or divides all elements of an F32 or F64 tensor in place, in float64, rounded once. Returns the number of elements that
 * the inverse operation would not restore exactly.
 */
export function* rescale(lease: Lease, { address, elements, bytes, dtype }: ArenaTensor, factor: number, isDivision: boolean): Task<number> {
  const view = new DataView(lease.bytes.buffer, lease.bytes.byteOffset + address, bytes);
  const run = dtype === "F64" ? rescaleF64 : rescaleF32;
  let changed = 0;
  yield* inRanges(elements, (from, to) => {
    changed += run(view, from, to, factor, isDivision);
  });
  return changed;
}

/** True if the inverse operation did not restore a value. NaN counts as restored. */
const isChanged = (before: number, restored: number): boolean => restored !== before && !Number.isNaN(before);

const rescaleF32 = (view: DataView, from: number, to: number, factor: number, isDivision: boolean): number => {
  let changed = 0;
  for (let at = from * F32_BYTES; at < to * F32_BYTES; at += F32_BYTES) {
    const before = view.getFloat32(at, true);
    const after = Math.fround(isDivision ? before / factor : before * factor);
    view.setFloat32(at, after, true);
    if (isChanged(before, Math.fround(isDivision ? after * factor : after / factor))) changed++;
  }
  return changed;
};

const rescaleF64 = (view: DataView, from: number, to: number, factor: number, isDivision: boolean): number => {
  let changed = 0;
  for (let at = from * F64_BYTES; at < to * F64_BYTES; at += F64_BYTES) {
    const before = view.getFloat64(at, true);
    const after = isDivision ? before / factor : before * factor;
    view.setFloat64(at, after, true);
    if (isChanged(before, isDivision ? after * factor : after / factor)) changed++;
  }
  return changed;
};

/** Copies a BF16 or F16 tensor to new memory as F32, which is exact. */
export function* widen(lease: Lease, tensor: ArenaTensor): Task<ArenaTensor> {
  const bytes = tensor.elements * F32_BYTES;
  const address = lease.alloc(bytes);
  const size = bytesOf(tensor.dtype) as number;
  yield* inRanges(tensor.elements, (from, to) => {
    for (let i = from; i < to; i++) lease.bytes.writeFloatLE(readElement(lease.bytes, tensor.address + i * size, tensor.dtype), address + i * F32_BYTES);
  });
  return { ...tensor, dtype: "F32", bytes, address };
}
