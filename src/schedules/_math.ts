/**
 * Cosines and powers in float64 with the same bits on every machine. IEEE 754 fixes + - * / and the remainder %; Math.cos,
 * Math.exp, Math.log and Math.pow are left to the engine by ECMAScript, so none of them is here. Where one float64 is not
 * enough, a value is the unevaluated sum of two (Dekker, 1971, https://doi.org/10.1007/BF01397083).
 */

/** A value as high + low, low being at most half a last place of high. */
interface Pair {
  readonly high: number;
  readonly low: number;
}

/** 2^27 + 1 cuts a float64 into halves whose products are exact. */
const SPLITTER = 134217729;

const LN2: Pair = { high: Math.LN2, low: 2.3190468138462996e-17 };

/** A sum with its rounding error, for operands in any order. */
const exactSum = (a: number, b: number): Pair => {
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
const exactProduct = (a: number, b: number): Pair => {
  const high = a * b;
  const aBig = SPLITTER * a;
  const aHigh = aBig - (aBig - a);
  const aLow = a - aHigh;
  const bBig = SPLITTER * b;
  const bHigh = bBig - (bBig - b);
  const bLow = b - bHigh;
  return { high, low: aHigh * bHigh - high + aHigh * bLow + aLow * bHigh + aLow * bLow };
};

const add = (a: Pair, b: Pair): Pair => {
  const { high, low } = exactSum(a.high, b.high);
  return quickSum(high, low + (a.low + b.low));
};

const multiply = (a: Pair, b: Pair): Pair => {
  const { high, low } = exactProduct(a.high, b.high);
  return quickSum(high, low + (a.high * b.low + a.low * b.high));
};

const divide = (a: Pair, b: Pair): Pair => {
  const quotient = a.high / b.high;
  const { high, low } = exactProduct(quotient, b.high);
  return quickSum(quotient, (a.high - high - low + a.low - quotient * b.low) / b.high);
};

const bits = new DataView(new ArrayBuffer(8));
const EXPONENT_BIAS = 1023;
/** The exponent's place in the upper half of a float64. */
const EXPONENT_UNIT = 0x100000;
const SUBNORMAL_SHIFT = 54;

/** 2^exponent, for the exponents of normal numbers. */
const powerOfTwo = (exponent: number): number => {
  bits.setUint32(0, (exponent + EXPONENT_BIAS) * EXPONENT_UNIT);
  bits.setUint32(4, 0);
  return bits.getFloat64(0);
};

const TWO_TO_54 = powerOfTwo(SUBNORMAL_SHIFT);

/** A positive number as mantissa * 2^exponent, the mantissa from 1 up to 2. */
const disassemble = (value: number): { readonly mantissa: number; readonly exponent: number } => {
  if (value < powerOfTwo(-1022)) {
    const { mantissa, exponent } = disassemble(value * TWO_TO_54);
    return { mantissa, exponent: exponent - SUBNORMAL_SHIFT };
  }
  bits.setFloat64(0, value);
  const head = bits.getUint32(0);
  const exponent = (head >>> 20) - EXPONENT_BIAS;
  bits.setUint32(0, (head & 0xfffff) + EXPONENT_BIAS * EXPONENT_UNIT);
  return { mantissa: bits.getFloat64(0), exponent };
};

/** mantissa * 2^exponent for a mantissa near 1 and any exponent, rounded once. */
const assemble = (mantissa: number, exponent: number): number => {
  if (exponent > 1100) return Number.POSITIVE_INFINITY;
  if (exponent < -1200) return 0;
  const half = Math.floor(exponent / 2);
  // The first product is exact, so a subnormal result is rounded but once.
  return mantissa * powerOfTwo(half) * powerOfTwo(exponent - half);
};

/**
 * base^exponent for base >= 0 and whole exponents from 0 up to 2^53: repeated squaring of a pair, its power of two kept
 * apart. One float64 would lose half a last place with each unit of the exponent; the pair loses less than one in all.
 */
export const wholePower = (base: number, exponent: number): number => {
  if (exponent === 0 || base === 1) return 1;
  if (base === 0) return 0;
  const { mantissa, exponent: scale } = disassemble(base);
  let square: Pair = { high: mantissa, low: 0 };
  let squareScale = scale;
  let result: Pair = { high: 1, low: 0 };
  let resultScale = 0;
  for (let rest = exponent; ; ) {
    if (rest % 2 === 1) {
      result = multiply(result, square);
      resultScale += squareScale;
      if (result.high >= 2) {
        result = { high: result.high / 2, low: result.low / 2 };
        resultScale++;
      }
    }
    rest = Math.floor(rest / 2);
    if (rest === 0) return assemble(result.high + result.low, resultScale);
    square = multiply(square, square);
    squareScale *= 2;
    if (square.high >= 2) {
      square = { high: square.high / 2, low: square.low / 2 };
      squareScale++;
    }
  }
};

/** 1, 1/3, 1/5, ... as pairs: the series of atanh. With |s| <= 0.172 the seventeenth term is below 2^-80 of the first. */
const ODD_RECIPROCALS: readonly Pair[] = Array.from({ length: 17 }, (_, index) => divide({ high: 1, low: 0 }, { high: 2 * index + 1, low: 0 }));

/** The natural logarithm of a positive number as a pair, from log m = 2 atanh((m - 1) / (m + 1)) with m within sqrt(2) of 1. */
const logarithm = (value: number): Pair => {
  let { mantissa, exponent } = disassemble(value);
  if (mantissa > Math.SQRT2) {
    mantissa /= 2;
    exponent++;
  }
  const s = divide(exactSum(mantissa, -1), exactSum(mantissa, 1));
  const squared = multiply(s, s);
  const series = ODD_RECIPROCALS.reduceRight((sum, term) => add(term, multiply(sum, squared)), { high: 0, low: 0 });
  const atanh = multiply(s, series);
  return add(multiply({ high: exponent, low: 0 }, LN2), { high: 2 * atanh.high, low: 2 * atanh.low });
};

/** 1/0!, 1/1!, 1/2!, ... */
const INVERSE_FACTORIALS: readonly number[] = Array.from({ length: 20 }, (_, n) => {
  let factorial = 1;
  for (let factor = 2; factor <= n; factor++) factorial *= factor;
  return 1 / factorial;
});

const inverseFactorial = (n: number): number => INVERSE_FACTORIALS[n] as number;

/** e^value for a pair, from e^(k ln 2 + r) = 2^k e^r with |r| <= 0.35 and Taylor's series up to r^15. */
const exponential = (value: Pair): number => {
  if (value.high > 720) return Number.POSITIVE_INFINITY;
  if (value.high < -760) return 0;
  const k = Math.floor(value.high / LN2.high + 0.5);
  const r = add(value, multiply({ high: -k, low: 0 }, LN2));
  let series = 0;
  for (let n = 15; n >= 2; n--) series = series * r.high + inverseFactorial(n);
  return assemble(1 + (r.high + (r.low + r.high * r.high * series)), k);
};

/** base^exponent for base >= 0 and exponent >= 0, within one last place (0.8 measured); 0^0 is 1. */
export const power = (base: number, exponent: number): number => {
  if (exponent % 1 === 0 && exponent <= Number.MAX_SAFE_INTEGER) return wholePower(base, exponent);
  if (base === 0) return 0;
  const log = logarithm(base);
  const rough = log.high * exponent;
  if (rough > 720) return Number.POSITIVE_INFINITY;
  if (rough < -760) return 0;
  return exponential(multiply(log, { high: exponent, low: 0 }));
};

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
