/**
 * The MessagePack codec of bodies. A scan over the bytes refuses unsupported and dangerous input before msgpackr decodes them.
 * Blobs are decoded as views, not copies. The encoder inserts each blob's own pieces after its header, because msgpackr would
 * copy them (289 ms for 256 MiB, measured).
 */
import { isUtf8 } from "node:buffer";
import { randomBytes } from "node:crypto";
import { addExtension, Packr, Unpackr } from "msgpackr";
import { describe, StepdError } from "../errors/errors.ts";
import { idOfBytes, type Span, SpelledNumber, withIds } from "./_id.ts";
import { isLarge, sharesOf } from "./_shares.ts";
import { MAX_DEPTH, MAX_KEYS, MAX_VALUES, VALUES_STEP } from "./_text.ts";
import { Members } from "./members.ts";
import { Parts } from "./parts.ts";
import type { Turns } from "./turns.ts";

/** The most bytes of all strings of a body; V8 limits a single string to 512 MiB. Blobs, of type bin, do not count. */
const MAX_STRING_BYTES = 2 ** 28;

/** The longest string that is checked byte by byte. */
const SHORT_STRING = 32;

/** The bytes of strings between two calls of `onValues`. */
const STRINGS_STEP = 2 ** 20;

/** The encoded bytes of "-Infinity"; a float64 takes 9. */
const MAX_NUMBER_BYTES = 10;

// Decodes all numbers to float64, as in JSON. Ids are read again exactly.
const unpackr = new Unpackr({ useRecords: false, mapsAsObjects: true, int64AsType: "number" });
// Omits undefined members, as JSON does. Ignores `toJSON` methods, because a tensor may have that name.
const PACKING = { useRecords: false, variableMapSize: true, skipValues: [undefined], useToJSON: false } as ConstructorParameters<typeof Packr>[0];

const malformed = (at: number, problem: string): StepdError =>
  new StepdError("PARSE_ERROR", `The body is not valid MessagePack: ${problem} at byte ${at}`, { expected: "one MessagePack value", found: problem });

/** Receives the number of values and the bytes of strings so far, during the scan and before any value is created. */
export type OnValues = (count: number, stringBytes: number) => void;

/** Decodes a body. Throws PARSE_ERROR and the errors of `onValues`. */
export function* decodeMsgpack(bytes: Buffer, onValues: OnValues = () => {}): Turns<unknown> {
  const scanner = new Scanner(bytes, onValues);
  const large = yield* scanner.run();
  const value: unknown = large ? yield* unpackLarge(bytes, large) : unpackr.unpack(bytes);
  withIds(
    value,
    scanner.ids.filter((id) => isNumber(bytes[id.start] as number)).map((id) => idOfBytes(bytes, id)),
  );
  return value;
}

/** Decodes a large container piece by piece. */
function* unpackLarge(bytes: Buffer, { isMap, pieces }: Large): Turns<unknown> {
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

/** True if a type byte starts a number. */
const isNumber = (type: number): boolean => type <= 0x7f || type >= 0xe0 || (type >= 0xca && type <= 0xd3);

/** The values scanned, and decoded, between two yields. */
const PIECE_VALUES = 2048;

/** A container that is too large to decode in one turn. Each piece has some of its members. */
interface Large {
  readonly start: number;
  readonly isMap: boolean;
  readonly pieces: readonly Piece[];
}

/** The byte range of some members. If its only member has a large value, that is `large`. */
interface Piece {
  readonly start: number;
  readonly end: number;
  readonly large: Large | undefined;
}

/** An unfinished container during the scan. */
class OpenContainer {
  readonly start: number;
  /** The keys so far; undefined for an array. */
  readonly keys: Set<string> | undefined;
  /** The number of values to come. A member of a map counts as two, its key and its value. */
  left: number;
  /** The start of the current member. */
  #member: number;
  /** The start of the current piece. */
  #piece: number;
  /** The number of values scanned before the current piece. */
  #before: number;
  #large: Large | undefined;
  readonly #pieces: Piece[] = [];

  constructor(start: number, content: number, count: number, isMap: boolean, values: number) {
    this.start = start;
    this.keys = isMap ? new Set() : undefined;
    this.left = isMap ? 2 * count : count;
    this.#member = content;
    this.#piece = content;
    this.#before = values;
  }

  /** Ends a member. `values` is the number of values scanned so far. */
  endMember(at: number, values: number): void {
    if (this.#large || values - this.#before >= PIECE_VALUES) this.#cut(at, values);
    this.#member = at;
  }

  /** Marks the current member's value as large, which gives the member its own piece. */
  addLarge(large: Large): void {
    if (this.#member > this.#piece) this.#cut(this.#member, this.#before);
    this.#large = large;
  }

  /** Ends the container. Returns undefined if it is not large. */
  close(at: number, values: number): Large | undefined {
    if (this.#pieces.length === 0) return undefined;
    if (at > this.#piece) this.#cut(at, values);
    return { start: this.start, isMap: this.keys !== undefined, pieces: this.#pieces };
  }

  #cut(at: number, values: number): void {
    this.#pieces.push({ start: this.#piece, end: at, large: this.#large });
    this.#piece = at;
    this.#before = values;
    this.#large = undefined;
  }
}

/** Scans values without decoding them. Refuses extension types, keys that are not strings, and duplicate keys. */
class Scanner {
  readonly #bytes: Buffer;
  /** The nesting depth of a call's map: 0, or 1 in a batch. */
  readonly #callDepth: number;
  readonly #open: OpenContainer[] = [];
  #values = 0;
  #stringBytes = 0;
  #lastKey = "";
  readonly #ids: Span[] = [];
  readonly #onValues: OnValues;
  #nextValues = VALUES_STEP;
  #nextStringBytes = STRINGS_STEP;

  constructor(bytes: Buffer, onValues: OnValues) {
    this.#bytes = bytes;
    const first = bytes[0] ?? 0;
    this.#callDepth = (first >= 0x90 && first <= 0x9f) || first === 0xdc || first === 0xdd ? 1 : 0;
    this.#onValues = onValues;
  }

  /** The number of scanned values. */
  get values(): number {
    return this.#values;
  }

  /** The ranges of the values of the key `id`, in the outermost map or in the maps of the outermost array. */
  get ids(): readonly Span[] {
    return this.#ids;
  }

  /** Calls `onValues` and sets the next thresholds. */
  #report(): void {
    this.#onValues(this.#values, this.#stringBytes);
    this.#nextValues = Math.min(this.#values + VALUES_STEP, MAX_VALUES + 1);
    this.#nextStringBytes = Math.min(this.#stringBytes + STRINGS_STEP, MAX_STRING_BYTES + 1);
  }

  /** Scans the body. Returns the outermost container if it is large. */
  *run(): Turns<Large | undefined> {
    try {
      const large = yield* this.#run();
      this.#report();
      return large;
    } finally {
      // Frees the keys of all open containers, because an error's stack may keep this scanner alive.
      this.#open.length = 0;
    }
  }

  *#run(): Turns<Large | undefined> {
    let at = this.#value(0);
    let id = -1;
    let pause = PIECE_VALUES;
    for (let container = this.#open.at(-1); container; container = this.#open.at(-1)) {
      if (container.left === 0) {
        this.#open.pop();
        const large = container.close(at, this.#values);
        const outer = this.#open.at(-1);
        if (!outer) return this.#end(at, large);
        if (large) outer.addLarge(large);
        outer.endMember(at, this.#values);
        continue;
      }
      const isKey = container.keys !== undefined && container.left % 2 === 0;
      container.left--;
      if (isKey) {
        at = this.#key(at, container.keys as Set<string>);
        if (this.#lastKey === "id" && this.#open.length - 1 === this.#callDepth) id = at;
        continue;
      }
      const start = at;
      at = this.#value(start);
      if (start === id) this.#ids.push({ start, end: at });
      if (this.#open.at(-1) === container) container.endMember(at, this.#values);
      if (this.#values < pause) continue;
      pause = this.#values + PIECE_VALUES;
      yield;
    }
    return this.#end(at, undefined);
  }

  #end(at: number, large: Large | undefined): Large | undefined {
    if (at !== this.#bytes.length) throw malformed(at, `${this.#bytes.length - at} bytes after the value`);
    return large;
  }

  /** Scans a value, or opens a container. Returns the end of the value or the start of the container's content. */
  #value(start: number): number {
    if (this.#open.length > MAX_DEPTH) throw malformed(start, `nesting deeper than ${MAX_DEPTH}`);
    if (++this.#values >= this.#nextValues) {
      if (this.#values > MAX_VALUES) throw malformed(start, `more than ${MAX_VALUES} values`);
      this.#report();
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
      this.#report();
    }
    if (!this.#isShortAscii(at, end) && !isUtf8(this.#bytes.subarray(at, end))) throw malformed(at, "a string that is not UTF-8");
    return end;
  }

  /** A fast path for short field names: checking their bytes takes less time than creating a view for isUtf8. */
  #isShortAscii(start: number, end: number): boolean {
    if (end - start > SHORT_STRING) return false;
    for (let at = start; at < end; at++) if ((this.#bytes[at] as number) > 0x7f) return false;
    return true;
  }

  #openContainer(start: number, content: number, count: number, isMap: boolean): number {
    // An empty container needs no entry.
    if (count > 0) this.#open.push(new OpenContainer(start, content, count, isMap, this.#values));
    return content;
  }

  /** Scans the key of a member. */
  #key(at: number, keys: Set<string>): number {
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

/** Replaces a piece in msgpackr's output. Random, so that no caller's bytes can equal it. */
const PLACEHOLDER = randomBytes(16);
/** The placeholder as msgpackr encodes it. */
const PACKED_PLACEHOLDER = Buffer.from(new Packr(PACKING).pack(PLACEHOLDER));

/** An already encoded value. */
class Packed {
  readonly bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
  }
}

/** A msgpackr encoder that writes placeholders for pieces and collects the pieces. */
class Packer extends Packr {
  /** The pieces of the current value, in order. */
  readonly found: (Parts | Packed)[] = [];
}

const addPiece = <T>(Class: abstract new (...args: never[]) => T, pieceOf: (value: T) => Parts | Packed): void => {
  addExtension({
    Class,
    write(this: Packer, value: T): Buffer {
      this.found.push(pieceOf(value));
      return PLACEHOLDER;
    },
  } as unknown as Parameters<typeof addExtension>[0]);
};
addPiece(Parts, (parts) => parts);
addPiece(Packed, (packed) => packed);
addPiece(SpelledNumber, ({ packed }) => new Packed(packed));

/** Joins encoded values to an encoded array. */
export const joinMsgpack = (values: readonly Parts[]): Parts => {
  const head = Buffer.alloc(3);
  head[0] = 0xdc;
  head.writeUInt16BE(values.length, 1);
  return new Parts([head, ...values.flatMap(({ pieces }) => pieces)]);
};

/** A MessagePack encoder with its own buffer. */
export class MsgpackWriter {
  readonly #packer = new Packer(PACKING);

  /** Encodes a value. `Parts` become bin without a copy. Calls `onBytes` with the length of everything else so far. */
  *encode(value: unknown, onBytes: (bytes: number) => void = () => {}): Turns<Parts> {
    const output: Output = { packer: this.#packer, pieces: [], bytes: 0, onBytes };
    yield* write(value, output);
    return new Parts(output.pieces);
  }
}

interface Output {
  readonly packer: Packer;
  readonly pieces: Uint8Array[];
  bytes: number;
  readonly onBytes: (bytes: number) => void;
}

function* write(value: unknown, output: Output): Turns<void> {
  const { pieces } = output;
  if (!isLarge(value)) {
    pack(value, output);
    return;
  }
  const head = Buffer.alloc(5, Array.isArray(value) ? 0xdd : 0xdf);
  head.writeUInt32BE(sizeOf(value), 1);
  pieces.push(head);
  for (const share of sharesOf(value)) {
    if ("large" in share) {
      if (share.key !== undefined) pack(share.key, output);
      yield* write(share.large, output);
    } else {
      const first = pieces.length;
      pack(share.small, output);
      // Keeps the members only, without the header of this share.
      pieces[first] = withoutHead(pieces[first] as Uint8Array);
    }
    yield;
  }
}

/** The number of items of an array, or of defined members of an object. */
const sizeOf = (value: object): number => {
  if (value instanceof Members) return value.size;
  return Array.isArray(value) ? value.length : Object.values(value).filter((item) => item !== undefined).length;
};

/** The bytes after the header of an array or a map. */
const withoutHead = (bytes: Uint8Array): Uint8Array => {
  const type = bytes[0] as number;
  return bytes.subarray(type === 0xdc || type === 0xde ? 3 : type === 0xdd || type === 0xdf ? 5 : 1);
};

/** Encodes a small value and appends its pieces. */
const pack = (value: unknown, output: Output): void => {
  const { packer } = output;
  packer.found.length = 0;
  const packed = packer.pack(withNegativeZeros(value));
  output.bytes += packed.length;
  output.onBytes(output.bytes);
  // Copies the bytes, because msgpackr reuses its buffer.
  const copy = Buffer.from(packed);
  const append = (piece: Uint8Array): void => {
    if (piece.length > 0) output.pieces.push(piece);
  };
  let at = 0;
  for (const piece of packer.found) {
    const placeholder = copy.indexOf(PACKED_PLACEHOLDER, at);
    if (piece instanceof Packed) {
      append(copy.subarray(at, placeholder));
      append(piece.bytes);
    } else {
      // The placeholder is longer than the header of a bin, which overwrites it.
      copy[placeholder] = 0xc6;
      copy.writeUInt32BE(piece.length, placeholder + 1);
      append(copy.subarray(at, placeholder + 5));
      // A loop, not a spread: the blob of very many tensors has very many pieces.
      for (const part of piece.pieces) output.pieces.push(part);
    }
    at = placeholder + PACKED_PLACEHOLDER.length;
  }
  append(copy.subarray(at));
  // Releases the pieces, which may be views of a call's memory.
  packer.found.length = 0;
};

/** Encodes lists that contain -0 in advance, because msgpackr writes zero as an integer and loses its sign. */
const withNegativeZeros = (value: unknown): unknown => {
  if (!hasNegativeZero(value)) return value;
  if (!Array.isArray(value)) return Object.fromEntries(Object.entries(value as object).map(([key, item]) => [key, withNegativeZeros(item)]));
  return value.some(isNegativeZero) ? new Packed(packNumbers(value)) : value.map(withNegativeZeros);
};

const hasNegativeZero = (value: unknown): boolean => {
  if (typeof value !== "object" || value === null || value instanceof Parts || value instanceof Uint8Array) return false;
  if (Array.isArray(value)) return value.some(isNegativeZero) || value.some(hasNegativeZero);
  for (const key in value) if (hasNegativeZero((value as Record<string, unknown>)[key])) return true;
  return false;
};

const isNegativeZero = (value: unknown): boolean => Object.is(value, -0);

/** Encodes a list of numbers as float64. NaN and infinities are given, and encoded, as strings. */
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
