/** Sums, products and quotients of float64 values with more than twice the digits, each the unevaluated sum of two (Dekker, 1971, https://doi.org/10.1007/BF01397083). */

/** A value as high + low, low being at most half a last place of high. */
export interface Pair {
  readonly high: number;
  readonly low: number;
}

/** 2^27 + 1 cuts a float64 into halves whose products are exact. */
const SPLITTER = 134217729;

/** A sum with its rounding error, for operands in any order. */
export const exactSum = (a: number, b: number): Pair => {
  const high = a + b;
  const part = high - a;
  return { high, low: a - (high - part) + (b - part) };
};

/** A sum with its rounding error where a is the larger. */
const quickSum = (a: number, b: number): Pair => {
  const high = a + b;
  return { high, low: b - (high - a) };
};

/** A product with its rounding error. */
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
