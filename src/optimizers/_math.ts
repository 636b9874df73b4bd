/**
 * A power with a real exponent from + - * / alone, which IEEE 754 fixes to the bit; the last bits of Math.pow, Math.exp and
 * Math.log differ between machines. The logarithm is held as the sum of two numbers, so that a large exponent does not blow up its rounding.
 */

/** A number as the exact sum of two, the second below the last bit of the first. */
type Double = readonly [number, number];

/** Splits a float64 into two halves of 26 bits, whose products are exact (Veltkamp). */
const SPLITTER = 2 ** 27 + 1;

const sum = (a: number, b: number): Double => {
  const total = a + b;
  const shift = total - a;
  return [total, a - (total - shift) + (b - shift)];
};

const product = (a: number, b: number): Double => {
  const wideA = a * SPLITTER;
  const wideB = b * SPLITTER;
  const highA = wideA - (wideA - a);
  const highB = wideB - (wideB - b);
  const lowA = a - highA;
  const lowB = b - highB;
  const result = a * b;
  return [result, lowA * lowB - (result - highA * highB - lowA * highB - highA * lowB)];
};

/** ln 2 in two parts; the first has zeros enough at its end that whole multiples of it up to 2^20 are exact. */
const LN2: Double = [0x162e42fee / 2 ** 33, 1.9082149292705877e-10];

/** Below this the exponential is 0 in float64, above its negative infinite. */
const LEAST_EXPONENT = -746;

const SERIES_TERMS = 14;

/** ln(base) = halvings * ln 2 + 2*atanh((f-1)/(f+1)), f between the roots of 1/2 and 2. */
const logarithm = (base: number): Double => {
  let f = base;
  let doublings = 0;
  for (; f > Math.SQRT2; f /= 2) doublings++;
  for (; f < Math.SQRT1_2; f *= 2) doublings--;
  const [denominator, denominatorRest] = sum(f, 1);
  const s = (f - 1) / denominator;
  const [back, backRest] = product(s, denominator);
  const sRest = (f - 1 - back - backRest - s * denominatorRest) / denominator;
  const square = s * s;
  let series = 0;
  for (let k = SERIES_TERMS; k > 0; k--) series = square * (1 / (2 * k + 1) + series);
  const [high, low] = sum(doublings * LN2[0], 2 * s);
  return sum(high, low + (doublings * LN2[1] + (2 * sRest + 2 * s * series)));
};

const exponential = ([high, low]: Double): number => {
  if (high < LEAST_EXPONENT) return 0;
  if (high > -LEAST_EXPONENT) return Infinity;
  const doublings = Math.round(high / LN2[0]);
  const rest = high - doublings * LN2[0] - doublings * LN2[1] + low;
  let series = 1;
  for (let k = SERIES_TERMS; k > 0; k--) series = 1 + (rest / k) * series;
  // One doubling at a time, because 2^1024 is not a number on the way to a result that is.
  for (let k = 0; k < doublings; k++) series *= 2;
  for (let k = 0; k > doublings; k--) series /= 2;
  return series;
};

/** base^exponent for a finite base above 0 and a finite exponent, within 16 units in the last place, and 4 for bases as near 1 as 0.96. */
export const realPower = (base: number, exponent: number): number => {
  const [high, low] = logarithm(base);
  const [result, rest] = product(high, exponent);
  if (!Number.isFinite(rest)) return exponential([high * exponent, 0]);
  return exponential(sum(result, rest + low * exponent));
};
