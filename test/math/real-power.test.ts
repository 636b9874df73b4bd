/** Compares the real power that nadam needs with Math.pow. The bits of Math.pow vary by machine, but are always close. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { realPower } from "../../src/math/real-power.ts";
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
