/** Tests templates of MessagePack bodies: a body that matches a template decodes to the same value as without templates. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { type Decoded, decodeMsgpack, MsgpackReader } from "../../src/codec/msgpack.ts";
import { atOnce } from "../../src/codec/turns.ts";
import { pack } from "../support/service.ts";

const blob = (fill: number, length = 40): Buffer => Buffer.alloc(length, fill);

const call = (id: unknown, fill: number, more: Readonly<Record<string, unknown>> = {}): object => ({
  jsonrpc: "2.0",
  id,
  method: "optimizer.step",
  params: { optimizer: { name: "adamw", lr: 0.5 }, params: blob(fill), list: [{ tensors: blob(fill + 1, 7) }, blob(fill + 2, 0)], ...more },
});

/** Decodes a body, and checks the value and the counts against a decoder without templates. */
const decode = (reader: MsgpackReader, body: Buffer): Decoded => {
  const counts: (readonly number[])[] = [];
  const count = (...now: readonly number[]): void => void counts.push(now);
  const expected = atOnce(decodeMsgpack(body, count));
  const decoded = atOnce(reader.decode(body, count));
  assert.deepEqual(decoded.value, expected);
  assert.deepEqual(counts[1], counts[0]);
  return decoded;
};

/** Matches an error that names the problem and its offset. */
const PROBLEM = /: .+ at byte \d+$/;

const IDS: Readonly<Record<string, readonly unknown[]>> = {
  "small numbers": [0, 1, 127],
  bytes: [128, 255],
  "16 bits": [256, 65_535],
  "32 bits": [65_536, 2 ** 32 - 1],
  strings: ["a-b", "c-d", "xyz"],
  "longer strings": ["a".repeat(36), "b".repeat(36)],
};

for (const [name, ids] of Object.entries(IDS)) {
  test(`bodies that differ in blobs and in ids of one kind have one template: ${name}`, () => {
    const reader = new MsgpackReader();
    const templates = ids.map((id, index) => decode(reader, pack(call(id, index + 1))).template);
    assert.ok(templates[0]);
    assert.deepEqual(new Set(templates).size, 1);
  });
}

test("bodies that differ in anything else have other templates", () => {
  const reader = new MsgpackReader();
  const bodies = [call(1, 1), call(1, 1, { a: 1 }), call(1, 1, { a: 2 }), call(-1, 1), call(-2, 1), call("", 1), call(1.5, 1), call(2.5, 1), call(null, 1)];
  const templates = bodies.map((body) => decode(reader, pack(body)).template);
  assert.equal(new Set(templates).size, bodies.length);
  for (const [index, body] of bodies.entries()) assert.equal(decode(reader, pack(body)).template, templates[index]);
});

test("a value of a template keeps nothing of the body from which the template was made", () => {
  const reader = new MsgpackReader();
  const first = Buffer.from(pack(call(1, 1)));
  decode(reader, first);
  first.fill(0xff);
  decode(reader, pack(call(2, 5)));
});

test("values of one template share no container with a blob", () => {
  const reader = new MsgpackReader();
  type Value = { params: { list: { tensors: Buffer }[]; params: Buffer } };
  const [a, b] = [1, 9].map((fill) => decode(reader, pack(call(1, fill))).value as Value);
  assert.deepEqual([a?.params.params[0], a?.params.list[0]?.tensors[0], b?.params.params[0], b?.params.list[0]?.tensors[0]], [1, 2, 9, 10]);
});

test("a body that fits a template is refused as without a template", () => {
  const reader = new MsgpackReader();
  const body = Buffer.from(pack(call("abc", 1)));
  const at = body.indexOf("abc");
  decode(reader, body);
  for (const [offset, byte, message] of [
    [at + 1, 0xff, /not UTF-8/],
    [0, 0x85, PROBLEM],
    [0, 0xc1, /0xc1/],
  ] as const) {
    const wrong = Buffer.from(body);
    wrong[offset] = byte;
    assert.throws(() => atOnce(reader.decode(wrong, () => {})), { code: "PARSE_ERROR", message });
  }
  const small = Buffer.from(pack(call(1, 1)));
  decode(reader, small);
  const extension = Buffer.from(small);
  extension[small.indexOf("id") + 2] = 0xc1;
  assert.throws(() => atOnce(reader.decode(extension, () => {})), { code: "PARSE_ERROR" });
});

test("batches, values that are no map, and bodies of many values get no template", () => {
  const reader = new MsgpackReader();
  for (const value of [[call(1, 1), call(2, 2)], [], 1, "a", blob(1), { a: Array.from({ length: 1001 }, () => 0) }, { text: "x".repeat(70_000) }]) {
    for (let time = 0; time < 3; time++) assert.equal(decode(reader, pack(value)).template, undefined);
  }
});

test("the reader keeps the latest templates of a length", () => {
  const reader = new MsgpackReader();
  const body = (rate: number): Buffer => pack(call(1, 1, { rate }));
  const first = decode(reader, body(0)).template;
  for (let rate = 1; rate < 16; rate++) decode(reader, body(rate));
  assert.equal(decode(reader, body(0)).template, first);
  decode(reader, body(16));
  const latest = decode(reader, body(16)).template;
  assert.equal(decode(reader, body(16)).template, latest);
  assert.notEqual(decode(reader, body(0)).template, first);
});
