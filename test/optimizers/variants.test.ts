/** Tests that the variants cover every optimizer of the registry, and differ from each other. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { registry } from "../../src/optimizers/registry.ts";

for (const { name, variants, moments = {}, allSlots, hyperparameters, initial } of registry.values()) {
  test(`${name} has variants, whose labels begin with its name`, () => {
    const labels = Object.keys(variants);
    assert.notEqual(labels.length, 0);
    for (const label of labels) assert.match(label, new RegExp(`^${name}\\b`));
  });
  test(`${name} has state_dtype if and only if it has moments, which are slots of it`, () => {
    const slots = Object.keys(moments);
    assert.equal("state_dtype" in hyperparameters, slots.length > 0);
    for (const slot of slots) assert.ok(allSlots.includes(slot), slot);
    // A new slot in a narrow format is filled with zeros.
    if (initial) assert.deepEqual(slots, []);
  });
}
