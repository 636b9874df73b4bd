/** Tensors of a request as files in the arena: a safetensors blob where it lies, or a map of numbers written there without a header. */
import type { Lease } from "../arena/arena.ts";
import { bytesOf, COMPUTED, elementsOf, isCountable, readElement, writeElement } from "../codec/dtype.ts";
import { Parts } from "../codec/parts.ts";
import { headerEnd, readSafetensorsInTurns, type Safetensors, type TensorInfo } from "../codec/safetensors.ts";
import { inTurns, TURN_ITEMS, type Turns } from "../codec/turns.ts";
import { describe, type ErrorName, pointerEscape, StepdError } from "../errors/errors.ts";
import type { PlainTensor } from "../generated/wire.gen.ts";

const SUPPORTED: readonly string[] = COMPUTED;

/** Tensors of one call. */
const MAX_TENSORS = 65536;

/** A tensor in the arena. */
export interface Tensor {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly elements: number;
  readonly bytes: number;
  /** Where the tensor's bytes are in the arena. */
  readonly address: number;
}

export type PlainTensors = Readonly<Record<string, PlainTensor>>;
export type Tensors = Uint8Array | string | PlainTensors;

/** A field of a call in the arena. */
export interface TensorFile {
  readonly bytes: Buffer;
  /** Undefined for a safetensors file, whose tensors its header describes. */
  readonly plain: readonly TensorInfo[] | undefined;
}

/** Bytes that a byte of a header of tensors counts as: what is compiled of an entry is as much as what is read of it. */
const TENSORS_SHARE = 2;

/** The file of a blob in the arena: where it already is (MessagePack), or decoded from base64 (JSON). Its header is counted before anybody reads it. */
export const loadBlob = (blob: Uint8Array | string, field: string, code: ErrorName, lease: Lease): Buffer => {
  const file = locateBlob(blob, field, code, lease);
  const header = headerEnd(file);
  lease.heap.addHeader(header <= file.length ? (code === "TENSORS_CORRUPT" ? TENSORS_SHARE : 1) * header : 0);
  return file;
};

const locateBlob = (blob: Uint8Array | string, field: string, code: ErrorName, lease: Lease): Buffer => {
  if (typeof blob !== "string") {
    if (blob.buffer === lease.bytes.buffer) return Buffer.isBuffer(blob) ? blob : Buffer.from(blob.buffer, blob.byteOffset, blob.byteLength);
    const start = lease.alloc(blob.length);
    if (blob.length > 0) lease.bytes.fill(blob, start, start + blob.length);
    return lease.view(start, blob.length);
  }
  const padding = blob.endsWith("==") ? 2 : blob.endsWith("=") ? 1 : 0;
  const bytes = (blob.length / 4) * 3 - padding;
  if (blob.length % 4 !== 0) throw StepdError.mismatch(code, field, "base64, whose length is a multiple of 4", `${blob.length} characters`);
  const start = lease.alloc(bytes);
  const written = lease.bytes.write(blob, start, bytes, "base64");
  const file = lease.view(start, bytes);
  if (written !== bytes || !isBase64(blob, file)) throw StepdError.mismatch(code, field, "base64 (RFC 4648, 4)", `another text: ${describe(blob)}`);
  return file;
};

/** A piece of this many bytes ends with a whole group of base64. */
const PIECE = 3 * 2 ** 18;

/** Whether a text is the base64 of these bytes. Node reads other alphabets, cuts characters to a byte, and ignores bits that are left over. */
const isBase64 = (text: string, bytes: Buffer): boolean => {
  for (let at = 0; at < bytes.length; at += PIECE) {
    if (!text.startsWith(bytes.toString("base64", at, Math.min(at + PIECE, bytes.length)), (at / 3) * 4)) return false;
  }
  return true;
};

/** Loads a `Tensors` field. Throws TENSORS_CORRUPT, UNSUPPORTED_DTYPE, TENSOR_MISMATCH, INVALID_PARAMS or PAYLOAD_TOO_LARGE naming the field. */
export const loadTensors = (tensors: Tensors, field: string, lease: Lease): TensorFile | Promise<TensorFile> =>
  typeof tensors === "string" || tensors instanceof Uint8Array
    ? { bytes: loadBlob(tensors, field, "TENSORS_CORRUPT", lease), plain: undefined }
    : inTurns(loadPlain(tensors, field, lease));

/** A text that two files share only if they have the same tensors in the same places; undefined where it were longer than `most`. */
export const keyOf = ({ bytes, plain }: TensorFile, most: number): string | undefined => {
  if (plain) return JSON.stringify(plain.map(({ name, dtype, shape }) => [name, dtype, shape]));
  const end = headerEnd(bytes);
  return end <= Math.min(most, bytes.length) ? bytes.length + bytes.toString("latin1", 0, end) : undefined;
};

/** The tensors of a file. Throws as loadTensors does. */
export function* readTensors({ bytes, plain }: TensorFile, field: string): Turns<Safetensors> {
  if (plain) return { header: undefined, metadata: new Map(), tensors: plain };
  const file = yield* readSafetensorsInTurns(bytes, field, "TENSORS_CORRUPT");
  requireFew(file.tensors.length, field);
  for (const { name, dtype } of file.tensors) requireSupported(dtype, field, name);
  return file;
}

const requireFew = (count: number, field: string): void => {
  if (count > MAX_TENSORS) throw StepdError.mismatch("PAYLOAD_TOO_LARGE", field, `at most ${MAX_TENSORS} tensors in one call`, `${count}`);
};

const requireSupported = (dtype: string, field: string, name: string): void => {
  if (SUPPORTED.includes(dtype)) return;
  throw StepdError.mismatch("UNSUPPORTED_DTYPE", `${field}/${pointerEscape(name)}`, `dtype ${SUPPORTED.join(", ")}`, dtype, [name]);
};

/** Descriptions of tensors that follow each other without gaps, with their places. */
export const inOrder = (tensors: Iterable<Pick<TensorInfo, "name" | "dtype" | "shape">>): readonly TensorInfo[] => {
  let offset = 0;
  return Array.from(tensors, ({ name, dtype, shape }) => {
    const elements = elementsOf(shape);
    const bytes = elements * (bytesOf(dtype) as number);
    offset += bytes;
    return { name, dtype, shape, elements, bytes, offset: offset - bytes };
  });
};

/** Throws INVALID_PARAMS for a shape that no safetensors file may have. */
export const requireCountable = (shape: readonly number[], field: string, name: string): void => {
  if (!isCountable(shape)) throw StepdError.mismatch("INVALID_PARAMS", field, "sizes whose product is at most 2^53 - 1", `[${shape}]`, [name]);
};

const SPECIAL: Readonly<Record<string, number>> = { NaN: Number.NaN, Infinity: Number.POSITIVE_INFINITY, "-Infinity": Number.NEGATIVE_INFINITY };

/** Bytes of a header that a tensor given by name counts as. */
const BYTES_PER_NAME = 128;

/** Counts what a call takes for tensors that it gives by name. Headers of blobs count by their length. */
export const countNames = (count: number, lease: Lease): void => lease.heap.addHeader(BYTES_PER_NAME * count);

/** Values that are written between two yields. */
const TURN_VALUES = 16384;

function* loadPlain(given: PlainTensors, field: string, lease: Lease): Turns<TensorFile> {
  const entries = Object.entries(given);
  requireFew(entries.length, field);
  countNames(entries.length, lease);
  for (const [place, [name, { shape, dtype = "F32", values }]] of entries.entries()) {
    if (place % TURN_ITEMS === TURN_ITEMS - 1) yield;
    requireSupported(dtype, field, name);
    const at = `${field}/${pointerEscape(name)}`;
    requireCountable(shape, `${at}/shape`, name);
    const elements = elementsOf(shape);
    if (elements !== values.length) {
      throw StepdError.mismatch("TENSOR_MISMATCH", `${at}/values`, `${elements} values for shape [${shape}]`, `${values.length}`, [name]);
    }
  }
  const plain = inOrder(entries.map(([name, { shape, dtype = "F32" }]) => ({ name, dtype, shape })));
  const length = plain.reduce((sum, { bytes }) => sum + bytes, 0);
  const bytes = length === 0 ? lease.view(0, 0) : lease.view(lease.alloc(length), length);
  let written = 0;
  for (const { name, dtype, offset } of plain) {
    const size = bytesOf(dtype) as number;
    for (const [index, value] of given[name]?.values.entries() ?? []) {
      if (++written % TURN_VALUES === 0) yield;
      const number = typeof value === "string" ? (SPECIAL[value] as number) : value;
      const at = offset + size * index;
      writeElement(bytes, at, dtype, number);
      if (Number.isFinite(number) && !Number.isFinite(readElement(bytes, at, dtype))) {
        const place = `${field}/${pointerEscape(name)}/values/${index}`;
        throw StepdError.mismatch("INVALID_PARAMS", place, `a number within the range of ${dtype}`, String(value), [name]);
      }
    }
  }
  return { bytes, plain };
}

/** The tensors of a file as they are now, in the form that they came in. */
export const replyOf = ({ bytes, plain }: TensorFile): Parts | PlainTensors | Promise<PlainTensors> =>
  plain ? inTurns(toPlain(plain, bytes)) : new Parts([bytes]);

function* toPlain(tensors: readonly TensorInfo[], file: Buffer): Turns<PlainTensors> {
  const plain: Record<string, PlainTensor> = {};
  let read = 0;
  for (const { name, dtype, shape, elements, offset } of tensors) {
    const size = bytesOf(dtype) as number;
    const values: PlainTensor["values"][number][] = [];
    for (let index = 0; index < elements; index++) {
      if (++read % TURN_VALUES === 0) yield;
      const value = readElement(file, offset + size * index, dtype);
      values.push(Number.isFinite(value) ? value : (String(value) as "NaN" | "Infinity" | "-Infinity"));
    }
    plain[name] = { shape: [...shape], dtype: dtype as NonNullable<PlainTensor["dtype"]>, values };
  }
  return plain;
}

export const isSameShape = (a: readonly number[], b: readonly number[]): boolean => a.length === b.length && a.every((size, index) => size === b[index]);
