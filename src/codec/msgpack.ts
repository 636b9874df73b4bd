/**
 * Encodes and decodes bodies in MessagePack. A scan of the bytes rejects unsupported and dangerous input before msgpackr
 * decodes it. The decoder returns blobs as views, and the encoder sends them uncopied: a copy of 256 MiB takes 289 ms (measured).
 */
import { isUtf8 } from "node:buffer";
import { randomBytes } from "node:crypto";
import { addExtension, Packr, Unpackr } from "msgpackr";
import { describe, StepdError } from "../errors/errors.ts";
import { isLarge, splitIntoChunks } from "./_chunks.ts";
import { idOfBytes, type Span, SpelledNumber, withIds } from "./_id.ts";
import { Templates } from "./_templates.ts";
import { MAX_DEPTH, MAX_KEYS, MAX_VALUES, VALUES_PER_REPORT } from "./_text.ts";
import { Members } from "./members.ts";
import { Parts } from "./parts.ts";
import type { Task } from "./turns.ts";

/** A body's strings have at most this many bytes in total. Blobs are not strings and do not count. */
const MAX_STRING_BYTES = 2 ** 28;

/** Strings up to this length are checked for ASCII byte by byte. */
const MAX_ASCII_CHECK_BYTES = 32;

/** The scan reports its progress after this many bytes of strings. */
const STRING_BYTES_PER_REPORT = 2 ** 20;

/** An encoded number has at most this many bytes. The string "-Infinity" takes 10, a float64 takes 9. */
const MAX_NUMBER_BYTES = 10;

// The decoder returns all numbers as float64, as JSON.parse does. `withIds` then restores the exact ids.
const unpackr = new Unpackr({ useRecords: false, mapsAsObjects: true, int64AsType: "number" });
// The encoder omits undefined members, as JSON.stringify does. It ignores `toJSON`, because a tensor may have that name.
const PACKR_OPTIONS = { useRecords: false, variableMapSize: true, skipValues: [undefined], useToJSON: false } as ConstructorParameters<typeof Packr>[0];

const malformed = (at: number, problem: string): StepdError =>
  new StepdError("PARSE_ERROR", `The body is not valid MessagePack: ${problem} at byte ${at}`, { expected: "one MessagePack value", found: problem });

/** The scan calls this callback with its counts so far. The callback may throw to stop the scan before any value is created. */
export type OnProgress = (values: number, stringBytes: number) => void;

/** A decoded body. */
export interface Decoded {
  readonly value: unknown;
  /** Bodies that differ only in blobs and id share this object. Undefined for a body without a template. */
  readonly template: object | undefined;
}

/** A MessagePack decoder that keeps templates of recent bodies. */
export class MsgpackReader {
  readonly #templates = new Templates();

  /** Decodes a body. Throws PARSE_ERROR, and any error that `onProgress` throws. */
  *decode(bytes: Buffer, onProgress: OnProgress): Task<Decoded> {
    const known = this.#templates.find(bytes);
    if (known) {
      onProgress(known.values, known.stringBytes);
      return { value: known.fill(bytes), template: known };
    }
    const scanner = new Scanner(bytes, onProgress);
    const value = yield* unpack(scanner, bytes);
    return { value, template: this.#templates.add(bytes, value, scanner.ids[0], scanner) };
  }
}

export const decodeMsgpack = (bytes: Buffer, onProgress: OnProgress = () => {}): Task<unknown> => unpack(new Scanner(bytes, onProgress), bytes);

function* unpack(scanner: Scanner, bytes: Buffer): Task<unknown> {
  const large = yield* scanner.run();
  const value: unknown = large ? yield* unpackLarge(bytes, large) : unpackr.unpack(bytes);
  withIds(
    value,
    scanner.ids.filter((id) => isNumberType(bytes[id.start] as number)).map((id) => idOfBytes(bytes, id)),
  );
  return value;
}

/** Decodes a large container and yields after each piece. */
function* unpackLarge(bytes: Buffer, { isMap, pieces }: LargeContainer): Task<unknown> {
  const list: unknown[] = [];
  const members: Record<string, unknown> = {};
  for (const { start, end, large } of pieces) {
    const key: unknown[] = large && isMap ? [unpackr.unpack(bytes.subarray(start, large.start))] : [];
    const items: unknown[] = large ? [...key, yield* unpackLarge(bytes, large)] : (unpackr.unpackMultiple(bytes.subarray(start, end)) as unknown[]);
    if (isMap) for (let at = 0; at < items.length; at += 2) members[items[at] as string] = items[at + 1];
    else for (const item of items) list.push(item);
    yield;
  }
  return isMap ? members : list;
}

const isNumberType = (type: number): boolean => type <= 0x7f || type >= 0xe0 || (type >= 0xca && type <= 0xd3);

/** The scan yields to other calls after this many values, and so does the decoder. */
const VALUES_PER_YIELD = 2048;

/** A container that is too large to decode in one turn, so its pieces are decoded one by one. */
interface LargeContainer {
  readonly start: number;
  readonly isMap: boolean;
  readonly pieces: readonly Piece[];
}

/** The byte range of consecutive members. `large` is set if the range holds one member, whose value is a large container. */
interface Piece {
  readonly start: number;
  readonly end: number;
  readonly large: LargeContainer | undefined;
}

/** A container whose end the scan has not reached. */
class OpenContainer {
  readonly start: number;
  /** The map keys that the scan has read; undefined for an array. */
  readonly keys: Set<string> | undefined;
  /** The number of values that the scan has not read yet. A map member counts as two: its key and its value. */
  unread: number;
  #memberStart: number;
  #pieceStart: number;
  #valuesAtPieceStart: number;
  #large: LargeContainer | undefined;
  readonly #pieces: Piece[] = [];

  constructor(start: number, content: number, count: number, isMap: boolean, values: number) {
    this.start = start;
    this.keys = isMap ? new Set() : undefined;
    this.unread = isMap ? 2 * count : count;
    this.#memberStart = content;
    this.#pieceStart = content;
    this.#valuesAtPieceStart = values;
  }

  /** Ends a member. `values` counts the values that the scan has read so far. */
  endMember(at: number, values: number): void {
    if (this.#large || values - this.#valuesAtPieceStart >= VALUES_PER_YIELD) this.#cut(at, values);
    this.#memberStart = at;
  }

  /** Marks the current member's value as a large container, so the member gets its own piece. */
  addLarge(large: LargeContainer): void {
    if (this.#memberStart > this.#pieceStart) this.#cut(this.#memberStart, this.#valuesAtPieceStart);
    this.#large = large;
  }

  /** Ends the container. Returns its pieces, or undefined if the container is small. */
  close(at: number, values: number): LargeContainer | undefined {
    if (this.#pieces.length === 0) return undefined;
    if (at > this.#pieceStart) this.#cut(at, values);
    return { start: this.start, isMap: this.keys !== undefined, pieces: this.#pieces };
  }

  #cut(at: number, values: number): void {
    this.#pieces.push({ start: this.#pieceStart, end: at, large: this.#large });
    this.#pieceStart = at;
    this.#valuesAtPieceStart = values;
    this.#large = undefined;
  }
}

/** Scans values without decoding them. Rejects extension types, non-string keys and duplicate keys. */
class Scanner {
  readonly #bytes: Buffer;
  /** A call's map has nesting depth 0, or 1 inside a batch's array. */
  readonly #callDepth: number;
  readonly #open: OpenContainer[] = [];
  #values = 0;
  #stringBytes = 0;
  #lastKey = "";
  readonly #ids: Span[] = [];
  readonly #onProgress: OnProgress;
  #nextValues = VALUES_PER_REPORT;
  #nextStringBytes = STRING_BYTES_PER_REPORT;

  constructor(bytes: Buffer, onProgress: OnProgress) {
    this.#bytes = bytes;
    const first = bytes[0] ?? 0;
    this.#callDepth = (first >= 0x90 && first <= 0x9f) || first === 0xdc || first === 0xdd ? 1 : 0;
    this.#onProgress = onProgress;
  }

  get values(): number {
    return this.#values;
  }

  get stringBytes(): number {
    return this.#stringBytes;
  }

  /** The byte ranges of the ids: the values of the key `id` in each call's map. */
  get ids(): readonly Span[] {
    return this.#ids;
  }

  #reportProgress(): void {
    this.#onProgress(this.#values, this.#stringBytes);
    this.#nextValues = Math.min(this.#values + VALUES_PER_REPORT, MAX_VALUES + 1);
    this.#nextStringBytes = Math.min(this.#stringBytes + STRING_BYTES_PER_REPORT, MAX_STRING_BYTES + 1);
  }

  /** Scans the body. Returns the outermost container if it is large, else undefined. */
  *run(): Task<LargeContainer | undefined> {
    try {
      const large = yield* this.#run();
      this.#reportProgress();
      return large;
    } finally {
      // An error's stack may keep this scanner alive, so the keys of open containers are freed here.
      this.#open.length = 0;
    }
  }

  *#run(): Task<LargeContainer | undefined> {
    let at = this.#value(0);
    let id = -1;
    let pause = VALUES_PER_YIELD;
    for (let container = this.#open.at(-1); container; container = this.#open.at(-1)) {
      if (container.unread === 0) {
        this.#open.pop();
        const large = container.close(at, this.#values);
        const outer = this.#open.at(-1);
        if (!outer) return this.#end(at, large);
        if (large) outer.addLarge(large);
        outer.endMember(at, this.#values);
        continue;
      }
      const isKey = container.keys !== undefined && container.unread % 2 === 0;
      container.unread--;
      if (isKey) {
        at = this.#mapKey(at, container.keys as Set<string>);
        if (this.#lastKey === "id" && this.#open.length - 1 === this.#callDepth) id = at;
        continue;
      }
      const start = at;
      at = this.#value(start);
      if (start === id) this.#ids.push({ start, end: at });
      if (this.#open.at(-1) === container) container.endMember(at, this.#values);
      if (this.#values < pause) continue;
      pause = this.#values + VALUES_PER_YIELD;
      yield;
    }
    return this.#end(at, undefined);
  }

  #end(at: number, large: LargeContainer | undefined): LargeContainer | undefined {
    if (at !== this.#bytes.length) throw malformed(at, `${this.#bytes.length - at} bytes after the value`);
    return large;
  }

  /** Scans a value, or opens a container. Returns the offset after the value or the container's header. */
  #value(start: number): number {
    if (this.#open.length > MAX_DEPTH) throw malformed(start, `nesting deeper than ${MAX_DEPTH}`);
    if (++this.#values >= this.#nextValues) {
      if (this.#values > MAX_VALUES) throw malformed(start, `more than ${MAX_VALUES} values`);
      this.#reportProgress();
    }
    this.#need(start, 1);
    const type = this.#bytes[start] as number;
    const at = start + 1;
    if (type <= 0x7f || type >= 0xe0) return at;
    if (type <= 0x8f) return this.#openContainer(start, at, type & 0x0f, true);
    if (type <= 0x9f) return this.#openContainer(start, at, type & 0x0f, false);
    if (type <= 0xbf) return this.#string(at, type & 0x1f);
    switch (type) {
      case 0xc0:
      case 0xc2:
      case 0xc3:
        return at;
      case 0xc4:
        return this.#need(at + 1, this.#length(at, 1));
      case 0xc5:
        return this.#need(at + 2, this.#length(at, 2));
      case 0xc6:
        return this.#need(at + 4, this.#length(at, 4));
      case 0xd9:
        return this.#string(at + 1, this.#length(at, 1));
      case 0xda:
        return this.#string(at + 2, this.#length(at, 2));
      case 0xdb:
        return this.#string(at + 4, this.#length(at, 4));
      case 0xcc:
      case 0xd0:
        return this.#need(at, 1);
      case 0xcd:
      case 0xd1:
        return this.#need(at, 2);
      case 0xca:
      case 0xce:
      case 0xd2:
        return this.#need(at, 4);
      case 0xcb:
      case 0xcf:
      case 0xd3:
        return this.#need(at, 8);
      case 0xdc:
        return this.#openContainer(start, at + 2, this.#length(at, 2), false);
      case 0xdd:
        return this.#openContainer(start, at + 4, this.#length(at, 4), false);
      case 0xde:
        return this.#openContainer(start, at + 2, this.#length(at, 2), true);
      case 0xdf:
        return this.#openContainer(start, at + 4, this.#length(at, 4), true);
      case 0xc1:
        throw malformed(start, "the byte 0xc1, which no value starts with");
      default:
        throw malformed(start, "an extension type, which no method takes");
    }
  }

  #need(at: number, count: number): number {
    const missing = at + count - this.#bytes.length;
    if (missing > 0) throw malformed(at, `the value ends early: ${missing} bytes are missing`);
    return at + count;
  }

  #length(at: number, size: 1 | 2 | 4): number {
    this.#need(at, size);
    return this.#bytes.readUIntBE(at, size);
  }

  #string(at: number, length: number): number {
    const end = this.#need(at, length);
    this.#stringBytes += length;
    if (this.#stringBytes >= this.#nextStringBytes) {
      if (this.#stringBytes > MAX_STRING_BYTES) throw malformed(at, `more than ${MAX_STRING_BYTES} bytes of strings`);
      this.#reportProgress();
    }
    if (!this.#isShortAscii(at, end) && !isUtf8(this.#bytes.subarray(at, end))) throw malformed(at, "a string that is not UTF-8");
    return end;
  }

  /** Short field names are checked in a loop, because creating a view for isUtf8 takes longer. */
  #isShortAscii(start: number, end: number): boolean {
    if (end - start > MAX_ASCII_CHECK_BYTES) return false;
    for (let at = start; at < end; at++) if ((this.#bytes[at] as number) > 0x7f) return false;
    return true;
  }

  #openContainer(start: number, content: number, count: number, isMap: boolean): number {
    if (count > 0) this.#open.push(new OpenContainer(start, content, count, isMap, this.#values));
    return content;
  }

  #mapKey(at: number, keys: Set<string>): number {
    const type = this.#bytes[at] ?? 0;
    const isString = (type >= 0xa0 && type <= 0xbf) || (type >= 0xd9 && type <= 0xdb);
    if (!isString && at < this.#bytes.length) throw malformed(at, "a map key that is not a string");
    const end = this.#value(at);
    const header = type <= 0xbf ? 1 : type === 0xd9 ? 2 : type === 0xda ? 3 : 5;
    const name = this.#bytes.toString("utf8", at + header, end);
    if (keys.has(name)) throw malformed(at, `the key ${describe(name)} for the second time in a map`);
    if (name === "__proto__") throw malformed(at, 'the key "__proto__", which is not allowed');
    if (keys.size >= MAX_KEYS) throw malformed(at, `more than ${MAX_KEYS} keys in a map`);
    keys.add(name);
    this.#lastKey = name;
    return end;
  }
}

/** A placeholder stands for a piece in msgpackr's output. It is random, so no caller's bytes can equal it. */
const PLACEHOLDER = randomBytes(16);
const ENCODED_PLACEHOLDER = Buffer.from(new Packr(PACKR_OPTIONS).pack(PLACEHOLDER));

/** A value that is already encoded as MessagePack. */
class Encoded {
  readonly bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
  }
}

/** A msgpackr encoder that writes placeholders for blobs and encoded values, and collects the replaced values. */
class PlaceholderPackr extends Packr {
  readonly replaced: (Parts | Encoded)[] = [];
}

const addPiece = <T>(Class: abstract new (...args: never[]) => T, pieceOf: (value: T) => Parts | Encoded): void => {
  addExtension({
    Class,
    write(this: PlaceholderPackr, value: T): Buffer {
      this.replaced.push(pieceOf(value));
      return PLACEHOLDER;
    },
  } as unknown as Parameters<typeof addExtension>[0]);
};
addPiece(Parts, (parts) => parts);
addPiece(Encoded, (packed) => packed);
addPiece(SpelledNumber, ({ packed }) => new Encoded(packed));

/** Builds an encoded array from encoded items. */
export const joinMsgpack = (values: readonly Parts[]): Parts => {
  const head = Buffer.alloc(3);
  head[0] = 0xdc;
  head.writeUInt16BE(values.length, 1);
  return new Parts([head, ...values.flatMap(({ pieces }) => pieces)]);
};

/** A MessagePack encoder. Each instance has its own buffer. */
export class MsgpackWriter {
  readonly #packr = new PlaceholderPackr(PACKR_OPTIONS);

  /** Encodes a value. `Parts` become bin without a copy. `onBytes` receives the encoded length so far, without `Parts`. */
  *encode(value: unknown, onBytes: (bytes: number) => void = () => {}): Task<Parts> {
    const output: Output = { packr: this.#packr, pieces: [], bytes: 0, onBytes };
    yield* write(value, output);
    return new Parts(output.pieces);
  }
}

interface Output {
  readonly packr: PlaceholderPackr;
  readonly pieces: Uint8Array[];
  bytes: number;
  readonly onBytes: (bytes: number) => void;
}

function* write(value: unknown, output: Output): Task<void> {
  const { pieces } = output;
  if (!isLarge(value)) {
    pack(value, output);
    return;
  }
  const head = Buffer.alloc(5, Array.isArray(value) ? 0xdd : 0xdf);
  head.writeUInt32BE(countMembers(value), 1);
  pieces.push(head);
  for (const chunk of splitIntoChunks(value)) {
    if ("large" in chunk) {
      if (chunk.key !== undefined) pack(chunk.key, output);
      yield* write(chunk.large, output);
    } else {
      const first = pieces.length;
      pack(chunk.small, output);
      // The container has one header, so each chunk's own header is removed.
      pieces[first] = withoutHeader(pieces[first] as Uint8Array);
    }
    yield;
  }
}

const countMembers = (value: object): number => {
  if (value instanceof Members) return value.size;
  return Array.isArray(value) ? value.length : Object.values(value).filter((item) => item !== undefined).length;
};

/** Removes the header of an encoded array or map. */
const withoutHeader = (bytes: Uint8Array): Uint8Array => {
  const type = bytes[0] as number;
  return bytes.subarray(type === 0xdc || type === 0xde ? 3 : type === 0xdd || type === 0xdf ? 5 : 1);
};

const pack = (value: unknown, output: Output): void => {
  const { packr } = output;
  packr.replaced.length = 0;
  const packed = packr.pack(withNegativeZeros(value));
  output.bytes += packed.length;
  output.onBytes(output.bytes);
  // msgpackr reuses its buffer, so the bytes are copied.
  const copy = Buffer.from(packed);
  const append = (piece: Uint8Array): void => {
    if (piece.length > 0) output.pieces.push(piece);
  };
  let at = 0;
  for (const piece of packr.replaced) {
    const placeholder = copy.indexOf(ENCODED_PLACEHOLDER, at);
    if (piece instanceof Encoded) {
      append(copy.subarray(at, placeholder));
      append(piece.bytes);
    } else {
      // The header of the bin overwrites the placeholder, which is longer.
      copy[placeholder] = 0xc6;
      copy.writeUInt32BE(piece.length, placeholder + 1);
      append(copy.subarray(at, placeholder + 5));
      // A spread would overflow the stack: a blob of many tensors has many pieces.
      for (const part of piece.pieces) output.pieces.push(part);
    }
    at = placeholder + ENCODED_PLACEHOLDER.length;
  }
  append(copy.subarray(at));
  // The pieces may be views of a call's memory, so the encoder must not keep them.
  packr.replaced.length = 0;
};

/** Encodes lists that contain -0 in advance: msgpackr would write the integer 0, without the sign. */
const withNegativeZeros = (value: unknown): unknown => {
  if (!hasNegativeZero(value)) return value;
  if (!Array.isArray(value)) return Object.fromEntries(Object.entries(value as object).map(([key, item]) => [key, withNegativeZeros(item)]));
  return value.some(isNegativeZero) ? new Encoded(packNumbers(value)) : value.map(withNegativeZeros);
};

const hasNegativeZero = (value: unknown): boolean => {
  if (typeof value !== "object" || value === null || value instanceof Parts || value instanceof Uint8Array) return false;
  if (Array.isArray(value)) return value.some(isNegativeZero) || value.some(hasNegativeZero);
  for (const key in value) if (hasNegativeZero((value as Record<string, unknown>)[key])) return true;
  return false;
};

const isNegativeZero = (value: unknown): boolean => Object.is(value, -0);

/** Encodes a list of numbers as float64. NaN and infinities are strings, both in the input and in the output. */
const packNumbers = (values: readonly (number | string)[]): Buffer => {
  const bytes = Buffer.allocUnsafe(5 + values.length * MAX_NUMBER_BYTES);
  bytes[0] = 0xdd;
  let at = bytes.writeUInt32BE(values.length, 1);
  for (const value of values) {
    if (typeof value === "number") {
      bytes[at] = 0xcb;
      at = bytes.writeDoubleBE(value, at + 1);
    } else {
      bytes[at] = 0xa0 | value.length;
      at += 1 + bytes.write(value, at + 1, "latin1");
    }
  }
  return bytes.subarray(0, at);
};
