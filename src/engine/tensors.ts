/** Loads a call's tensors into the arena. They arrive as a safetensors blob or as lists of numbers ("plain" tensors). */
import { type Lease, RetainedBlob } from "../arena/arena.ts";
import { bytesOf, COMPUTED, elementsOf, isCountable, readElement, writeElement } from "../codec/dtype.ts";
import { type Mapping, mappingOf } from "../codec/members.ts";
import { copyInTurns, Parts } from "../codec/parts.ts";
import {
  compareCanonical,
  headerEnd,
  readSafetensorsInTurns,
  type Safetensors,
  type TensorDescription,
  type TensorInfo,
  writeHeaderInTurns,
} from "../codec/safetensors.ts";
import { CHEAP_ITEMS_PER_YIELD, ITEMS_PER_YIELD, inTurns, mapped, sorted, type Task } from "../codec/turns.ts";
import { countCharacters } from "../errors/characters.ts";
import { describe, type ErrorName, pointerEscape, StepdError } from "../errors/errors.ts";
import type { PlainTensor } from "../generated/wire.gen.ts";

const SUPPORTED: readonly string[] = COMPUTED;

const MAX_TENSORS_PER_CALL = 65536;

/** A tensor's name has at most this many characters, as in schemas/, because each pattern of a group is tested against it. */
const MAX_NAME_LENGTH = 1024;

export interface ArenaTensor {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly elements: number;
  readonly bytes: number;
  /** The tensor's bytes start at this arena address. */
  readonly address: number;
}

export type PlainTensors = Readonly<Record<string, PlainTensor>>;
export type BlobInput = Uint8Array | string | RetainedBlob;
export type Tensors = BlobInput | PlainTensors;

/** The tensors of one field of a call, such as `params`, in the arena. */
export interface TensorFile {
  readonly bytes: Buffer;
  /** The names, shapes and offsets of plain tensors. Undefined for a safetensors file, which has a header. */
  readonly plain: readonly TensorInfo[] | undefined;
}

/** The compiled layout of a header takes as much heap as the parsed header, so each byte of the header counts twice. */
const TENSOR_HEADER_WEIGHT = 2;

/**
 * Loads a blob into the arena, where the call may overwrite it. MessagePack blobs are already there; JSON blobs are decoded from
 * base64; a retained blob is copied. Reserves heap for the header.
 */
export function* loadBlob(blob: BlobInput, field: string, code: ErrorName, lease: Lease): Task<Buffer> {
  return reserveHeader(yield* readBlob(blob, field, code, lease), code, lease);
}

function* readBlob(blob: BlobInput, field: string, code: ErrorName, lease: Lease): Task<Buffer> {
  if (typeof blob === "string") return yield* readBase64(blob, field, code, lease);
  if (!(blob instanceof RetainedBlob)) return blobInArena(blob, lease);
  const { bytes } = blob;
  const copy = lease.view(lease.alloc(bytes.length), bytes.length);
  yield* copyInTurns(bytes, copy, 0);
  return copy;
}

/** Allocates the copy of a retained file, and copies only the header. Reserves heap for the header. */
export const beginCopy = (bytes: Buffer, code: ErrorName, lease: Lease): Buffer => {
  const copy = lease.view(lease.alloc(bytes.length), bytes.length);
  const end = Math.min(headerEnd(bytes), bytes.length);
  copy.fill(bytes.subarray(0, end), 0, end);
  return reserveHeader(copy, code, lease);
};

const reserveHeader = (file: Buffer, code: ErrorName, lease: Lease): Buffer => {
  const header = headerEnd(file);
  lease.meter.addHeader(header <= file.length ? (code === "TENSORS_CORRUPT" ? TENSOR_HEADER_WEIGHT : 1) * header : 0);
  return file;
};

const blobInArena = (blob: Uint8Array, lease: Lease): Buffer => {
  if (blob.buffer === lease.bytes.buffer) return Buffer.isBuffer(blob) ? blob : Buffer.from(blob.buffer, blob.byteOffset, blob.byteLength);
  const start = lease.alloc(blob.length);
  if (blob.length > 0) lease.bytes.fill(blob, start, start + blob.length);
  return lease.view(start, blob.length);
};

/** The base64 decoder yields after this many decoded bytes: a multiple of 3, which keeps groups whole. */
const CHUNK_BYTES = 3 * 2 ** 18;

function* readBase64(blob: string, field: string, code: ErrorName, lease: Lease): Task<Buffer> {
  const padding = blob.endsWith("==") ? 2 : blob.endsWith("=") ? 1 : 0;
  const length = (blob.length / 4) * 3 - padding;
  if (blob.length % 4 !== 0) throw StepdError.mismatch(code, field, "base64, whose length is a multiple of 4", `${blob.length} characters`);
  const file = lease.view(lease.alloc(length), length);
  for (let at = 0; at < length; at += CHUNK_BYTES) {
    const text = blob.slice((at / 3) * 4, ((at + CHUNK_BYTES) / 3) * 4);
    const end = at + file.write(text, at, "base64");
    // Node also accepts other alphabets and excess bits, and truncates characters to a byte. So the decoded bytes are encoded again and compared.
    if (end !== Math.min(at + CHUNK_BYTES, length) || file.toString("base64", at, end) !== text) {
      throw StepdError.mismatch(code, field, "base64 (RFC 4648, 4)", `another text: ${describe(blob)}`);
    }
    if (end < length) yield;
  }
  return file;
}

/** Loads a field of tensors. Throws TENSORS_CORRUPT, UNSUPPORTED_DTYPE, TENSOR_MISMATCH, INVALID_PARAMS or PAYLOAD_TOO_LARGE. */
export const loadTensors = (tensors: Tensors, field: string, lease: Lease): TensorFile | Promise<TensorFile> =>
  inTurns(isBlob(tensors) ? loadFile(tensors, field, lease) : loadPlain(tensors, field, lease));

const isBlob = (tensors: Tensors): tensors is BlobInput => typeof tensors === "string" || tensors instanceof Uint8Array || tensors instanceof RetainedBlob;

function* loadFile(blob: BlobInput, field: string, lease: Lease): Task<TensorFile> {
  return { bytes: yield* loadBlob(blob, field, "TENSORS_CORRUPT", lease), plain: undefined };
}

/** Layouts of more plain tensors are not cached, because building the key takes longer than matching the tensors. */
const MAX_CACHED_PLAIN_TENSORS = 4096;

/** A tensor's entry in a header has at least this many bytes. */
export const MIN_ENTRY_BYTES = 50;

/** Returns a cache key. Files with equal keys have the same tensors at the same offsets. Returns undefined for a key above `maxLength`. */
export const headerKey = ({ bytes, plain }: TensorFile, maxLength: number): string | undefined => {
  if (plain && plain.length > MAX_CACHED_PLAIN_TENSORS) return undefined;
  if (plain) return JSON.stringify(plain.map(({ name, dtype, shape }) => [name, dtype, shape]));
  const end = headerEnd(bytes);
  return end <= Math.min(maxLength, bytes.length) ? bytes.length + bytes.toString("latin1", 0, end) : undefined;
};

/** Reads the names, dtypes, shapes and offsets of a file's tensors. Throws the errors of `loadTensors`, also for a dtype outside `dtypes`. */
export function* readTensors({ bytes, plain }: TensorFile, field: string, dtypes = SUPPORTED): Task<Safetensors> {
  if (plain) return { header: undefined, metadata: new Map(), tensors: plain };
  const file = yield* readSafetensorsInTurns(bytes, field, "TENSORS_CORRUPT");
  requireFewTensors(file.tensors.length, field);
  for (const [index, { name, dtype }] of file.tensors.entries()) {
    requireSupported(dtype, field, name, dtypes);
    if (name.length > MAX_NAME_LENGTH && countCharacters(name) > MAX_NAME_LENGTH) {
      throw StepdError.mismatch(
        "PAYLOAD_TOO_LARGE",
        `${field}/${pointerEscape(name)}`,
        `a name of at most ${MAX_NAME_LENGTH} characters`,
        `${countCharacters(name)} characters`,
      );
    }
    if (index % CHEAP_ITEMS_PER_YIELD === CHEAP_ITEMS_PER_YIELD - 1) yield;
  }
  return file;
}

const requireFewTensors = (count: number, field: string): void => {
  if (count > MAX_TENSORS_PER_CALL) throw StepdError.mismatch("PAYLOAD_TOO_LARGE", field, `at most ${MAX_TENSORS_PER_CALL} tensors in one call`, `${count}`);
};

const requireSupported = (dtype: string, field: string, name: string, dtypes = SUPPORTED): void => {
  if (dtypes.includes(dtype)) return;
  throw StepdError.mismatch("UNSUPPORTED_DTYPE", `${field}/${pointerEscape(name)}`, `dtype ${dtypes.join(", ")}`, dtype, [name]);
};

/** Assigns an offset to each tensor: in order, without gaps. */
export const withOffsets = (tensors: readonly TensorDescription[]): Task<TensorInfo[]> => {
  let offset = 0;
  return mapped(tensors, ({ name, dtype, shape }) => {
    const elements = elementsOf(shape);
    const bytes = elements * (bytesOf(dtype) as number);
    offset += bytes;
    return { name, dtype, shape, elements, bytes, offset: offset - bytes };
  });
};

/** Throws INVALID_PARAMS if a shape has more elements than a safetensors file may have. */
export const requireCountable = (shape: readonly number[], field: string, name: string): void => {
  if (!isCountable(shape)) throw StepdError.mismatch("INVALID_PARAMS", field, "sizes whose product is at most 2^53 - 1", `[${shape}]`, [name]);
};

const NON_FINITE: Readonly<Record<string, number>> = { NaN: Number.NaN, Infinity: Number.POSITIVE_INFINITY, "-Infinity": Number.NEGATIVE_INFINITY };

/** A plain tensor's description takes as much heap as this many bytes of a header. */
const HEADER_BYTES_PER_PLAIN_TENSOR = 128;

/** Reserves heap for the descriptions of plain tensors. `loadBlob` does so for the header of a blob. */
export const reservePlainTensors = (count: number, lease: Lease): void => lease.meter.addHeader(HEADER_BYTES_PER_PLAIN_TENSOR * count);

/** Loops over plain values yield after this many values. */
const VALUES_PER_YIELD = 16384;

function* loadPlain(given: PlainTensors, field: string, lease: Lease): Task<TensorFile> {
  const names = Object.keys(given);
  requireFewTensors(names.length, field);
  reservePlainTensors(names.length, lease);
  yield;
  const described: TensorDescription[] = [];
  for (const name of names) {
    if (described.length % ITEMS_PER_YIELD === ITEMS_PER_YIELD - 1) yield;
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
    if (place % CHEAP_ITEMS_PER_YIELD === CHEAP_ITEMS_PER_YIELD - 1) yield;
    const size = bytesOf(dtype) as number;
    for (const [index, value] of given[name]?.values.entries() ?? []) {
      if (++written % VALUES_PER_YIELD === 0) yield;
      const number = typeof value === "string" ? (NON_FINITE[value] as number) : value;
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

/** Tensors in a reply: a blob, or plain tensors by name. */
export type ReplyTensors = Parts | Mapping<PlainTensor>;

/** Encodes tensors for the reply in the form of the request: a blob, or plain tensors. */
export const encodeTensors = ({ bytes, plain }: TensorFile): ReplyTensors | Promise<ReplyTensors> =>
  plain ? inTurns(toPlain(plain, bytes)) : new Parts([bytes]);

function* toPlain(tensors: readonly TensorInfo[], file: Buffer): Task<Mapping<PlainTensor>> {
  const longValuesOf = new Map<TensorInfo, PlainTensor["values"]>();
  for (const tensor of tensors) if (tensor.elements > VALUES_PER_YIELD) longValuesOf.set(tensor, yield* readLongValues(tensor, file));
  const entryOf = (tensor: TensorInfo): readonly [string, PlainTensor] => {
    const { name, dtype, shape, elements } = tensor;
    const values = longValuesOf.get(tensor) ?? readValues(tensor, file, 0, elements);
    return [name, { shape: [...shape], dtype: dtype as NonNullable<PlainTensor["dtype"]>, values }];
  };
  return mappingOf(tensors, entryOf, file.length > VALUES_PER_YIELD);
}

function* readLongValues(tensor: TensorInfo, file: Buffer): Task<PlainTensor["values"]> {
  const values: Value[] = [];
  for (let from = 0; from < tensor.elements; from += VALUES_PER_YIELD) {
    for (const value of readValues(tensor, file, from, Math.min(from + VALUES_PER_YIELD, tensor.elements))) values.push(value);
    yield;
  }
  return values;
}

type Value = PlainTensor["values"][number];

/** Reads a range of a tensor's values; `to` is exclusive. */
const readValues = ({ dtype, offset }: TensorInfo, file: Buffer, from: number, to: number): Value[] => {
  const size = bytesOf(dtype) as number;
  const values: Value[] = [];
  for (let index = from; index < to; index++) {
    const value = readElement(file, offset + size * index, dtype);
    values.push(Number.isFinite(value) ? value : (String(value) as Value));
  }
  return values;
};

/**
 * Lists the bytes of a file, for its digest. Plain tensors have those of the canonical safetensors file with the same tensors, so that
 * their digest does not depend on the form of the request.
 */
export function* filePieces({ bytes, plain }: TensorFile): Task<readonly Uint8Array[]> {
  if (!plain) return [bytes];
  const ordered = yield* sorted(plain, compareCanonical);
  return [yield* writeHeaderInTurns({}, ordered), ...ordered.map(({ offset, bytes: length }) => bytes.subarray(offset, offset + length))];
}

export const isSameShape = (a: readonly number[], b: readonly number[]): boolean => a.length === b.length && a.every((size, index) => size === b[index]);
