/** Cosines and the mix of two values, in float64 with the same bits on every machine: Math.cos may differ between engines. */
import { inverseFactorial } from "./_series.ts";

/** sin(pi x) for x from 0 to 1/4. */
const sineOfSmall = (x: number): number => {
  const z = Math.PI * x;
  const squared = z * z;
  let series = 0;
  for (let n = 19; n >= 3; n -= 2) series = inverseFactorial(n) - series * squared;
  return z - z * (squared * series);
};

/** cos(pi x) for x from 0 to 1/4. */
const cosineOfSmall = (x: number): number => {
  const z = Math.PI * x;
  const squared = z * z;
  let series = 0;
  for (let n = 18; n >= 4; n -= 2) series = inverseFactorial(n) - series * squared;
  return 1 - squared * (0.5 - squared * series);
};

/**
 * (1 + cos(pi part / whole)) / 2 for 0 <= part <= whole, whole > 0: 1 at the start, 0 at the end, to a few last places also
 * near the end, because there it is the square of a sine, where 1 + cos would cancel.
 */
export const cosineFall = (part: number, whole: number): number => {
  const root = 2 * part <= whole ? cosineOfSmall(part / whole / 2) : sineOfSmall((whole - part) / whole / 2);
  return root * root;
};

/** `from` where left is 1, `to` where it is 0, both exact, and exact in between where they are equal. */
export const mix = (from: number, to: number, left: number): number => (left > 0.5 ? from + (to - from) * (1 - left) : to + (from - to) * left);
