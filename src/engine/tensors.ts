/** The tensors of a request as files in the arena: a safetensors blob in place, or plain numbers written there without a header. */
import type { Lease } from "../arena/arena.ts";
import { bytesOf, COMPUTED, elementsOf, isCountable, readElement, writeElement } from "../codec/dtype.ts";
import { type Mapping, mappingOf } from "../codec/members.ts";
import { Parts } from "../codec/parts.ts";
import { headerEnd, readSafetensorsInTurns, type Safetensors, type TensorDescription, type TensorInfo } from "../codec/safetensors.ts";
import { inTurns, mapped, TURN_ITEMS, TURN_PASSES, type Turns } from "../codec/turns.ts";
import { characters } from "../errors/characters.ts";
import { describe, type ErrorName, pointerEscape, StepdError } from "../errors/errors.ts";
import type { PlainTensor } from "../generated/wire.gen.ts";

const SUPPORTED: readonly string[] = COMPUTED;

/** The most tensors of one call. */
const MAX_TENSORS = 65536;

/** The most characters of a tensor's name, as in schemas/, because each name is compared with every pattern of a group. */
const MAX_NAME = 1024;

/** A tensor in the arena. */
export interface Tensor {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly elements: number;
  readonly bytes: number;
  /** The arena address of the tensor's bytes. */
  readonly address: number;
}

export type PlainTensors = Readonly<Record<string, PlainTensor>>;
export type Tensors = Uint8Array | string | PlainTensors;

/** The tensors of one field of a call, in the arena. */
export interface TensorFile {
  readonly bytes: Buffer;
  /** The tensors that were given as plain numbers. Undefined for a safetensors file, whose header describes its tensors. */
  readonly plain: readonly TensorInfo[] | undefined;
}

/** The heap weight of a header byte: the compiled layout of an entry takes as much memory as the parsed entry. */
const HEADER_WEIGHT = 2;

/** Loads a blob into the arena: it is already there (MessagePack) or is decoded from base64 (JSON). Reserves heap for its header before it is parsed. */
export function* loadBlob(blob: Uint8Array | string, field: string, code: ErrorName, lease: Lease): Turns<Buffer> {
  const file = typeof blob === "string" ? yield* readBase64(blob, field, code, lease) : blobInArena(blob, lease);
  const header = headerEnd(file);
  lease.heap.addHeader(header <= file.length ? (code === "TENSORS_CORRUPT" ? HEADER_WEIGHT : 1) * header : 0);
  return file;
}

const blobInArena = (blob: Uint8Array, lease: Lease): Buffer => {
  if (blob.buffer === lease.bytes.buffer) return Buffer.isBuffer(blob) ? blob : Buffer.from(blob.buffer, blob.byteOffset, blob.byteLength);
  const start = lease.alloc(blob.length);
  if (blob.length > 0) lease.bytes.fill(blob, start, start + blob.length);
  return lease.view(start, blob.length);
};

/** The decoded bytes of base64 between two yields: a multiple of 3, so that groups stay whole. */
const CHUNK_BYTES = 3 * 2 ** 18;

function* readBase64(blob: string, field: string, code: ErrorName, lease: Lease): Turns<Buffer> {
  const padding = blob.endsWith("==") ? 2 : blob.endsWith("=") ? 1 : 0;
  const length = (blob.length / 4) * 3 - padding;
  if (blob.length % 4 !== 0) throw StepdError.mismatch(code, field, "base64, whose length is a multiple of 4", `${blob.length} characters`);
  const file = lease.view(lease.alloc(length), length);
  for (let at = 0; at < length; at += CHUNK_BYTES) {
    const text = blob.slice((at / 3) * 4, ((at + CHUNK_BYTES) / 3) * 4);
    const end = at + file.write(text, at, "base64");
    // Encodes again and compares, because Node accepts other alphabets, truncates characters to a byte, and ignores excess bits.
    if (end !== Math.min(at + CHUNK_BYTES, length) || file.toString("base64", at, end) !== text) {
      throw StepdError.mismatch(code, field, "base64 (RFC 4648, 4)", `another text: ${describe(blob)}`);
    }
    if (end < length) yield;
  }
  return file;
}

/** Loads a `Tensors` field. Throws TENSORS_CORRUPT, UNSUPPORTED_DTYPE, TENSOR_MISMATCH, INVALID_PARAMS or PAYLOAD_TOO_LARGE naming the field. */
export const loadTensors = (tensors: Tensors, field: string, lease: Lease): TensorFile | Promise<TensorFile> =>
  inTurns(typeof tensors === "string" || tensors instanceof Uint8Array ? loadFile(tensors, field, lease) : loadPlain(tensors, field, lease));

function* loadFile(blob: Uint8Array | string, field: string, lease: Lease): Turns<TensorFile> {
  return { bytes: yield* loadBlob(blob, field, "TENSORS_CORRUPT", lease), plain: undefined };
}

/** Calls with more plain tensors are not cached, because building their key takes longer than matching them. */
const MAX_PLAIN_TENSORS = 4096;

/** The minimum bytes of a tensor's entry in a header. */
export const MIN_ENTRY_BYTES = 50;

/** A cache key: equal for two files only if they have the same tensors at the same offsets. Undefined if it would be longer than `maxLength`. */
export const keyOf = ({ bytes, plain }: TensorFile, maxLength: number): string | undefined => {
  if (plain && plain.length > MAX_PLAIN_TENSORS) return undefined;
  if (plain) return JSON.stringify(plain.map(({ name, dtype, shape }) => [name, dtype, shape]));
  const end = headerEnd(bytes);
  return end <= Math.min(maxLength, bytes.length) ? bytes.length + bytes.toString("latin1", 0, end) : undefined;
};

/** Reads the tensors' descriptions of a file. Throws as `loadTensors` does. */
export function* readTensors({ bytes, plain }: TensorFile, field: string): Turns<Safetensors> {
  if (plain) return { header: undefined, metadata: new Map(), tensors: plain };
  const file = yield* readSafetensorsInTurns(bytes, field, "TENSORS_CORRUPT");
  requireFewTensors(file.tensors.length, field);
  for (const [index, { name, dtype }] of file.tensors.entries()) {
    requireSupported(dtype, field, name);
    if (name.length > MAX_NAME && characters(name) > MAX_NAME) {
      throw StepdError.mismatch(
        "PAYLOAD_TOO_LARGE",
        `${field}/${pointerEscape(name)}`,
        `a name of at most ${MAX_NAME} characters`,
        `${characters(name)} characters`,
      );
    }
    if (index % TURN_PASSES === TURN_PASSES - 1) yield;
  }
  return file;
}

const requireFewTensors = (count: number, field: string): void => {
  if (count > MAX_TENSORS) throw StepdError.mismatch("PAYLOAD_TOO_LARGE", field, `at most ${MAX_TENSORS} tensors in one call`, `${count}`);
};

const requireSupported = (dtype: string, field: string, name: string): void => {
  if (SUPPORTED.includes(dtype)) return;
  throw StepdError.mismatch("UNSUPPORTED_DTYPE", `${field}/${pointerEscape(name)}`, `dtype ${SUPPORTED.join(", ")}`, dtype, [name]);
};

/** Assigns contiguous offsets to tensors, in order. */
export const withOffsets = (tensors: readonly TensorDescription[]): Turns<TensorInfo[]> => {
  let offset = 0;
  return mapped(tensors, ({ name, dtype, shape }) => {
    const elements = elementsOf(shape);
    const bytes = elements * (bytesOf(dtype) as number);
    offset += bytes;
    return { name, dtype, shape, elements, bytes, offset: offset - bytes };
  });
};

/** Throws INVALID_PARAMS for a shape with too many elements for a safetensors file. */
export const requireCountable = (shape: readonly number[], field: string, name: string): void => {
  if (!isCountable(shape)) throw StepdError.mismatch("INVALID_PARAMS", field, "sizes whose product is at most 2^53 - 1", `[${shape}]`, [name]);
};

const SPECIAL: Readonly<Record<string, number>> = { NaN: Number.NaN, Infinity: Number.POSITIVE_INFINITY, "-Infinity": Number.NEGATIVE_INFINITY };

/** The heap reserved per plain tensor, in bytes of a header. */
const BYTES_PER_PLAIN_TENSOR = 128;

/** Reserves heap for the descriptions of plain tensors, as `loadBlob` does for headers. */
export const countPlainTensors = (count: number, lease: Lease): void => lease.heap.addHeader(BYTES_PER_PLAIN_TENSOR * count);

/** The values written between two yields. */
const TURN_VALUES = 16384;

function* loadPlain(given: PlainTensors, field: string, lease: Lease): Turns<TensorFile> {
  const names = Object.keys(given);
  requireFewTensors(names.length, field);
  countPlainTensors(names.length, lease);
  yield;
  const described: TensorDescription[] = [];
  for (const name of names) {
    if (described.length % TURN_ITEMS === TURN_ITEMS - 1) yield;
    const { shape, dtype = "F32", values } = given[name] as PlainTensor;
    requireSupported(dtype, field, name);
    const at = `${field}/${pointerEscape(name)}`;
    requireCountable(shape, `${at}/shape`, name);
    const elements = elementsOf(shape);
    if (elements !== values.length) {
      throw StepdError.mismatch("TENSOR_MISMATCH", `${at}/values`, `${elements} values for shape [${shape}]`, `${values.length}`, [name]);
    }
    described.push({ name, dtype, shape });
  }
  const plain = yield* withOffsets(described);
  const length = plain.reduce((sum, { bytes }) => sum + bytes, 0);
  const bytes = length === 0 ? lease.view(0, 0) : lease.view(lease.alloc(length), length);
  let written = 0;
  for (const [place, { name, dtype, offset }] of plain.entries()) {
    if (place % TURN_PASSES === TURN_PASSES - 1) yield;
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

/** A file of tensors in the form of a reply. */
export type Reply = Parts | Mapping<PlainTensor>;

/** Returns the tensors in the form in which they were given: a blob, or plain numbers. */
export const replyOf = ({ bytes, plain }: TensorFile): Reply | Promise<Reply> => (plain ? inTurns(toPlain(plain, bytes)) : new Parts([bytes]));

function* toPlain(tensors: readonly TensorInfo[], file: Buffer): Turns<Mapping<PlainTensor>> {
  const longValuesOf = new Map<TensorInfo, PlainTensor["values"]>();
  for (const tensor of tensors) if (tensor.elements > TURN_VALUES) longValuesOf.set(tensor, yield* longValues(tensor, file));
  const entryOf = (tensor: TensorInfo): readonly [string, PlainTensor] => {
    const { name, dtype, shape, elements } = tensor;
    const values = longValuesOf.get(tensor) ?? valuesOf(tensor, file, 0, elements);
    return [name, { shape: [...shape], dtype: dtype as NonNullable<PlainTensor["dtype"]>, values }];
  };
  return mappingOf(tensors, entryOf, file.length > TURN_VALUES);
}

function* longValues(tensor: TensorInfo, file: Buffer): Turns<PlainTensor["values"]> {
  const values: Value[] = [];
  for (let from = 0; from < tensor.elements; from += TURN_VALUES) {
    for (const value of valuesOf(tensor, file, from, Math.min(from + TURN_VALUES, tensor.elements))) values.push(value);
    yield;
  }
  return values;
}

type Value = PlainTensor["values"][number];

/** Reads the values of a tensor from index `from` up to `to`. */
const valuesOf = ({ dtype, offset }: TensorInfo, file: Buffer, from: number, to: number): Value[] => {
  const size = bytesOf(dtype) as number;
  const values: Value[] = [];
  for (let index = from; index < to; index++) {
    const value = readElement(file, offset + size * index, dtype);
    values.push(Number.isFinite(value) ? value : (String(value) as Value));
  }
  return values;
};

export const isSameShape = (a: readonly number[], b: readonly number[]): boolean => a.length === b.length && a.every((size, index) => size === b[index]);
