/** The suites over the registry run every optimizer that there is. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { registry } from "../../src/optimizers/registry.ts";
import { variants } from "../support/variants.ts";

test("every optimizer of the registry has variants", () => {
  assert.deepEqual(new Set(variants.map(({ optimizer }) => optimizer.name)), new Set(registry.keys()));
});
