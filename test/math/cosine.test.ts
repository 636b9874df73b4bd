/** Compares the cosine decay with Math.cos and Math.sin, which are accurate on every machine. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { cosineDecay, interpolate } from "../../src/math/cosine.ts";
import { requireWithin, uniform } from "./_ulps.ts";

test("the cosine decay agrees with Math.cos and, near its end, with Math.sin, to 8 ulp", () => {
  const random = uniform(3);
  for (let round = 0; round < 20_000; round++) {
    const whole = Math.ceil(2 ** (50 * random())) + 1;
    const left = round % 2 === 0 ? Math.floor(random() * whole) : Math.floor(random() * Math.min(whole, 100));
    const expected = 2 * left > whole ? Math.cos((Math.PI * (whole - left)) / whole / 2) ** 2 : Math.sin((Math.PI * left) / whole / 2) ** 2;
    requireWithin(cosineDecay(whole - left, whole), expected, 8, `${whole - left} of ${whole}`);
  }
});

test("the cosine decay is exact at both ends and never rises", () => {
  for (const whole of [1, 2, 3, 10, 1000, 12_345]) {
    assert.equal(cosineDecay(0, whole), 1);
    assert.equal(cosineDecay(whole, whole), 0);
    for (let part = 1; part <= whole; part++) assert.ok(cosineDecay(part, whole) <= cosineDecay(part - 1, whole), `${part} of ${whole}`);
  }
});

test("interpolation is exact at both ends and between equal values", () => {
  const random = uniform(4);
  for (let round = 0; round < 1000; round++) {
    const [from, to] = [random(), random()];
    assert.equal(interpolate(from, to, 1), from);
    assert.equal(interpolate(from, to, 0), to);
    assert.equal(interpolate(from, from, random()), from);
  }
});
