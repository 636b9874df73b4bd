/** Compares large values. assert.deepEqual would build a line-by-line diff, which exhausts memory. */
import assert from "node:assert/strict";
import { isDeepStrictEqual } from "node:util";

/** Asserts that two records of values are deeply equal. The message names the first value that differs. */
export const requireSame = (found: Readonly<Record<string, unknown>>, expected: Readonly<Record<string, unknown>>, what = "value"): void => {
  assert.deepEqual(Object.keys(found).sort(), Object.keys(expected).sort(), `${what}: names`);
  for (const [name, value] of Object.entries(found)) assert.ok(isDeepStrictEqual(value, expected[name]), `${what}: ${name} differs`);
};
