/**
 * MessagePack bodies. Values come out of bytes by msgpackr, after a walk over the bytes that refuses what stepd never takes
 * and what a decoder might stumble over; blobs come out as views, not copies. Values go into bytes with each blob's header
 * in front of the blob's own pieces, because msgpackr would copy them (289 ms for 256 MiB, measured).
 */
import { isUtf8 } from "node:buffer";
import { Packr, Unpackr } from "msgpackr";
import { describe, StepdError } from "../errors/errors.ts";
import { MAX_DEPTH, MAX_VALUES } from "./_text.ts";
import { Parts } from "./parts.ts";

/** Bytes of all strings of a body together; V8 has a limit of 512 MiB for one. Blobs are bin. */
const MAX_STRING_BYTES = 2 ** 28;

/** Bytes of "-Infinity" with its type; a float64 has 9. */
const MAX_NUMBER_BYTES = 10;

// "auto" gives a number where it is exact and else a bigint; its type declaration lacks it.
const unpackr = new Unpackr({ useRecords: false, mapsAsObjects: true, int64AsType: "auto" as "number" });
const packr = new Packr({ useRecords: false, variableMapSize: true });

const malformed = (at: number, problem: string): StepdError =>
  new StepdError("PARSE_ERROR", `The body is not valid MessagePack: ${problem} at byte ${at}`, { expected: "one MessagePack value", found: problem });

/** The value of a body; `onValues` is told how many values it has before they are made. Throws PARSE_ERROR. */
export const decodeMsgpack = (bytes: Buffer, onValues: (count: number) => void = () => {}): unknown => {
  const walk = new Walk(bytes);
  const end = walk.value(0, 0);
  if (end !== bytes.length) throw malformed(end, `${bytes.length - end} bytes after the value`);
  onValues(walk.values);
  return unpackr.unpack(bytes);
};

/** Passes over values without making them. Extension types, keys that are not strings, and keys that stand twice are refused. */
class Walk {
  readonly #bytes: Buffer;
  #values = 0;
  #stringBytes = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  /** How many values it has passed. */
  get values(): number {
    return this.#values;
  }

  /** Passes over one value and returns where it ends. */
  value(start: number, depth: number): number {
    if (depth > MAX_DEPTH) throw malformed(start, `nesting deeper than ${MAX_DEPTH}`);
    if (++this.#values > MAX_VALUES) throw malformed(start, `more than ${MAX_VALUES} values`);
    this.#need(start, 1);
    const type = this.#bytes[start] as number;
    const at = start + 1;
    if (type <= 0x7f || type >= 0xe0) return at;
    if (type <= 0x8f) return this.#map(at, type & 0x0f, depth);
    if (type <= 0x9f) return this.#array(at, type & 0x0f, depth);
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
        return this.#array(at + 2, this.#length(at, 2), depth);
      case 0xdd:
        return this.#array(at + 4, this.#length(at, 4), depth);
      case 0xde:
        return this.#map(at + 2, this.#length(at, 2), depth);
      case 0xdf:
        return this.#map(at + 4, this.#length(at, 4), depth);
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
    if (this.#stringBytes > MAX_STRING_BYTES) throw malformed(at, `more than ${MAX_STRING_BYTES} bytes of strings`);
    if (length > 0 && !isUtf8(this.#bytes.subarray(at, end))) throw malformed(at, "a string that is not UTF-8");
    return end;
  }

  #array(start: number, count: number, depth: number): number {
    let at = start;
    for (let i = 0; i < count; i++) at = this.value(at, depth + 1);
    return at;
  }

  #map(start: number, count: number, depth: number): number {
    const keys = new Set<string>();
    let at = start;
    for (let i = 0; i < count; i++) {
      const type = this.#bytes[at] ?? 0;
      const isString = (type >= 0xa0 && type <= 0xbf) || (type >= 0xd9 && type <= 0xdb);
      if (!isString && at < this.#bytes.length) throw malformed(at, "a map key that is not a string");
      const end = this.value(at, depth + 1);
      const header = type <= 0xbf ? 1 : type === 0xd9 ? 2 : type === 0xda ? 3 : 5;
      const key = this.#bytes.toString("utf8", at + header, end);
      if (keys.has(key)) throw malformed(at, `the key ${describe(key)} for the second time in a map`);
      if (key === "__proto__") throw malformed(at, 'the key "__proto__", which is not allowed');
      keys.add(key);
      at = this.value(end, depth + 1);
    }
    return at;
  }
}

/** The MessagePack bytes of a value as pieces. `Parts` become bin. */
export const encodeMsgpack = (value: unknown): Parts => {
  const pieces: Uint8Array[] = [];
  write(value, pieces);
  return new Parts(pieces);
};

const write = (value: unknown, pieces: Uint8Array[]): void => {
  if (value instanceof Parts) {
    pieces.push(header(0xc6, value.length));
    // No spread: a file of very many tensors has as many pieces.
    for (const piece of value.pieces) pieces.push(piece);
  } else if (hasSignedZero(value)) {
    pieces.push(numbers(value));
  } else if (Array.isArray(value) && value.some(isOurs)) {
    pieces.push(header(0xdd, value.length));
    for (const item of value) write(item, pieces);
  } else if (isOurs(value)) {
    const entries = Object.entries(value as object).filter(([, item]) => item !== undefined);
    pieces.push(header(0xdf, entries.length));
    for (const [key, item] of entries) {
      pieces.push(pack(key));
      write(item, pieces);
    }
  } else pieces.push(pack(value));
};

/** A list of values of a tensor with a zero below zero among them. */
const hasSignedZero = (value: unknown): value is readonly (number | string)[] => Array.isArray(value) && value.some((item) => Object.is(item, -0));

/** Numbers as float64: msgpackr writes a zero as an integer, and so loses its sign. NaN and infinities are their names. */
const numbers = (values: readonly (number | string)[]): Buffer => {
  const bytes = Buffer.allocUnsafe(5 + values.length * MAX_NUMBER_BYTES);
  header(0xdd, values.length).copy(bytes);
  let at = 5;
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

/** msgpackr reuses its buffer, so what it gives is copied; it is small. */
const pack = (value: unknown): Uint8Array => Uint8Array.from(packr.pack(value));

/** Whether a value is or holds what msgpackr is not to write. It makes an extension type of undefined, which JSON leaves out. */
const isOurs = (value: unknown): boolean =>
  value === undefined ||
  value instanceof Parts ||
  hasSignedZero(value) ||
  (typeof value === "object" && value !== null && !(value instanceof Uint8Array) && Object.values(value).some(isOurs));

/** A type byte and a length of four bytes. */
const header = (type: number, length: number): Buffer => {
  const bytes = Buffer.alloc(5);
  bytes[0] = type;
  bytes.writeUInt32BE(length, 1);
  return bytes;
};
