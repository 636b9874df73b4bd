/** Tests JSON bodies: decoded values, refusals, and base64 in pieces of any size. */
import assert from "node:assert/strict";
import { test } from "node:test";
import * as json from "../../src/codec/json.ts";
import { Parts } from "../../src/codec/parts.ts";
import { atOnce } from "../../src/codec/turns.ts";
import { random } from "../support/tensors.ts";

const decodeJson = (bytes: Buffer, onValues?: (count: number) => void) => atOnce(json.decodeJson(bytes, onValues));
const encodeJson = (value: unknown) => atOnce(json.encodeJson(value));

const shared = (text: string | Uint8Array): Buffer => {
  const bytes = Buffer.from(text as string);
  const buffer = Buffer.from(new SharedArrayBuffer(bytes.length));
  if (bytes.length > 0) buffer.fill(bytes, 0, bytes.length);
  return buffer;
};

const textOf = (parts: Parts): string => Buffer.concat(parts.pieces).toString();

const VALUES: readonly unknown[] = [
  null,
  true,
  0,
  -1.5,
  1e-300,
  "",
  'a"b\\c\n\u0001 é 𝄞',
  [],
  {},
  { "": [1, [2, { x: "]}" }]], "\\": '"', '"': "\\", "k:": ":" },
  ["{", "[", ",", ":", '","', "\\\\"],
];

for (const value of VALUES) {
  test(`decodes ${JSON.stringify(value)} like JSON.parse, in any pieces`, () => {
    assert.deepEqual(decodeJson(shared(JSON.stringify(value))), value);
    assert.deepEqual(decodeJson(shared(JSON.stringify(value, null, 3))), value);
  });
}

/** Returns the text of an object with `count` keys. */
const objectText = (count: number): string => `{${Array.from({ length: count }, (_, index) => `"${index}":0`).join(",")}}`;

const REFUSED: Readonly<Record<string, readonly [string | Uint8Array, RegExp]>> = {
  "an empty body": ["", /JSON/],
  "a text that ends in a string": ['{"a', /JSON/],
  "a text that ends after a backslash": ['"\\', /JSON/],
  "the same key twice": ['{"a":1,"b":2,"a":3}', /the key "a" stands twice/],
  "the same key twice, once escaped": ['{"a":1,"\\u0061":3}', /the key "a" stands twice/],
  "the empty key twice": ['{"":1,"":2}', /the key "" stands twice/],
  "131073 keys in an object": [objectText(131_073), /more than 131072 keys in an object/],
  "the same key twice, deep inside": ['[{"x":[{"y":{"k":1 , "k" :2}}]}]', /the key "k" stands twice/],
  "the key __proto__": ['{"__proto__":{}}', /"__proto__" is not allowed/],
  "the key __proto__, escaped": ['{"\\u005f_proto__":{}}', /"__proto__" is not allowed/],
  "half of a surrogate pair in a key": ['{"\\ud800":1}', /half of a surrogate pair/],
  "bytes that are not UTF-8": [Buffer.from([0x22, 0xff, 0x22]), /not UTF-8/],
  "a byte order mark": ["\ufeff{}", /JSON/],
  "arrays 65 deep": ["[".repeat(65) + "]".repeat(65), /nesting deeper than 64/],
  "arrays a million deep": ["[".repeat(1e6), /nesting deeper than 64/],
  "objects 65 deep": [`${'{"a":'.repeat(65)}0${"}".repeat(65)}`, /nesting deeper than 64/],
  "an array of 4194304 numbers": [`[${"0,".repeat(4_194_303)}0]`, /more than 4194304 values/],
  "five million objects": [`[${"{},".repeat(5e6)}0]`, /more than 4194304 values/],
  NaN: ["[NaN]", /JSON/],
  "two values": ["{} {}", /JSON/],
};

for (const [name, [text, message]] of Object.entries(REFUSED)) {
  test(`refuses ${name}`, () => {
    assert.throws(() => decodeJson(shared(text)), { code: "PARSE_ERROR", message });
  });
}

test("accepts equal keys in different objects, and strings that look like keys", () => {
  assert.deepEqual(decodeJson(shared('[{"a":"a"},{"a":["a","a"]}]')), [{ a: "a" }, { a: ["a", "a"] }]);
});

test("accepts an array of 4194303 numbers, and 131072 keys in an object", () => {
  assert.equal((decodeJson(shared(`[${"0,".repeat(4_194_302)}0]`)) as unknown[]).length, 4_194_303);
  assert.equal(Object.keys(decodeJson(shared(objectText(131_072))) as object).length, 131_072);
});

test("accepts 64 levels of nesting", () => {
  decodeJson(shared("[".repeat(64) + "]".repeat(64)));
});

test("decoding time is proportional to the length, however many quotes are escaped", () => {
  const start = performance.now();
  assert.throws(() => decodeJson(shared(`"${'\\"'.repeat(500_000)}`)), { code: "PARSE_ERROR" });
  assert.throws(() => decodeJson(shared(`"${"\\".repeat(1_000_001)}`)), { code: "PARSE_ERROR" });
  assert.ok(performance.now() - start < 60_000, "a scan that starts again at each quote takes over 10 minutes");
});

test("decodes a long base64 string with escaped slashes", () => {
  const value = decodeJson(shared(`"${"AAA\\/".repeat(4_000_000)}"`)) as string;
  assert.equal(value.length, 16_000_000);
});

test("a long key gives a short message", () => {
  const key = "k".repeat(100_000);
  assert.throws(
    () => decodeJson(shared(`{"${key}":1,"${key}":2}`)),
    (error: Error) => error.message.length < 500,
  );
});

test("encodes blobs as base64, in any division into pieces", () => {
  const next = random(5);
  for (let round = 0; round < 300; round++) {
    const whole = Buffer.from(Array.from({ length: Math.floor(Math.abs(next()) * 40) }, () => Math.floor(Math.abs(next()) * 256)));
    const pieces: Buffer[] = [];
    for (let at = 0; at < whole.length; ) {
      const end = at + Math.floor(Math.abs(next()) * 6);
      pieces.push(whole.subarray(at, end));
      at = end;
    }
    const parts = encodeJson({ before: 1, blob: new Parts(pieces), list: [new Parts([]), "x"] });
    assert.equal(parts.length, Buffer.concat(parts.pieces).length);
    assert.deepEqual(JSON.parse(textOf(parts)), { before: 1, blob: whole.toString("base64"), list: ["", "x"] });
  }
});

test("encodes a blob of several base64 pieces from shared memory", () => {
  const bytes = shared(Buffer.alloc(7 * 2 ** 20 + 1, "0123456789"));
  const { blob } = JSON.parse(textOf(encodeJson({ blob: new Parts([bytes.subarray(0, 5), bytes.subarray(5)]) }))) as { blob: string };
  assert.ok(Buffer.from(blob, "base64").equals(bytes));
});

test("keeps the sign of zero and all digits of integers above 2^53", () => {
  assert.equal(textOf(encodeJson({ id: 2n ** 64n - 1n, values: [-0, 0, 1] })), '{"id":18446744073709551615,"values":[-0,0,1]}');
});
