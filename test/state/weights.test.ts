/** Tests that a step count can be recovered from the weights that qhoptim accumulates, until the weights stop growing. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { isWeightOf, stepsOf, weightAt } from "../../src/interchange/_weights.ts";

/** Pairs of betas, each with the step up to which the count must be recovered. */
const CASES: readonly (readonly [readonly [number, number], number])[] = [
  [[0.9, 0.999], 15_000],
  [[0.995, 0.999], 15_000],
  [[0.9, 0.9999], 50_000],
  [[0.5, 0.3], 35],
  [[0, 0.9], 200],
  [[0, 0], 0],
  [[1e-9, 0.1], 10],
];

for (const [betas, least] of CASES) {
  test(`betas ${betas}: steps are recovered up to ${least} and never wrong`, () => {
    let weights: [number, number] = [0, 0];
    assert.equal(stepsOf(weights, betas), 0);
    for (let step = 1; step <= 200_000; step++) {
      weights = [1 + betas[0] * weights[0], 1 + betas[1] * weights[1]];
      const steps = stepsOf(weights, betas);
      if (steps === undefined) assert.ok(step > least, `step  is not recovered`);
      else assert.equal(steps, step);
      assert.ok(
        weights.every((weight, index) => isWeightOf(weight, betas[index] as number, step)),
        `step ${step}`,
      );
    }
  });
}

test("a weight of another step or beta is refused", () => {
  assert.ok(!isWeightOf(weightAt(0.9, 10), 0.9, 11));
  assert.ok(!isWeightOf(weightAt(0.9, 10), 0.95, 10));
  assert.ok(!isWeightOf(1e200, 0.9, 10));
  assert.ok(!isWeightOf(1, 0.9, 0));
});

test("weights are right before the first step, after one step, and at the largest count", () => {
  assert.deepEqual([weightAt(0.9, 0), weightAt(0.9, 1), weightAt(0, 5)], [0, 1, 1]);
  assert.ok(Math.abs(weightAt(0.999, Number.MAX_SAFE_INTEGER) - 1000) < 1e-9);
});
