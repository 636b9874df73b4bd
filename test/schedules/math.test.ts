/** The schedules' own mathematics against the engine's, and that nothing in the room depends on the engine's. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { cosineFall, mix, power, wholePower } from "../../src/schedules/_math.ts";
import { root } from "../support/tree.ts";

const ULP = 2 ** -52;

/** The same numbers in every run, from 0 up to 1. */
const uniform = (seed: number): (() => number) => {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
};

const requireWithin = (found: number, expected: number, ulps: number, what: string): void => {
  const bound = ulps * Math.max(ULP * Math.abs(expected), Number.MIN_VALUE);
  assert.ok(found === expected || Math.abs(found - expected) <= bound, `${what}: ${found}, not ${expected}`);
};

test("whole powers agree with Math.pow to 2 ulp, exponents up to 2^53", () => {
  const random = uniform(1);
  for (let round = 0; round < 20_000; round++) {
    const exponent = Math.floor(2 ** (53 * random()));
    const base = round % 2 === 0 ? Math.abs(1 + ((random() - 0.5) * 1000) / exponent) : 4 * random();
    requireWithin(wholePower(base, exponent), base ** exponent, 2, `${base}^${exponent}`);
  }
});

test("whole powers of whole numbers are exact as long as they fit", () => {
  for (let base = 2n; base <= 40n; base++) {
    for (let exponent = 0n; base ** exponent <= 2n ** 53n; exponent++)
      assert.equal(wholePower(Number(base), Number(exponent)), Number(base ** exponent), `${base}^${exponent}`);
  }
});

test("powers that are not whole agree with Math.pow to 3 ulp, which is below 1e-15 relative", () => {
  const random = uniform(2);
  for (let round = 0; round < 20_000; round++) {
    const base = round % 3 === 0 ? 1 - random() ** 6 * 0.9 : 10 ** (20 * random() - 15);
    const exponent = round % 2 === 0 ? 3 * random() : 300 * random();
    requireWithin(power(base, exponent), base ** exponent, 3, `${base}^${exponent}`);
  }
});

test("powers at the ends of their domain", () => {
  const examples: readonly (readonly [number, number, number])[] = [
    [0, 0, 1],
    [0, 0.5, 0],
    [0, 3, 0],
    [0.5, 0, 1],
    [1, 0.37, 1],
    [1, 1e300, 1],
    [2, 1e300, Number.POSITIVE_INFINITY],
    [0.5, 1e300, 0],
    [2, 1023, 2 ** 1023],
    [2, 1024, Number.POSITIVE_INFINITY],
    [0.5, 1074, Number.MIN_VALUE],
    [0.5, 1076, 0],
    [0.1, 2 ** 53, 0],
    [10, 2 ** 53, Number.POSITIVE_INFINITY],
    [Number.MIN_VALUE, 1, Number.MIN_VALUE],
    [Number.MIN_VALUE, 0.5, 2 ** -537],
    [4, 0.5, 2],
    [3, 0.5, Math.sqrt(3)],
    [0.3, 1.5, 0.3 ** 1.5],
  ];
  for (const [base, exponent, expected] of examples) requireWithin(power(base, exponent), expected, 1, `${base}^${exponent}`);
});

test("the fall of a cosine agrees with Math.cos and, near its end, with Math.sin, to 8 ulp", () => {
  const random = uniform(3);
  for (let round = 0; round < 20_000; round++) {
    const whole = Math.ceil(2 ** (50 * random())) + 1;
    const left = round % 2 === 0 ? Math.floor(random() * whole) : Math.floor(random() * Math.min(whole, 100));
    const expected = 2 * left > whole ? Math.cos((Math.PI * (whole - left)) / whole / 2) ** 2 : Math.sin((Math.PI * left) / whole / 2) ** 2;
    requireWithin(cosineFall(whole - left, whole), expected, 8, `${whole - left} of ${whole}`);
  }
});

test("the fall of a cosine is exact at both ends and never rises", () => {
  for (const whole of [1, 2, 3, 10, 1000, 12_345]) {
    assert.equal(cosineFall(0, whole), 1);
    assert.equal(cosineFall(whole, whole), 0);
    for (let part = 1; part <= whole; part++) assert.ok(cosineFall(part, whole) <= cosineFall(part - 1, whole), `${part} of ${whole}`);
  }
});

test("a mix is exact at both ends and between equals", () => {
  const random = uniform(4);
  for (let round = 0; round < 1000; round++) {
    const [from, to] = [random(), random()];
    assert.equal(mix(from, to, 1), from);
    assert.equal(mix(from, to, 0), to);
    assert.equal(mix(from, from, random()), from);
  }
});

test("no schedule uses mathematics whose bits are the engine's choice", () => {
  const room = join(root, "src/schedules");
  const allowed = ["sqrt", "floor", "min", "max", "abs", "PI", "LN2", "SQRT2"];
  const found = readdirSync(room).flatMap((file) => {
    const code = readFileSync(join(room, file), "utf8").replaceAll(/\/\*\*[\s\S]*?\*\/|\/\/.*/g, "");
    return [...code.matchAll(/Math\.(\w+)|(\*\*)/g)]
      .map(([, name, stars]) => `${file}: ${name ?? stars}`)
      .filter((use) => !allowed.includes(use.split(": ")[1] ?? ""));
  });
  assert.deepEqual(found, []);
});
