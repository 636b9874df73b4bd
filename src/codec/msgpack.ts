/**
 * MessagePack bodies. Reading refuses what stepd never takes and what a decoder might stumble over; blobs come out as views,
 * not copies. Values go into bytes with each blob's header in front of the blob's own pieces, which are not copied. Both are
 * written out here: a walk and then msgpackr took three times as long for a small step (measured).
 */
import { isUtf8 } from "node:buffer";
import { describe, StepdError } from "../errors/errors.ts";
import { MAX_DEPTH, MAX_VALUES } from "./_text.ts";
import { Writer } from "./_writer.ts";
import type { Parts } from "./parts.ts";

/** Bytes of all strings of a body together; V8 has a limit of 512 MiB for one. Blobs are bin. */
const MAX_STRING_BYTES = 2 ** 28;

/** In bodies of up to this length values are made while they are counted: there cannot be many. */
const SMALL_BODY = 65536;

const malformed = (at: number, problem: string): StepdError =>
  new StepdError("PARSE_ERROR", `The body is not valid MessagePack: ${problem} at byte ${at}`, { expected: "one MessagePack value", found: problem });

/** The value of a body; `onValues` is told how many values it has before they are made, or are used where there are few. Throws PARSE_ERROR. */
export const decodeMsgpack = (bytes: Buffer, onValues: (count: number) => void = () => {}): unknown => {
  if (bytes.length > SMALL_BODY) {
    const walk = new Reader(bytes, false);
    walk.whole();
    onValues(walk.values);
    return new Reader(bytes, true).whole();
  }
  const reader = new Reader(bytes, true);
  const value = reader.whole();
  onValues(reader.values);
  return value;
};

/** Short strings that were read lately, by a hash of their bytes: names of fields and methods come again with each call. */
const KEPT_STRINGS = 256;
const MAX_KEPT = 24;
const kept: (string | undefined)[] = new Array(KEPT_STRINGS).fill(undefined);

const EMPTY = Buffer.alloc(0);

/** A number where it is exact. */
const exact = (value: bigint): number | bigint => (value >= -EXACT && value <= EXACT ? Number(value) : value);
const EXACT = 2n ** 53n;

/** Reads values, or only passes over them. Extension types, keys that are not strings, and keys that stand twice are refused. */
class Reader {
  readonly #bytes: Buffer;
  readonly #makes: boolean;
  #dataView: DataView | undefined;
  #at = 0;
  #values = 0;
  #stringBytes = 0;

  constructor(bytes: Buffer, makes: boolean) {
    this.#bytes = bytes;
    this.#makes = makes;
  }

  /** How many values it has passed. */
  get values(): number {
    return this.#values;
  }

  /** For floats, which DataView reads three times as fast as Buffer. */
  get #view(): DataView {
    this.#dataView ??= new DataView(this.#bytes.buffer, this.#bytes.byteOffset, this.#bytes.length);
    return this.#dataView;
  }

  /** The one value of the body. */
  whole(): unknown {
    const value = this.#value(0);
    const rest = this.#bytes.length - this.#at;
    if (rest > 0) throw malformed(this.#at, `${rest} bytes after the value`);
    return value;
  }

  #value(depth: number): unknown {
    const start = this.#at;
    this.#count(depth);
    const type = this.#bytes[this.#take(1)] as number;
    if (type <= 0x7f) return type;
    if (type >= 0xe0) return type - 0x100;
    if (type <= 0x8f) return this.#map(type & 0x0f, depth);
    if (type <= 0x9f) return this.#array(type & 0x0f, depth);
    if (type <= 0xbf) return this.#string(type & 0x1f);
    switch (type) {
      case 0xc0:
        return null;
      case 0xc2:
        return false;
      case 0xc3:
        return true;
      case 0xc4:
        return this.#blob(this.#length(1));
      case 0xc5:
        return this.#blob(this.#length(2));
      case 0xc6:
        return this.#blob(this.#length(4));
      case 0xca:
        return this.#view.getFloat32(this.#take(4));
      case 0xcb:
        return this.#view.getFloat64(this.#take(8));
      case 0xcc:
        return this.#length(1);
      case 0xcd:
        return this.#length(2);
      case 0xce:
        return this.#length(4);
      case 0xcf:
        return exact(this.#bytes.readBigUInt64BE(this.#take(8)));
      case 0xd0:
        return this.#bytes.readInt8(this.#take(1));
      case 0xd1:
        return this.#bytes.readInt16BE(this.#take(2));
      case 0xd2:
        return this.#bytes.readInt32BE(this.#take(4));
      case 0xd3:
        return exact(this.#bytes.readBigInt64BE(this.#take(8)));
      case 0xd9:
        return this.#string(this.#length(1));
      case 0xda:
        return this.#string(this.#length(2));
      case 0xdb:
        return this.#string(this.#length(4));
      case 0xdc:
        return this.#array(this.#length(2), depth);
      case 0xdd:
        return this.#array(this.#length(4), depth);
      case 0xde:
        return this.#map(this.#length(2), depth);
      case 0xdf:
        return this.#map(this.#length(4), depth);
      case 0xc1:
        throw malformed(start, "the byte 0xc1, which no value starts with");
      default:
        throw malformed(start, "an extension type, which no method takes");
    }
  }

  /** Passes over bytes and returns where they start. */
  #take(count: number): number {
    const at = this.#at;
    const missing = at + count - this.#bytes.length;
    if (missing > 0) throw malformed(at, `the value ends early: ${missing} bytes are missing`);
    this.#at = at + count;
    return at;
  }

  /** A whole number without a sign. */
  #length(size: 1 | 2 | 4): number {
    const at = this.#take(size);
    if (size === 1) return this.#bytes[at] as number;
    return size === 2 ? this.#bytes.readUInt16BE(at) : this.#bytes.readUInt32BE(at);
  }

  #blob(length: number): Buffer {
    const at = this.#take(length);
    return this.#makes ? this.#bytes.subarray(at, at + length) : EMPTY;
  }

  /** Where a string of so many bytes starts, all of them checked. */
  #text(length: number): number {
    const at = this.#take(length);
    this.#stringBytes += length;
    if (this.#stringBytes > MAX_STRING_BYTES) throw malformed(at, `more than ${MAX_STRING_BYTES} bytes of strings`);
    if (length > 0 && !isUtf8(this.#bytes.subarray(at, at + length))) throw malformed(at, "a string that is not UTF-8");
    return at;
  }

  #string(length: number): string {
    return this.#short(length) ?? this.#long(length, this.#makes);
  }

  #long(length: number, makes: boolean): string {
    const at = this.#text(length);
    return makes ? this.#bytes.toString("utf8", at, at + length) : "";
  }

  /** A string of a few bytes that is all ASCII; undefined for another. */
  #short(length: number): string | undefined {
    const bytes = this.#bytes;
    const start = this.#at;
    if (length > MAX_KEPT || start + length > bytes.length) return undefined;
    let hash = length;
    let all = 0;
    for (let at = start; at < start + length; at++) {
      const byte = bytes[at] as number;
      hash = Math.imul(hash, 31) + byte;
      all |= byte;
    }
    if (all > 0x7f) return undefined;
    this.#at = start + length;
    this.#stringBytes += length;
    const place = hash & (KEPT_STRINGS - 1);
    const known = kept[place];
    if (known !== undefined && known.length === length) {
      let same = 0;
      while (same < length && known.charCodeAt(same) === bytes[start + same]) same++;
      if (same === length) return known;
    }
    const text = bytes.toString("latin1", start, start + length);
    kept[place] = text;
    return text;
  }

  #array(count: number, depth: number): readonly unknown[] {
    // Grown as values come: a count alone must not take memory.
    const items: unknown[] = [];
    for (let i = 0; i < count; i++) {
      const item = this.#value(depth + 1);
      if (this.#makes) items.push(item);
    }
    return items;
  }

  #map(count: number, depth: number): Readonly<Record<string, unknown>> {
    const items: Record<string, unknown> = {};
    const passed = this.#makes ? undefined : new Set<string>();
    for (let i = 0; i < count; i++) {
      const at = this.#at;
      const key = this.#key(depth + 1);
      if (passed ? passed.has(key) : Object.hasOwn(items, key)) throw malformed(at, `the key ${describe(key)} for the second time in a map`);
      if (key === "__proto__") throw malformed(at, 'the key "__proto__", which is not allowed');
      const item = this.#value(depth + 1);
      if (passed) passed.add(key);
      else items[key] = item;
    }
    return items;
  }

  #key(depth: number): string {
    const start = this.#at;
    this.#count(depth);
    const type = this.#bytes[this.#take(1)] as number;
    if (!((type >= 0xa0 && type <= 0xbf) || (type >= 0xd9 && type <= 0xdb))) throw malformed(start, "a map key that is not a string");
    const length = type <= 0xbf ? type & 0x1f : this.#length(type === 0xd9 ? 1 : type === 0xda ? 2 : 4);
    return this.#short(length) ?? this.#long(length, true);
  }

  /** Counts a value before it is read. */
  #count(depth: number): void {
    if (depth > MAX_DEPTH) throw malformed(this.#at, `nesting deeper than ${MAX_DEPTH}`);
    if (++this.#values > MAX_VALUES) throw malformed(this.#at, `more than ${MAX_VALUES} values`);
  }
}

/** The MessagePack bytes of a value as pieces. `Parts` become bin, and their pieces stay what they are. */
export const encodeMsgpack = (value: unknown): Parts => {
  const writer = new Writer();
  writer.value(value);
  return writer.end();
};
