/**
 * MessagePack bodies. Values come out of bytes by msgpackr, after a walk over the bytes that refuses what stepd never takes
 * and what a decoder might stumble over; blobs come out as views, not copies. Values go into bytes with each blob's header
 * in front of the blob's own pieces, because msgpackr would copy them (289 ms for 256 MiB, measured).
 */
import { Packr, Unpackr } from "msgpackr";
import { StepdError } from "../errors/errors.ts";
import { Parts } from "./parts.ts";

const MAX_DEPTH = 64;

// "auto" gives a number where it is exact and else a bigint; its type declaration lacks it.
const unpackr = new Unpackr({ useRecords: false, mapsAsObjects: true, int64AsType: "auto" as "number" });
const packr = new Packr({ useRecords: false, variableMapSize: true });

const malformed = (at: number, problem: string): StepdError =>
  new StepdError("PARSE_ERROR", `The body is not valid MessagePack: ${problem} at byte ${at}`, { expected: "one MessagePack value", found: problem });

/** The value of a body. Throws PARSE_ERROR. */
export const decodeMsgpack = (bytes: Buffer): unknown => {
  const end = walk(bytes, 0, 0);
  if (end !== bytes.length) throw malformed(end, `${bytes.length - end} bytes after the value`);
  return unpackr.unpack(bytes);
};

/** Passes over one value and returns where it ends. Extension types, keys that are not strings, and keys that stand twice are refused. */
const walk = (bytes: Buffer, start: number, depth: number): number => {
  if (depth > MAX_DEPTH) throw malformed(start, `nesting deeper than ${MAX_DEPTH}`);
  const need = (at: number, count: number): number => {
    if (at + count > bytes.length) throw malformed(at, `the value ends early: ${count} bytes are missing`);
    return at + count;
  };
  need(start, 1);
  const type = bytes[start] as number;
  const at = start + 1;
  const length = (size: 1 | 2 | 4): number => {
    need(at, size);
    return bytes.readUIntBE(at, size);
  };
  if (type <= 0x7f || type >= 0xe0) return at;
  if (type <= 0x8f) return walkMap(bytes, at, type & 0x0f, depth);
  if (type <= 0x9f) return walkArray(bytes, at, type & 0x0f, depth);
  if (type <= 0xbf) return need(at, type & 0x1f);
  switch (type) {
    case 0xc0:
    case 0xc2:
    case 0xc3:
      return at;
    case 0xc4:
    case 0xd9:
      return need(at + 1, length(1));
    case 0xc5:
    case 0xda:
      return need(at + 2, length(2));
    case 0xc6:
    case 0xdb:
      return need(at + 4, length(4));
    case 0xcc:
    case 0xd0:
      return need(at, 1);
    case 0xcd:
    case 0xd1:
      return need(at, 2);
    case 0xca:
    case 0xce:
    case 0xd2:
      return need(at, 4);
    case 0xcb:
    case 0xcf:
    case 0xd3:
      return need(at, 8);
    case 0xdc:
      return walkArray(bytes, at + 2, length(2), depth);
    case 0xdd:
      return walkArray(bytes, at + 4, length(4), depth);
    case 0xde:
      return walkMap(bytes, at + 2, length(2), depth);
    case 0xdf:
      return walkMap(bytes, at + 4, length(4), depth);
    case 0xc1:
      throw malformed(start, "the byte 0xc1, which no value starts with");
    default:
      throw malformed(start, "an extension type, which no method takes");
  }
};

const walkArray = (bytes: Buffer, start: number, count: number, depth: number): number => {
  let at = start;
  for (let i = 0; i < count; i++) at = walk(bytes, at, depth + 1);
  return at;
};

const walkMap = (bytes: Buffer, start: number, count: number, depth: number): number => {
  const keys = new Set<string>();
  let at = start;
  for (let i = 0; i < count; i++) {
    const type = bytes[at] ?? 0;
    const isString = (type >= 0xa0 && type <= 0xbf) || (type >= 0xd9 && type <= 0xdb);
    if (!isString && at < bytes.length) throw malformed(at, "a map key that is not a string");
    const end = walk(bytes, at, depth + 1);
    const header = type <= 0xbf ? 1 : type === 0xd9 ? 2 : type === 0xda ? 3 : 5;
    const key = bytes.toString("utf8", at + header, end);
    if (keys.has(key)) throw malformed(at, `the key ${JSON.stringify(key)} for the second time in a map`);
    if (key === "__proto__") throw malformed(at, 'the key "__proto__", which is not allowed');
    keys.add(key);
    at = walk(bytes, end, depth + 1);
  }
  return at;
};

/** The MessagePack bytes of a value as pieces. `Parts` become bin. */
export const encodeMsgpack = (value: unknown): Parts => {
  const pieces: Uint8Array[] = [];
  write(value, pieces);
  return new Parts(pieces);
};

const write = (value: unknown, pieces: Uint8Array[]): void => {
  if (value instanceof Parts) {
    pieces.push(header(0xc6, value.length), ...value.pieces);
  } else if (Array.isArray(value) && value.some(holdsParts)) {
    pieces.push(header(0xdd, value.length));
    for (const item of value) write(item, pieces);
  } else if (holdsParts(value)) {
    const entries = Object.entries(value as object).filter(([, item]) => item !== undefined);
    pieces.push(header(0xdf, entries.length));
    for (const [key, item] of entries) {
      pieces.push(pack(key));
      write(item, pieces);
    }
  } else pieces.push(pack(value));
};

/** msgpackr reuses its buffer, so what it gives is copied; it is small. */
const pack = (value: unknown): Uint8Array => Uint8Array.from(packr.pack(value));

const holdsParts = (value: unknown): boolean =>
  value instanceof Parts || (typeof value === "object" && value !== null && !(value instanceof Uint8Array) && Object.values(value).some(holdsParts));

/** A type byte and a length of four bytes. */
const header = (type: number, length: number): Buffer => {
  const bytes = Buffer.alloc(5);
  bytes[0] = type;
  bytes.writeUInt32BE(length, 1);
  return bytes;
};
