/** Tests the cost of validation: each value of a call is read only a few times, however large the rest of the call is. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { validate } from "../../src/validation/validate.ts";

/** Returns a list that counts the reads of its items. */
const counted = <T>(length: number, item: T) => {
  const reads = { count: 0 };
  const values = new Proxy(Array<T>(length).fill(item), {
    get(target, key, receiver) {
      if (typeof key === "string" && /^\d+$/.test(key)) reads.count++;
      return Reflect.get(target, key, receiver);
    },
  });
  return { values, reads };
};

const long = { shape: [1_000_000], values: Array<number>(1_000_000).fill(1) };

test("values are not validated again for each slice of another list", () => {
  const { values, reads } = counted(16_000, 1);
  validate("norms.schema.json", { grads: { short: { shape: [16_000], values }, long } });
  validate("norms.schema.json", { grads: { long }, params: { short: { shape: [16_000], values } } });
  assert.ok(reads.count <= 10 * values.length, `${reads.count} reads of ${values.length} values in two calls`);
});

test("groups are not validated again for each slice of a list", () => {
  const { values: tensors, reads } = counted(4096, "w");
  validate("step.schema.json", { optimizer: { name: "adam" }, groups: [{ tensors, optimizer: {} }], params: { long }, grads: {} });
  assert.ok(reads.count <= 5 * tensors.length, `${reads.count} reads of ${tensors.length} names`);
});
