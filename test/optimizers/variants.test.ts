/** Tests that the variants cover every optimizer of the registry, and differ from each other. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { registry } from "../../src/optimizers/registry.ts";

for (const { name, variants } of registry.values()) {
  test(`${name} has variants, whose labels begin with its name`, () => {
    const labels = Object.keys(variants);
    assert.notEqual(labels.length, 0);
    for (const label of labels) assert.match(label, new RegExp(`^${name}\\b`));
  });
}
