/** Writes MessagePack: what is small into memory of its own, blobs as the pieces that they are. */
import { Parts } from "./parts.ts";

/** A writer's first and largest room. */
const FIRST_ROOM = 256;
const MAX_ROOM = 2 ** 20;

/** Strings of up to this many characters are written one by one, where they are ASCII. */
const SHORT_STRING = 48;

export class Writer {
  readonly #pieces: Uint8Array[] = [];
  #bytes = Buffer.allocUnsafe(FIRST_ROOM);
  #start = 0;
  #at = 0;

  end(): Parts {
    this.#flush();
    return new Parts(this.#pieces);
  }

  value(value: unknown): void {
    if (typeof value === "number") this.#number(value);
    else if (typeof value === "string") this.#string(value);
    else if (typeof value === "boolean") this.#byte(value ? 0xc3 : 0xc2);
    else if (typeof value === "bigint") this.#bigint(value);
    else if (value === undefined || value === null) this.#byte(0xc0);
    else if (value instanceof Parts) this.#blob(value.length, value.pieces);
    else if (value instanceof Uint8Array) this.#blob(value.length, [value]);
    else if (Array.isArray(value)) {
      this.#header(value.length, 0x90, 0xdc);
      for (const item of value) this.value(item);
    } else this.#map(value as Readonly<Record<string, unknown>>);
  }

  /** Members without a value are left out, as in JSON. */
  #map(value: Readonly<Record<string, unknown>>): void {
    const keys = Object.keys(value);
    let count = 0;
    for (const key of keys) if (value[key] !== undefined) count++;
    this.#header(count, 0x80, 0xde);
    for (const key of keys) {
      const item = value[key];
      if (item === undefined) continue;
      this.#string(key);
      this.value(item);
    }
  }

  #blob(length: number, pieces: readonly Uint8Array[]): void {
    const at = this.#room(5);
    this.#bytes[at] = 0xc6;
    this.#bytes.writeUInt32BE(length, at + 1);
    this.#flush();
    // No spread: a file of very many tensors has as many pieces.
    for (const piece of pieces) this.#pieces.push(piece);
  }

  /** The head of a map or an array: with its count in the type's byte, or in two bytes or four after it. */
  #header(count: number, few: number, many: number): void {
    if (count <= 15) this.#byte(few | count);
    else if (count <= 0xffff) this.#whole(many, 2, count);
    else this.#whole(many + 1, 4, count);
  }

  #byte(value: number): void {
    // First the room: it may be in other memory.
    const at = this.#room(1);
    this.#bytes[at] = value;
  }

  /** A type's byte and a whole number without a sign. */
  #whole(type: number, size: 1 | 2 | 4, value: number): void {
    const at = this.#room(1 + size);
    this.#bytes[at] = type;
    if (size === 1) this.#bytes[at + 1] = value;
    else if (size === 2) this.#bytes.writeUInt16BE(value, at + 1);
    else this.#bytes.writeUInt32BE(value, at + 1);
  }

  #number(value: number): void {
    // The sign of a zero is a part of a tensor's bits.
    if (!Number.isInteger(value) || value < -(2 ** 31) || value > 0xffffffff || Object.is(value, -0)) {
      const at = this.#room(9);
      this.#bytes[at] = 0xcb;
      this.#bytes.writeDoubleBE(value, at + 1);
    } else if (value >= -32 && value <= 0x7f) this.#byte(value & 0xff);
    else if (value >= 0) {
      if (value <= 0xff) this.#whole(0xcc, 1, value);
      else if (value <= 0xffff) this.#whole(0xcd, 2, value);
      else this.#whole(0xce, 4, value);
    } else if (value >= -0x80) this.#whole(0xd0, 1, value & 0xff);
    else if (value >= -0x8000) this.#whole(0xd1, 2, value & 0xffff);
    else this.#whole(0xd2, 4, value >>> 0);
  }

  #bigint(value: bigint): void {
    const at = this.#room(9);
    this.#bytes[at] = value < 0n ? 0xd3 : 0xcf;
    if (value < 0n) this.#bytes.writeBigInt64BE(value, at + 1);
    else this.#bytes.writeBigUInt64BE(value, at + 1);
  }

  #string(text: string): void {
    if (text.length <= SHORT_STRING && this.#ascii(text)) return;
    const length = Buffer.byteLength(text);
    if (length <= 31) this.#byte(0xa0 | length);
    else if (length <= 0xff) this.#whole(0xd9, 1, length);
    else if (length <= 0xffff) this.#whole(0xda, 2, length);
    else this.#whole(0xdb, 4, length);
    const at = this.#room(length);
    this.#bytes.write(text, at, length, "utf8");
  }

  /** Writes a short string that is all ASCII; false, and nothing written, for another. */
  #ascii(text: string): boolean {
    const { length } = text;
    const head = length <= 31 ? 1 : 2;
    const start = this.#room(head + length);
    const bytes = this.#bytes;
    for (let i = 0; i < length; i++) {
      const code = text.charCodeAt(i);
      if (code > 0x7f) {
        this.#at = start;
        return false;
      }
      bytes[start + head + i] = code;
    }
    if (head === 1) bytes[start] = 0xa0 | length;
    else {
      bytes[start] = 0xd9;
      bytes[start + 1] = length;
    }
    return true;
  }

  /** Where so many more bytes go. */
  #room(count: number): number {
    if (this.#at + count > this.#bytes.length) {
      this.#flush();
      this.#bytes = Buffer.allocUnsafe(Math.max(count, Math.min(this.#bytes.length * 4, MAX_ROOM)));
      this.#start = 0;
      this.#at = 0;
    }
    const at = this.#at;
    this.#at += count;
    return at;
  }

  #flush(): void {
    if (this.#at > this.#start) this.#pieces.push(this.#bytes.subarray(this.#start, this.#at));
    this.#start = this.#at;
  }
}
