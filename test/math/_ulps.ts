import assert from "node:assert/strict";

const ULP = 2 ** -52;

/** Returns a repeatable random generator of numbers in [0, 1). */
export const uniform = (seed: number): (() => number) => {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
};

export const requireWithin = (found: number, expected: number, ulps: number, what: string): void => {
  const bound = ulps * Math.max(ULP * Math.abs(expected), Number.MIN_VALUE);
  assert.ok(found === expected || Math.abs(found - expected) <= bound, `${what}: ${found}, not ${expected}`);
};
