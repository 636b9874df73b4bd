/** Tests the key of a step's options: equal for equal options, different for all other options, and of bounded length. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { canonicalText } from "../../src/engine/canonical.ts";

test("equal options have one key, in whatever order their fields come", () => {
  const key = canonicalText({ optimizer: { name: "adamw", betas: [0.9, 0.999] }, groups: [{ params: ["a", "b"] }] }, 1000);
  assert.equal(canonicalText({ groups: [{ params: ["a", "b"] }], optimizer: { betas: [0.9, 0.999], name: "adamw" } }, 1000), key);
});

test("options that differ have different keys", () => {
  const values = [
    0,
    -0,
    1,
    1n,
    "1",
    null,
    true,
    Number.NaN,
    "NaN",
    [],
    {},
    [1, 2],
    ["1", 2],
    [12],
    { a: 1 },
    { a: [1] },
    { "a:1": 1 },
    { a: 1, b: 2 },
    [{ a: 1 }],
  ];
  assert.equal(new Set(values.map((value) => canonicalText(value, 1000))).size, values.length);
});

test("a key has at most as many characters as allowed", () => {
  const value = { params: ["one", "two"], lr: 0.5 };
  const key = canonicalText(value, 1000);
  assert.ok(key !== undefined);
  assert.equal(canonicalText(value, key.length + 8), key);
  assert.equal(canonicalText(value, 20), undefined);
  let reads = 0;
  const names = new Proxy(
    Array.from({ length: 100_000 }, (_, index) => `layer.${index}`),
    {
      get(target, field, receiver) {
        reads++;
        return Reflect.get(target, field, receiver);
      },
    },
  );
  assert.equal(canonicalText({ params: names }, 1000), undefined);
  assert.ok(reads < 500, `${reads} reads`);
});
