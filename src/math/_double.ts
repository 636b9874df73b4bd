/** Computes in double-double arithmetic: a number is stored as the sum of two float64 numbers (Dekker, 1971, https://doi.org/10.1007/BF01397083). */

/** Represents the number high + low. |low| is at most half a unit in the last place of high. */
export interface Pair {
  readonly high: number;
  readonly low: number;
}

/** Multiplying by 2^27 + 1 splits a float64 into two halves whose products are exact. */
const SPLITTER = 134217729;

/** Computes a + b and its rounding error, for operands of any size. */
export const exactSum = (a: number, b: number): Pair => {
  const high = a + b;
  const part = high - a;
  return { high, low: a - (high - part) + (b - part) };
};

/** Computes a + b and its rounding error. Requires |a| >= |b|. */
const quickSum = (a: number, b: number): Pair => {
  const high = a + b;
  return { high, low: b - (high - a) };
};

/** Computes a * b and its rounding error. */
export const exactProduct = (a: number, b: number): Pair => {
  const high = a * b;
  const aBig = SPLITTER * a;
  const aHigh = aBig - (aBig - a);
  const aLow = a - aHigh;
  const bBig = SPLITTER * b;
  const bHigh = bBig - (bBig - b);
  const bLow = b - bHigh;
  return { high, low: aHigh * bHigh - high + aHigh * bLow + aLow * bHigh + aLow * bLow };
};

export const add = (a: Pair, b: Pair): Pair => {
  const { high, low } = exactSum(a.high, b.high);
  return quickSum(high, low + (a.low + b.low));
};

export const multiply = (a: Pair, b: Pair): Pair => {
  const { high, low } = exactProduct(a.high, b.high);
  return quickSum(high, low + (a.high * b.low + a.low * b.high));
};

export const divide = (a: Pair, b: Pair): Pair => {
  const quotient = a.high / b.high;
  const { high, low } = exactProduct(quotient, b.high);
  return quickSum(quotient, (a.high - high - low + a.low - quotient * b.low) / b.high);
};
