/** Compares the real power and the ratio of logarithms, which nadam and ademamix need, with Math.pow and Math.log. Their bits vary by machine, but are always close. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { logarithmRatio, realPower } from "../../src/math/real-power.ts";
import { random } from "../support/tensors.ts";

const requireClose = (base: number, exponent: number, ulps: number): void => {
  const found = realPower(base, exponent);
  const expected = base ** exponent;
  const unit = Math.max(Math.abs(expected) * Number.EPSILON, Number.MIN_VALUE);
  assert.ok(Math.abs(found - expected) <= ulps * unit, `${base}^${exponent}: ${found}, not ${expected}`);
};

test("nadam's powers of 0.96 agree, from the first step until they vanish", () => {
  for (let step = 1; step < 20_000; step += 7) for (const decay of [0.004, 0.1, 1, 3.7]) requireClose(0.96, step * decay, 4);
});

test("powers agree for any base and exponent whose power is a normal number", () => {
  const next = random(3);
  for (let i = 0; i < 20_000; i++) {
    const base = 2 ** (8 * next());
    requireClose(base, (next() * 700) / Math.max(1, Math.abs(Math.log(base))), 16);
  }
});

test("powers are exact at the ends of their domain", () => {
  assert.equal(realPower(0.96, 0), 1);
  assert.equal(realPower(1, 1e300), 1);
  assert.equal(realPower(0.96, 1e300), 0);
  assert.equal(realPower(2, 1e4), Infinity);
  assert.equal(realPower(2, 10), 1024);
});

test("ratios of logarithms agree", () => {
  const next = random(5);
  for (let i = 0; i < 5_000; i++) {
    const [a, b] = [0.5 + 0.4999 * Math.abs(next()), 0.01 + 0.98 * Math.abs(next())];
    const expected = Math.log(a) / Math.log(b);
    const found = logarithmRatio(a, b);
    assert.ok(Math.abs(found - expected) <= 8 * Number.EPSILON * expected, `ln ${a} / ln ${b}: ${found}, not ${expected}`);
  }
  assert.equal(logarithmRatio(0.25, 0.5), 2);
});
