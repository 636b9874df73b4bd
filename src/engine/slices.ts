/** Slices of tensors: a call may have a part of a larger tensor, so that clients can send a large tensor in several calls. */
import type { TensorInfo } from "../codec/safetensors.ts";
import { CHEAP_ITEMS_PER_YIELD, type Task } from "../codec/turns.ts";
import { pointerEscape, StepdError } from "../errors/errors.ts";
import type { Slices } from "../generated/wire.gen.ts";

/** The offset of each slice in its whole tensor, in elements, by name. */
export type SliceOffsets = ReadonlyMap<string, number>;

/** Matches the slices of a call with its tensors. Throws INVALID_PARAMS for an unknown name, and TENSOR_MISMATCH unless a slice is flat. */
export function* sliceOffsets(slices: Slices | undefined, tensors: readonly TensorInfo[], field: string): Task<SliceOffsets> {
  const entries = Object.entries(slices ?? {});
  if (entries.length === 0) return new Map();
  const offsets = new Map(entries.map(([name, { offset }]) => [name, offset]));
  let found = 0;
  for (const [index, { name, shape }] of tensors.entries()) {
    if (index % CHEAP_ITEMS_PER_YIELD === CHEAP_ITEMS_PER_YIELD - 1) yield;
    if (!offsets.has(name)) continue;
    found++;
    if (shape.length !== 1) throw StepdError.mismatch("TENSOR_MISMATCH", `${field}/${pointerEscape(name)}`, "shape [n] of a slice", `[${shape}]`, [name]);
  }
  if (found < offsets.size) {
    const names = new Set(tensors.map(({ name }) => name));
    const [unknown = ""] = [...offsets.keys()].filter((name) => !names.has(name));
    const expected = `the name of a tensor in ${field.slice(1)}`;
    throw StepdError.mismatch("INVALID_PARAMS", `/slices/${pointerEscape(unknown)}`, expected, JSON.stringify(unknown), [unknown]);
  }
  return offsets;
}
