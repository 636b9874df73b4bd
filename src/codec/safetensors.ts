/**
 * Reads and writes the safetensors format: 8 bytes of header length (little-endian), a JSON header, then the tensors' bytes. The reader is strict:
 * every byte must belong to exactly one tensor. The writer is canonical: equal tensors give equal bytes.
 * Format: https://github.com/huggingface/safetensors, section "Format".
 */
import { describe, type ErrorName, pointerEscape, StepdError } from "../errors/errors.ts";
import { MAX_VALUES, parseHeader, splitStrictJson } from "./_text.ts";
import { bytesOf, elementsOf, isCountable, rankOf } from "./dtype.ts";
import { atOnce, CHEAP_ITEMS_PER_YIELD, ITEMS_PER_YIELD, sorted, type Task } from "./turns.ts";

const LENGTH_BYTES = 8;
/** The safetensors library has the same limit. */
export const MAX_HEADER_BYTES = 100_000_000;
/** Headers are padded with spaces to a multiple of 8 bytes, which aligns the tensors. */
const HEADER_ALIGNMENT = 8;
const MAX_DIMENSIONS = 32;

export interface TensorInfo {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly elements: number;
  readonly bytes: number;
  /** The tensor's bytes start at this offset of the file. */
  readonly offset: number;
}

export interface Safetensors {
  /** The length field and the header; undefined if the tensors were not given as a file. */
  readonly header: Buffer | undefined;
  readonly metadata: ReadonlyMap<string, string>;
  readonly tensors: readonly TensorInfo[];
}

type Corrupt = (expected: string, found: string) => StepdError;

/** Returns the offset after the header, which may exceed the file. Returns Infinity if the length is missing or above 4 GiB. */
export const headerEnd = (file: Buffer): number =>
  file.length < LENGTH_BYTES || file.readUInt32LE(4) > 0 ? Number.POSITIVE_INFINITY : LENGTH_BYTES + file.readUInt32LE(0);

/** Reads and checks the header of a file. Throws an error with `code` and `field` if the file is invalid. */
export const readSafetensors = (file: Buffer, field: string, code: ErrorName): Safetensors => atOnce(readSafetensorsInTurns(file, field, code));

export function* readSafetensorsInTurns(file: Buffer, field: string, code: ErrorName): Task<Safetensors> {
  const corrupt: Corrupt = (expected, found) => StepdError.mismatch(code, field, expected, found);
  if (file.length < LENGTH_BYTES) throw corrupt("a safetensors file of at least 8 bytes", `${file.length} bytes`);
  const high = file.readUInt32LE(4);
  const headerBytes = file.readUInt32LE(0);
  if (high > 0 || headerBytes > MAX_HEADER_BYTES)
    throw corrupt(`a header of at most ${MAX_HEADER_BYTES} bytes`, `a header length of ${file.readBigUInt64LE(0)}`);
  const dataStart = LENGTH_BYTES + headerBytes;
  if (dataStart > file.length) throw corrupt(`a header of ${headerBytes} bytes, as the first 8 bytes say`, `${file.length - LENGTH_BYTES} bytes after them`);
  const { metadata, tensors } = yield* readEntries(file, dataStart, field, corrupt);
  let end = dataStart;
  for (const [index, tensor] of (yield* sorted(tensors, (a, b) => a.offset - b.offset || a.bytes - b.bytes)).entries()) {
    if (index % CHEAP_ITEMS_PER_YIELD === CHEAP_ITEMS_PER_YIELD - 1) yield;
    if (tensor.offset !== end) {
      throw corrupt(
        `tensor ${JSON.stringify(tensor.name)} to start at offset ${end - dataStart}, without gap or overlap`,
        `offset ${tensor.offset - dataStart}`,
      );
    }
    end += tensor.bytes;
  }
  if (end !== file.length) throw corrupt(`${end - dataStart} bytes of tensors, as the header says`, `${file.length - dataStart} bytes`);
  return { header: file.subarray(0, dataStart), metadata, tensors };
}

/** Reads the header, which ends at `dataStart`. Each piece of its text is parsed and read before the next. */
function* readEntries(file: Buffer, dataStart: number, field: string, corrupt: Corrupt): Task<Pick<Safetensors, "metadata" | "tensors">> {
  if (file[LENGTH_BYTES] !== 0x7b) throw corrupt("a header that starts with {", dataStart === LENGTH_BYTES ? "an empty header" : `byte ${file[LENGTH_BYTES]}`);
  const metadata = new Map<string, string>();
  const tensors: TensorInfo[] = [];
  const names = new Set<string>();
  let values = 0;
  let nonDigit: string | undefined;
  const parse = (text: Buffer): Record<string, unknown> => {
    try {
      let pieceValues = 0;
      const found = parseHeader(text, (count) => {
        pieceValues = count;
        if (count > MAX_PIECE_VALUES) throw new Error(`more than ${MAX_PIECE_VALUES} values in an entry`);
      });
      values += pieceValues;
      nonDigit ??= found.nonDigit;
      const entries = found.value as Record<string, unknown>;
      if (Object.keys(entries).length === 0 && text.length < dataStart - LENGTH_BYTES) throw new Error("a comma without a member behind it");
      if (values > MAX_VALUES) throw new Error(`more than ${MAX_VALUES} values`);
      const twice = Object.keys(entries).find((name) => names.has(name));
      if (twice !== undefined) throw new Error(`the key ${describe(twice)} stands twice in an object`);
      return entries;
    } catch (error) {
      throw corrupt("a header in JSON", (error as Error).message);
    }
  };
  for (const text of splitStrictJson(file.subarray(LENGTH_BYTES, dataStart))) {
    const entries = parse(text);
    for (const [name, entry] of Object.entries(entries)) {
      names.add(name);
      if (name === METADATA) readMetadata(entry, metadata, corrupt);
      else tensors.push(readEntry(name, entry, dataStart, field, corrupt));
      if (names.size % ITEMS_PER_YIELD === 0) yield;
    }
  }
  // The safetensors library rejects sizes with a sign, point or exponent.
  if (nonDigit !== undefined) throw corrupt("sizes and offsets that are written as digits alone", nonDigit);
  return { metadata, tensors };
}

const METADATA = "__metadata__";

/** One piece of a header has at most this many values. Valid entries and `__metadata__` need fewer. */
const MAX_PIECE_VALUES = 2 ** 18;

const readMetadata = (given: unknown, metadata: Map<string, string>, corrupt: Corrupt): void => {
  if (!isRecord(given)) throw corrupt("__metadata__ to be an object", String(given));
  for (const [key, value] of Object.entries(given)) {
    if (typeof value !== "string") throw corrupt(`__metadata__.${key} to be a string`, JSON.stringify(value));
    metadata.set(key, value);
  }
};

const isRecord = (value: unknown): value is Record<string, unknown> => typeof value === "object" && value !== null && !Array.isArray(value);

const isSize = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;

const readEntry = (name: string, entry: unknown, dataStart: number, field: string, corrupt: Corrupt): TensorInfo => {
  const quoted = JSON.stringify(name);
  const expected = `tensor ${quoted} to have dtype, shape and data_offsets`;
  if (!isRecord(entry)) throw corrupt(expected, JSON.stringify(entry));
  const { dtype, shape, data_offsets: offsets, ...rest } = entry;
  if (Object.keys(rest).length > 0) throw corrupt(`${expected} and nothing else`, Object.keys(rest).join(", "));
  if (typeof dtype !== "string") throw corrupt(expected, `dtype ${JSON.stringify(dtype)}`);
  if (!Array.isArray(shape) || shape.length > MAX_DIMENSIONS || !shape.every(isSize)) throw corrupt(expected, `shape ${JSON.stringify(shape)}`);
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isSize)) throw corrupt(expected, `data_offsets ${JSON.stringify(offsets)}`);
  const size = bytesOf(dtype);
  if (size === undefined) throw StepdError.mismatch("UNSUPPORTED_DTYPE", `${field}/${pointerEscape(name)}`, "a dtype of safetensors", describe(dtype), [name]);
  const elements = elementsOf(shape);
  const [start, end] = offsets as [number, number];
  if (end - start !== elements * size)
    throw corrupt(`tensor ${quoted} of ${elements} ${dtype} elements to have ${elements * size} bytes`, `data_offsets [${start}, ${end}]`);
  if (!isCountable(shape)) throw corrupt(`tensor ${quoted} to have sizes whose product is at most 2^53 - 1`, `shape [${shape}]`);
  return { name, dtype, shape, elements, bytes: end - start, offset: dataStart + start };
};

export interface TensorDescription {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
}

/** Compares strings by their UTF-8 bytes. JavaScript compares UTF-16 units, which sorts U+E000 to U+FFFF after higher code points. */
export const compareUtf8 = (a: string, b: string): number => {
  for (let i = 0; i < a.length && i < b.length; i++) {
    const left = a.charCodeAt(i);
    const right = b.charCodeAt(i);
    if (left !== right) return orderOf(left) - orderOf(right);
  }
  return a.length - b.length;
};

const orderOf = (unit: number): number => (unit < 0xd800 ? unit : unit < 0xe000 ? unit + 0x2000 : unit - 0x800);

/** Compares tensors by the safetensors library's order: first by dtype, then by the bytes of the name. Wide dtypes come first, so tensors are aligned. */
export const compareCanonical = (a: TensorDescription, b: TensorDescription): number => rankOf(b.dtype) - rankOf(a.dtype) || compareUtf8(a.name, b.name);

/** Writes the length field and the canonical header. In the file, the tensors must follow in the given order without gaps. */
export const writeHeader = (metadata: Readonly<Record<string, string>>, tensors: readonly TensorDescription[]): Buffer =>
  atOnce(writeHeaderInTurns(metadata, tensors));

export function* writeHeaderInTurns(metadata: Readonly<Record<string, string>>, tensors: readonly TensorDescription[]): Task<Buffer> {
  const pieces: Buffer[] = [];
  let text = `{"${METADATA}":{`;
  for (const [index, [key, value]] of (yield* sorted(Object.entries(metadata), ([a], [b]) => compareUtf8(a, b))).entries()) {
    text += `${index === 0 ? "" : ","}${JSON.stringify(key)}:${JSON.stringify(value)}`;
    if (index % ITEMS_PER_YIELD < ITEMS_PER_YIELD - 1) continue;
    pieces.push(Buffer.from(text));
    text = "";
    yield;
  }
  text += "}";
  let offset = 0;
  for (const [index, { name, dtype, shape }] of tensors.entries()) {
    const start = offset;
    offset += elementsOf(shape) * (bytesOf(dtype) as number);
    text += `,${JSON.stringify(name)}:${JSON.stringify({ dtype, shape, data_offsets: [start, offset] })}`;
    if (index % ITEMS_PER_YIELD < ITEMS_PER_YIELD - 1) continue;
    // The text is encoded every few entries, so the whole header never exists as a string.
    pieces.push(Buffer.from(text));
    text = "";
    yield;
  }
  pieces.push(Buffer.from(`${text}}`));
  const length = pieces.reduce((sum, piece) => sum + piece.length, 0);
  const padded = Math.ceil(length / HEADER_ALIGNMENT) * HEADER_ALIGNMENT;
  const header = Buffer.allocUnsafe(LENGTH_BYTES + padded);
  header.writeBigUInt64LE(BigInt(padded));
  let at = LENGTH_BYTES;
  for (const [index, piece] of pieces.entries()) {
    at += piece.copy(header, at);
    if (index % ITEMS_PER_YIELD === ITEMS_PER_YIELD - 1) yield;
  }
  header.fill(" ", at);
  return header;
}
