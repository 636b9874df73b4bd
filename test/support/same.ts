/** Equality of large values in tests. assert.deepEqual would make a line-by-line difference of them, which takes all memory. */
import assert from "node:assert/strict";
import { isDeepStrictEqual } from "node:util";

/** Asserts that two values are deeply equal, and says of two maps of tensors which first differ. */
export const requireSame = (found: Readonly<Record<string, unknown>>, expected: Readonly<Record<string, unknown>>, what = "value"): void => {
  assert.deepEqual(Object.keys(found).sort(), Object.keys(expected).sort(), `${what}: names`);
  for (const [name, value] of Object.entries(found)) assert.ok(isDeepStrictEqual(value, expected[name]), `${what}: ${name} differs`);
};
