/** Tests MessagePack bodies: decoded values, refusals before decoding, and blobs without copies. */
import assert from "node:assert/strict";
import { test } from "node:test";
import * as msgpack from "../../src/codec/msgpack.ts";
import { Parts } from "../../src/codec/parts.ts";
import { atOnce } from "../../src/codec/turns.ts";
import { pack, unpack } from "../support/service.ts";

const decodeMsgpack = (bytes: Buffer, onValues?: (count: number) => void) => atOnce(msgpack.decodeMsgpack(bytes, onValues));
const encodeMsgpack = (value: unknown) => atOnce(new msgpack.MsgpackWriter().encode(value));

const bytes = (...items: readonly (number | string | Uint8Array)[]): Buffer =>
  Buffer.concat(items.map((item) => (typeof item === "number" ? Buffer.from([item]) : Buffer.from(item as string))));

const u32 = (value: number): Buffer => {
  const buffer = Buffer.alloc(4);
  buffer.writeUInt32BE(value);
  return buffer;
};

const VALUES: readonly unknown[] = [
  null,
  false,
  127,
  128,
  -32,
  -33,
  65536,
  -(2 ** 40),
  1.5,
  1e300,
  "",
  "é𝄞",
  "x".repeat(31),
  "x".repeat(32),
  "x".repeat(300),
  "x".repeat(70_000),
  [],
  {},
  Array.from({ length: 20 }, (_, i) => i),
  Array.from({ length: 70_000 }, (_, i) => i),
  Object.fromEntries(Array.from({ length: 20 }, (_, i) => [`k${i}`, [i]])),
  { constructor: 1, toString: 2, "": 3, 7: 4 },
];

for (const value of VALUES) {
  test(`decodes ${JSON.stringify(value).slice(0, 60)}`, () => {
    assert.deepEqual(decodeMsgpack(pack(value)), value);
  });
}

test("decodes NaN, infinities, integers above 2^53 and the empty bin", () => {
  assert.deepEqual(
    decodeMsgpack(bytes(0x95, 0xca, u32(0x7fc00000), 0xca, u32(0xff800000), 0xcf, u32(0xffffffff), u32(0xffffffff), 0xcf, u32(0), u32(9), 0xc4, 0)),
    // Every number decodes to a float64, as in JSON.
    [Number.NaN, Number.NEGATIVE_INFINITY, 2 ** 64, 9, Buffer.alloc(0)],
  );
});

/** Returns a map with `count` keys. */
const packedMap = (count: number): Buffer =>
  Buffer.concat(Array.from({ length: count + 1 }, (_, index) => (index === 0 ? bytes(0xdf, u32(count)) : bytes(0xa7, String(1e6 + index), 0xc0))));

const REFUSED: Readonly<Record<string, readonly [Buffer, RegExp]>> = {
  "an empty body": [bytes(), /ends early/],
  "the byte 0xc1": [bytes(0x91, 0xc1), /0xc1.* at byte 1/],
  "bytes after the value": [bytes(0xc0, 0xc0, 0xc0), /2 bytes after the value at byte 1/],
  "a fixext": [bytes(0xd4, 1, 0), /extension type/],
  "an ext8": [bytes(0xc7, 1, 0, 0), /extension type/],
  "a timestamp": [bytes(0xd6, 0xff, u32(0)), /extension type/],
  "an array32 of 2^32-1 values in 5 bytes": [bytes(0xdd, u32(0xffffffff)), /ends early/],
  "a map32 of 2^32-1 pairs in 5 bytes": [bytes(0xdf, u32(0xffffffff)), /ends early/],
  "a bin32 of 2^32-1 bytes in 5 bytes": [bytes(0xc6, u32(0xffffffff)), /4294967295 bytes are missing/],
  "a str32 of 2^32-1 bytes in 5 bytes": [bytes(0xdb, u32(0xffffffff)), /4294967295 bytes are missing/],
  "a length that is cut off": [bytes(0xdd, 0, 0), /ends early/],
  "a float that is cut off": [bytes(0xcb, 0, 0), /ends early/],
  "an array 65 deep": [bytes("", ...Array<number>(65).fill(0x91), 0xc0), /nesting deeper than 64/],
  "an array a million deep": [Buffer.alloc(1e6, 0x91), /nesting deeper than 64/],
  "maps 65 deep": [
    bytes(
      "",
      ...Array<string>(65)
        .fill("\u0081\u00a1a")
        .map((text) => Buffer.from(text, "latin1")),
      0xc0,
    ),
    /nesting deeper than 64/,
  ],
  "an array of 4194304 empty maps": [bytes(0xdd, u32(4_194_304), Buffer.alloc(4_194_304, 0x80)), /more than 4194304 values/],
  "strings of more than 256 MiB": [
    bytes(0x92, 0xdb, u32(2 ** 27), Buffer.alloc(2 ** 27, "a"), 0xdb, u32(2 ** 27 + 1), Buffer.alloc(2 ** 27 + 1, "a")),
    /bytes of strings/,
  ],
  "a string that is not UTF-8": [bytes(0xa2, 0xc3, 0x28), /not UTF-8/],
  "a key that is not UTF-8": [bytes(0x81, 0xa1, 0xff, 0xc0), /not UTF-8/],
  "the same key twice": [bytes(0x82, 0xa1, "a", 0xc0, 0xa1, "a", 0xc0), /the key "a" for the second time/],
  "the same key twice, in two lengths of header": [bytes(0x82, 0xa1, "a", 0xc0, 0xd9, 1, "a", 0xc0), /the key "a" for the second time/],
  "131073 keys in a map": [packedMap(131_073), /more than 131072 keys in a map/],
  "the key __proto__": [bytes(0x81, 0xa9, "__proto__", 0x80), /"__proto__"/],
  "a key that is a number": [bytes(0x81, 1, 0xc0), /a map key that is not a string/],
  "a key that is bin": [bytes(0x81, 0xc4, 1, "a", 0xc0), /a map key that is not a string/],
};

test("accepts an array of 4194303 numbers, 131072 keys in a map, and 64 levels of nesting", () => {
  assert.equal((decodeMsgpack(bytes(0xdd, u32(4_194_303), Buffer.alloc(4_194_303))) as unknown[]).length, 4_194_303);
  assert.equal(Object.keys(decodeMsgpack(packedMap(131_072)) as object).length, 131_072);
  decodeMsgpack(bytes(...Array<number>(64).fill(0x91), 0xc0));
});

for (const [name, [body, message]] of Object.entries(REFUSED)) {
  test(`refuses ${name}`, () => {
    assert.throws(() => decodeMsgpack(body), { code: "PARSE_ERROR", message });
  });
}

test("decoded blobs are views of the body", () => {
  const body = Buffer.from(new SharedArrayBuffer(64));
  body.fill(pack({ name: "a name of more than fifteen bytes", blob: Buffer.from("abc") }), 8);
  const length = pack({ name: "a name of more than fifteen bytes", blob: Buffer.from("abc") }).length;
  const { name, blob } = decodeMsgpack(body.subarray(8, 8 + length)) as { name: string; blob: Buffer };
  assert.equal(name, "a name of more than fifteen bytes");
  assert.equal(blob.buffer, body.buffer);
  assert.equal(body.subarray(blob.byteOffset, blob.byteOffset + 3).toString(), "abc");
});

test("encodes blobs as separate pieces without a copy, and everything else like msgpackr", () => {
  const pieces = [Buffer.from("ab"), Buffer.from("cde")];
  const parts = encodeMsgpack([{ result: { blob: new Parts(pieces), none: undefined, other: { x: [1, "é"] } }, id: 2n ** 63n }, 5]);
  assert.deepEqual(unpack(Buffer.concat(parts.pieces)), [{ result: { blob: Buffer.from("abcde"), other: { x: [1, "é"] } }, id: 2n ** 63n }, 5]);
  for (const piece of pieces) assert.ok(parts.pieces.includes(piece));
  assert.equal(parts.length, Buffer.concat(parts.pieces).length);
});

test("encodes members whose names are special in JavaScript", () => {
  const tensors = { constructor: { shape: [1] }, toJSON: { shape: [2] }, toString: { shape: [3] }, valueOf: { shape: [4] } };
  assert.deepEqual(unpack(Buffer.concat(encodeMsgpack({ tensors }).pieces)), { tensors });
});

test("encodes many values without overwriting earlier ones", () => {
  const value = { a: Array.from({ length: 1000 }, (_, i) => `name ${i}`), blob: new Parts([Buffer.from("z")]), b: "y".repeat(100_000) };
  assert.deepEqual(unpack(Buffer.concat(encodeMsgpack(value).pieces)), { ...value, blob: Buffer.from("z") });
});

test("keeps the sign of zero", () => {
  const { values } = unpack(Buffer.concat(encodeMsgpack({ values: [0, -0, "NaN", 1.5, 7] }).pieces)) as { values: unknown[] };
  assert.deepEqual(values, [0, -0, "NaN", 1.5, 7]);
});

test("omits undefined members, even without other special values", () => {
  assert.deepEqual(unpack(Buffer.concat(encodeMsgpack({ error: { name: "X", tensors: undefined } }).pieces)), { error: { name: "X" } });
});
