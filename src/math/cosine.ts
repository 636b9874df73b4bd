/** Computes cosines and interpolates in float64, with the same bits on every machine. Math.cos may differ between JavaScript engines. */
import { inverseFactorial } from "./_series.ts";

/** Computes sin(pi x) for x from 0 to 1/4. */
const sineOfSmall = (x: number): number => {
  const z = Math.PI * x;
  const squared = z * z;
  let series = 0;
  for (let n = 19; n >= 3; n -= 2) series = inverseFactorial(n) - series * squared;
  return z - z * (squared * series);
};

/** Computes cos(pi x) for x from 0 to 1/4. */
const cosineOfSmall = (x: number): number => {
  const z = Math.PI * x;
  const squared = z * z;
  let series = 0;
  for (let n = 18; n >= 4; n -= 2) series = inverseFactorial(n) - series * squared;
  return 1 - squared * (0.5 - squared * series);
};

/**
 * Computes (1 + cos(pi part / whole)) / 2, for whole > 0. The value falls from 1 at part = 0 to 0 at part = whole. Near the end, 1 + cos
 * would cancel, so a sine is squared instead. The result is exact to a few units in the last place everywhere.
 */
export const cosineDecay = (part: number, whole: number): number => {
  const root = 2 * part <= whole ? cosineOfSmall(part / whole / 2) : sineOfSmall((whole - part) / whole / 2);
  return root * root;
};

/** Interpolates linearly from `from` (left = 1) to `to` (left = 0). The result is exact at both ends, and everywhere if the ends are equal. */
export const interpolate = (from: number, to: number, left: number): number => (left > 0.5 ? from + (to - from) * (1 - left) : to + (from - to) * left);
