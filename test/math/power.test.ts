/**
 * Compares powers with Math.pow, which is accurate on every machine. No code may use functions whose bits the JavaScript engine
 * chooses.
 */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { power, wholePower } from "../../src/math/power.ts";
import { root } from "../support/tree.ts";
import { requireWithin, uniform } from "./_ulps.ts";

test("integer powers agree with Math.pow to 2 ulp, up to exponent 2^53", () => {
  const random = uniform(1);
  for (let round = 0; round < 20_000; round++) {
    const exponent = Math.floor(2 ** (53 * random()));
    const base = round % 2 === 0 ? Math.abs(1 + ((random() - 0.5) * 1000) / exponent) : 4 * random();
    requireWithin(wholePower(base, exponent), base ** exponent, 2, `${base}^${exponent}`);
  }
});

test("integer powers of integers are exact as long as they fit", () => {
  for (let base = 2n; base <= 40n; base++) {
    for (let exponent = 0n; base ** exponent <= 2n ** 53n; exponent++)
      assert.equal(wholePower(Number(base), Number(exponent)), Number(base ** exponent), `${base}^${exponent}`);
  }
});

test("fractional powers agree with Math.pow to 3 ulp, which is below 1e-15 relative", () => {
  const random = uniform(2);
  for (let round = 0; round < 20_000; round++) {
    const base = round % 3 === 0 ? 1 - random() ** 6 * 0.9 : 10 ** (20 * random() - 15);
    const exponent = round % 2 === 0 ? 3 * random() : 300 * random();
    requireWithin(power(base, exponent), base ** exponent, 3, `${base}^${exponent}`);
  }
});

test("powers are right at the ends of their domain", () => {
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

test("no schedule and no optimizer uses mathematics whose bits the engine chooses", () => {
  const rooms = ["math", "schedules", "optimizers"].map((room) => join(root, "src", room));
  const allowed = ["sqrt", "floor", "ceil", "min", "max", "abs", "PI", "LN2", "SQRT2", "SQRT1_2", "round", "fround", "trunc"];
  const found = rooms
    .flatMap((room) => readdirSync(room).map((file) => join(room, file)))
    .flatMap((file) => {
      const code = readFileSync(file, "utf8")
        .replaceAll(/\/\*\*[\s\S]*?\*\/|\/\/.*/g, "")
        // Integer powers of two are exact everywhere.
        .replaceAll(/\b2 \*\* -?\d+/g, "");
      return [...code.matchAll(/Math\.(\w+)|(\*\*)/g)]
        .map(([, name, stars]) => `${file}: ${name ?? stars}`)
        .filter((use) => !allowed.includes(use.split(": ")[1] ?? ""));
    });
  assert.deepEqual(found, []);
});
