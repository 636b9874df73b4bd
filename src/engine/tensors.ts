/** Tensors of a request: names, shapes and addresses in the arena, out of a safetensors blob or of a map of numbers. */
import type { Lease } from "../arena/arena.ts";
import { bytesOf, COMPUTED, elementsOf, isCountable, readElement, writeElement } from "../codec/dtype.ts";
import { Parts } from "../codec/parts.ts";
import { readSafetensors, type TensorInfo, writeHeader } from "../codec/safetensors.ts";
import { describe, type ErrorName, pointerEscape, StepdError } from "../errors/errors.ts";
import type { PlainTensor } from "../generated/wire.gen.ts";

const SUPPORTED: readonly string[] = COMPUTED;

/** Tensors of one call. Each costs about 20 us of the main thread, on which others wait (measured). */
const MAX_TENSORS = 65536;

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

export interface TensorSet {
  readonly tensors: ReadonlyMap<string, Tensor>;
  /** The tensors as they are now, in the form that they came in. */
  reply(): Parts | PlainTensors;
  /** Tensors of the same names, shapes and form in another dtype, in memory of their own that nothing is in yet. */
  inDtype(dtype: string): TensorSet;
}

/** The file of a blob in the arena: where it already is (MessagePack), or decoded from base64 (JSON). */
export const loadBlob = (blob: Uint8Array | string, field: string, code: ErrorName, lease: Lease): Buffer => {
  if (typeof blob !== "string") {
    if (blob.buffer === lease.bytes.buffer) return Buffer.from(blob.buffer, blob.byteOffset, blob.byteLength);
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

/** Loads a `Tensors` field. Throws what names the field: TENSORS_CORRUPT, UNSUPPORTED_DTYPE, TENSOR_MISMATCH, INVALID_PARAMS, PAYLOAD_TOO_LARGE. */
export const loadTensors = (tensors: Tensors, field: string, lease: Lease): TensorSet => {
  if (typeof tensors === "string" || tensors instanceof Uint8Array) return loadFile(loadBlob(tensors, field, "TENSORS_CORRUPT", lease), field, lease);
  return loadPlain(tensors, field, lease);
};

const requireFew = (count: number, field: string): void => {
  if (count > MAX_TENSORS) throw StepdError.mismatch("PAYLOAD_TOO_LARGE", field, `at most ${MAX_TENSORS} tensors in one call`, `${count}`);
};

const requireSupported = (dtype: string, field: string, name: string): void => {
  if (SUPPORTED.includes(dtype)) return;
  throw StepdError.mismatch("UNSUPPORTED_DTYPE", `${field}/${pointerEscape(name)}`, `dtype ${SUPPORTED.join(", ")}`, dtype, [name]);
};

const loadFile = (file: Buffer, field: string, lease: Lease): TensorSet => {
  const { metadata, tensors } = readSafetensors(file, field, "TENSORS_CORRUPT");
  requireFew(tensors.length, field);
  for (const { name, dtype } of tensors) requireSupported(dtype, field, name);
  return {
    tensors: new Map(
      tensors.map(({ name, dtype, shape, elements, bytes, offset }) => [name, { name, dtype, shape, elements, bytes, address: file.byteOffset + offset }]),
    ),
    reply: () => new Parts([file]),
    inDtype: (dtype) => newFile(Object.fromEntries(metadata), tensors, dtype, lease),
  };
};

/** A file of tensors in one dtype, in the order given. */
const newFile = (metadata: Readonly<Record<string, string>>, like: readonly TensorInfo[], dtype: string, lease: Lease): TensorSet => {
  const header = writeHeader(
    metadata,
    like.map(({ name, shape }) => ({ name, shape, dtype })),
  );
  const size = bytesOf(dtype) as number;
  const bytes = like.reduce((sum, { elements }) => sum + elements * size, header.length);
  const start = lease.alloc(bytes);
  lease.bytes.fill(header, start, start + header.length);
  return loadFile(lease.view(start, bytes), "", lease);
};

/** Throws INVALID_PARAMS for a shape that no safetensors file may have. */
export const requireCountable = (shape: readonly number[], field: string, name: string): void => {
  if (!isCountable(shape)) throw StepdError.mismatch("INVALID_PARAMS", field, "sizes whose product is at most 2^53 - 1", `[${shape}]`, [name]);
};

const SPECIAL: Readonly<Record<string, number>> = { NaN: Number.NaN, Infinity: Number.POSITIVE_INFINITY, "-Infinity": Number.NEGATIVE_INFINITY };

const loadPlain = (plain: PlainTensors, field: string, lease: Lease): TensorSet => {
  const tensors = new Map<string, Tensor>();
  requireFew(Object.keys(plain).length, field);
  for (const [name, { shape, dtype = "F32", values }] of Object.entries(plain)) {
    const at = `${field}/${pointerEscape(name)}`;
    requireSupported(dtype, field, name);
    requireCountable(shape, `${at}/shape`, name);
    const elements = elementsOf(shape);
    if (elements !== values.length) {
      throw StepdError.mismatch("TENSOR_MISMATCH", `${at}/values`, `${elements} values for shape [${shape}]`, `${values.length}`, [name]);
    }
    const bytes = elements * (bytesOf(dtype) as number);
    const address = lease.alloc(bytes);
    const size = bytes / (elements || 1);
    values.forEach((value, index) => {
      const number = typeof value === "string" ? (SPECIAL[value] as number) : value;
      writeElement(lease.bytes, address + size * index, dtype, number);
      if (Number.isFinite(number) && !Number.isFinite(readElement(lease.bytes, address + size * index, dtype))) {
        throw StepdError.mismatch("INVALID_PARAMS", `${at}/values/${index}`, `a number within the range of ${dtype}`, String(value), [name]);
      }
    });
    tensors.set(name, { name, dtype, shape, elements, bytes, address });
  }
  return plainSet(tensors, lease);
};

const plainSet = (tensors: ReadonlyMap<string, Tensor>, lease: Lease): TensorSet => {
  const inDtype = ({ elements, ...tensor }: Tensor, dtype: string): Tensor => {
    const bytes = elements * (bytesOf(dtype) as number);
    return { ...tensor, elements, dtype, bytes, address: lease.alloc(bytes) };
  };
  return {
    tensors,
    inDtype: (dtype) => plainSet(new Map([...tensors].map(([name, tensor]) => [name, inDtype(tensor, dtype)])), lease),
    reply: () => Object.fromEntries([...tensors.values()].map((tensor) => [tensor.name, toPlain(tensor, lease)])),
  };
};

const toPlain = ({ dtype, shape, elements, bytes, address }: Tensor, lease: Lease): PlainTensor => {
  const size = bytes / (elements || 1);
  return {
    shape: [...shape],
    dtype: dtype as NonNullable<PlainTensor["dtype"]>,
    values: Array.from({ length: elements }, (_, index) => {
      const value = readElement(lease.bytes, address + size * index, dtype);
      return Number.isFinite(value) ? value : (String(value) as "NaN" | "Infinity" | "-Infinity");
    }),
  };
};

export const isSameShape = (a: readonly number[], b: readonly number[]): boolean => a === b || String(a) === String(b);

/** Checks that each gradient has a parameter of its name and shape. Its dtype may be another. */
export const requireMatch = (params: TensorSet, grads: TensorSet): void => {
  for (const [name, grad] of grads.tensors) {
    const param = params.tensors.get(name);
    if (param && isSameShape(grad.shape, param.shape)) continue;
    const field = `/grads/${pointerEscape(name)}`;
    if (!param) throw StepdError.mismatch("TENSOR_MISMATCH", field, "the name of a parameter", `${JSON.stringify(name)}, which params does not have`, [name]);
    throw StepdError.mismatch("TENSOR_MISMATCH", field, `shape [${param.shape}] as in params`, `[${grad.shape}]`, [name]);
  }
};
