/**
 * Tests bodies with many members. The server decodes and encodes them in slices, with other calls in between. The result must
 * equal that of a single pass.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Packr, Unpackr } from "msgpackr";
import { decodeJson, encodeJson } from "../../src/codec/json.ts";
import { Members, plainOf } from "../../src/codec/members.ts";
import { decodeMsgpack, MsgpackWriter } from "../../src/codec/msgpack.ts";
import { Parts } from "../../src/codec/parts.ts";
import { atOnce, type Task } from "../../src/codec/turns.ts";

const packr = new Packr({ useRecords: false, variableMapSize: true });
const unpackr = new Unpackr({ useRecords: false, mapsAsObjects: true });

const many = Array.from({ length: 30_000 }, (_, index) => index / 8 - 1000);
const map = Object.fromEntries(Array.from({ length: 20_000 }, (_, index) => [`layer.${index}."ü\\`, { shape: [1, 2], values: [index, -0.5] }]));
const text = `${"base64/+é".repeat(150_000)}\\"\n`;

const VALUES: Readonly<Record<string, unknown>> = {
  "a long array": many,
  "a long map": map,
  "a long string": text,
  "a call": { jsonrpc: "2.0", id: 1, params: { before: [1], map, between: "x", many, text, after: null } },
  "long ones in an array": [1, many, 2, 3, map, text, [[many]]],
  "a long one alone in each level": { a: { b: [{ c: many }] } },
  "two long ones after each other": { first: many, second: many },
  "many small ones": Array.from({ length: 5000 }, (_, index) => ({ index, list: [index, { deep: [] }], none: null })),
  "keys that are integers": Object.fromEntries(Array.from({ length: 20_000 }, (_, index) => [String(20_000 - index), index])),
};

/** Counts how often the work yields. */
const countYields = <T>(work: Task<T>): number => {
  let count = 0;
  while (!work.next().done) count++;
  return count;
};

for (const [name, value] of Object.entries(VALUES)) {
  test(`decodes and encodes JSON of ${name} in slices`, () => {
    for (const space of [0, 1]) {
      const bytes = Buffer.from(JSON.stringify(value, null, space));
      assert.deepEqual(atOnce(decodeJson(bytes)), value);
      assert.ok(countYields(decodeJson(bytes)) > 1);
    }
    assert.deepEqual(JSON.parse(Buffer.concat(atOnce(encodeJson(value)).pieces).toString()), value);
  });

  test(`decodes and encodes MessagePack of ${name} in slices`, () => {
    const bytes = Buffer.from(packr.pack(value));
    assert.deepEqual(atOnce(decodeMsgpack(bytes)), value);
    assert.deepEqual(unpackr.unpack(Buffer.concat(atOnce(new MsgpackWriter().encode(value)).pieces)), value);
    if (typeof value === "object")
      for (const work of [() => decodeMsgpack(bytes), () => new MsgpackWriter().encode(value), () => encodeJson(value)])
        assert.ok(countYields<unknown>(work()) > 1);
  });
}

test("members created during encoding give the same bytes as a plain object", () => {
  const members = new Members(20_000, () => Object.entries(map));
  const value = { jsonrpc: "2.0", result: { members, count: 1 } };
  const plain = { jsonrpc: "2.0", result: { members: map, count: 1 } };
  assert.deepEqual(JSON.parse(Buffer.concat(atOnce(encodeJson(value)).pieces).toString()), plain);
  assert.deepEqual(unpackr.unpack(Buffer.concat(atOnce(new MsgpackWriter().encode(value)).pieces)), plain);
  assert.ok(countYields(encodeJson(value)) > 10 && countYields(new MsgpackWriter().encode(value)) > 10);
  assert.deepEqual(plainOf(members), map);
});

test("encodes blobs, negative zeros and undefined members in a long map", () => {
  const blob = new Parts([Buffer.from("ab"), Buffer.from("c")]);
  const value = { map, blob, none: undefined, zeros: [...many, -0], list: [undefined, ...many] };
  const json = JSON.parse(Buffer.concat(atOnce(encodeJson(value)).pieces).toString());
  assert.deepEqual(json, { map, blob: "YWJj", zeros: [...many, -0], list: [null, ...many] });
  const packed = unpackr.unpack(Buffer.concat(atOnce(new MsgpackWriter().encode({ ...value, list: undefined })).pieces));
  assert.deepEqual(packed, { map, blob: Buffer.from("abc"), zeros: [...many, -0] });
});

test("a blob in a long MessagePack body is a view of the body", () => {
  const bytes = Buffer.from(packr.pack({ many, blob: Buffer.from("abc") }));
  const { blob } = atOnce(decodeMsgpack(bytes)) as { blob: Buffer };
  assert.equal(blob.buffer, bytes.buffer);
  assert.deepEqual(Buffer.from(blob), Buffer.from("abc"));
});

const list = many.join(",");
const REFUSED: Readonly<Record<string, string>> = {
  "a comma at the end of a long array": `[${list},]`,
  "a comma at its start": `[,${list}]`,
  "two commas in it": `[${list},,${list}]`,
  "a comma at the end of a long object": `{"a":[${list}],}`,
  "no comma behind a long value": `[[${list}] 1]`,
  "a colon too much": `{"a"::[${list}]}`,
  "no key before a long value": `{[${list}]}`,
  "a key in a long array": `["a":[${list}]]`,
  "another bracket at the end": `[${list}}`,
  "another bracket around a long value": `{"a":[${list}]]`,
  "no bracket at the end": `{"a":[${list}]`,
  "a bracket too much": `[${list}]]`,
  "two long values": `[${list}] [${list}]`,
  "a small value behind a long one": `[${list}] 1`,
  "a small value before a long one": `1 [${list}]`,
  "a long string without an end": `{"a":"${"A".repeat(3_000_000)}}`,
  "a line feed in a long string": `"${"A".repeat(3_000_000)}\n"`,
  "a wrong escape in a long string": `"${"A".repeat(3_000_000)}\\x"`,
};

for (const [name, body] of Object.entries(REFUSED)) {
  test(`refuses ${name}`, () => {
    assert.throws(() => JSON.parse(body));
    assert.throws(() => atOnce(decodeJson(Buffer.from(body))), { code: "PARSE_ERROR" });
  });
}

test("a long string is never split inside an escape or a character", () => {
  for (const unit of ["\\u00e9", "é", "𝄞", '\\"', "\\\\", "ab\\n", `${"A".repeat(61)}\\/`]) {
    const body = `"${unit.repeat(Math.ceil(2_500_000 / Buffer.byteLength(unit)))}"`;
    for (const shift of ["", "x", "xy", "xyz"]) {
      const shifted = `"${shift}${body.slice(1)}`;
      assert.equal(atOnce(decodeJson(Buffer.from(shifted))), JSON.parse(shifted));
    }
  }
});
