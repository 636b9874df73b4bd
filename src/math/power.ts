/**
 * Computes powers in float64 with the same bits on every machine. IEEE 754 defines the bits of + - * / and of the square root. ECMAScript leaves
 * the last bits of Math.pow, Math.exp and Math.log to the engine, so no function here uses them.
 */
import { add, divide, exactSum, multiply, type Pair } from "./_double.ts";
import { inverseFactorial } from "./_series.ts";

/**
 * Computes base^exponent for whole exponents from 0 to 2^53 by repeated squaring in float64. The optimizers' bias corrections use it.
 * `wholePower` is more exact, and its results differ in the last bits.
 */
export const repeatedSquaring = (base: number, exponent: number): number => {
  let result = 1;
  for (let square = base, remaining = exponent; remaining > 0; remaining = Math.floor(remaining / 2), square *= square) {
    if (remaining % 2 === 1) result *= square;
  }
  return result;
};

const LN2: Pair = { high: Math.LN2, low: 2.3190468138462996e-17 };

const bits = new DataView(new ArrayBuffer(8));
const EXPONENT_BIAS = 1023;
/** The lowest bit of the exponent, in the upper 32 bits of a float64. */
const EXPONENT_UNIT = 0x100000;
const SUBNORMAL_SHIFT = 54;

/** Computes 2^exponent for exponents from -1022 to 1023. */
const powerOfTwo = (exponent: number): number => {
  bits.setUint32(0, (exponent + EXPONENT_BIAS) * EXPONENT_UNIT);
  bits.setUint32(4, 0);
  return bits.getFloat64(0);
};

const TWO_TO_54 = powerOfTwo(SUBNORMAL_SHIFT);

/** Splits a positive number into mantissa * 2^exponent with 1 <= mantissa < 2. */
const splitExponent = (value: number): { readonly mantissa: number; readonly exponent: number } => {
  if (value < powerOfTwo(-1022)) {
    const { mantissa, exponent } = splitExponent(value * TWO_TO_54);
    return { mantissa, exponent: exponent - SUBNORMAL_SHIFT };
  }
  bits.setFloat64(0, value);
  const head = bits.getUint32(0);
  const exponent = (head >>> 20) - EXPONENT_BIAS;
  bits.setUint32(0, (head & 0xfffff) + EXPONENT_BIAS * EXPONENT_UNIT);
  return { mantissa: bits.getFloat64(0), exponent };
};

/** Computes mantissa * 2^exponent for a mantissa near 1 and any exponent, rounded once. */
const scaleByPowerOfTwo = (mantissa: number, exponent: number): number => {
  if (exponent > 1100) return Number.POSITIVE_INFINITY;
  if (exponent < -1200) return 0;
  const half = Math.floor(exponent / 2);
  // The first product is exact, so a subnormal result is rounded only once.
  return mantissa * powerOfTwo(half) * powerOfTwo(exponent - half);
};

/**
 * Computes base^exponent for base >= 0 and whole exponents from 0 to 2^53 by repeated squaring of a double-double with a
 * separate power of two. The total error is below one unit in the last place; plain float64 would lose half a unit per unit of the exponent.
 */
export const wholePower = (base: number, exponent: number): number => {
  if (exponent === 0 || base === 1) return 1;
  if (base === 0) return 0;
  const { mantissa, exponent: scale } = splitExponent(base);
  let square: Pair = { high: mantissa, low: 0 };
  let squareScale = scale;
  let result: Pair = { high: 1, low: 0 };
  let resultScale = 0;
  for (let remaining = exponent; ; ) {
    if (remaining % 2 === 1) {
      result = multiply(result, square);
      resultScale += squareScale;
      if (result.high >= 2) {
        result = { high: result.high / 2, low: result.low / 2 };
        resultScale++;
      }
    }
    remaining = Math.floor(remaining / 2);
    if (remaining === 0) return scaleByPowerOfTwo(result.high + result.low, resultScale);
    square = multiply(square, square);
    squareScale *= 2;
    if (square.high >= 2) {
      square = { high: square.high / 2, low: square.low / 2 };
      squareScale++;
    }
  }
};

/** The coefficients 1, 1/3, 1/5, ... of the series of atanh(s). For |s| <= 0.172 the seventeenth term is below 2^-80 of the first. */
const ODD_RECIPROCALS: readonly Pair[] = Array.from({ length: 17 }, (_, index) => divide({ high: 1, low: 0 }, { high: 2 * index + 1, low: 0 }));

/** Computes the natural logarithm of a positive number from log m = 2 atanh((m - 1) / (m + 1)), with m from sqrt(1/2) to sqrt(2). */
const logarithm = (value: number): Pair => {
  let { mantissa, exponent } = splitExponent(value);
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

/** Computes e^value from e^(k ln 2 + r) = 2^k e^r, with |r| <= 0.35 and the Taylor series up to r^15. */
const exponential = (value: Pair): number => {
  if (value.high > 720) return Number.POSITIVE_INFINITY;
  if (value.high < -760) return 0;
  const k = Math.floor(value.high / LN2.high + 0.5);
  const r = add(value, multiply({ high: -k, low: 0 }, LN2));
  let series = 0;
  for (let n = 15; n >= 2; n--) series = series * r.high + inverseFactorial(n);
  return scaleByPowerOfTwo(1 + (r.high + (r.low + r.high * r.high * series)), k);
};

/** Computes base^exponent for base >= 0 and exponent >= 0, within one unit in the last place (0.8 measured). 0^0 is 1. */
export const power = (base: number, exponent: number): number => {
  if (exponent % 1 === 0 && exponent <= Number.MAX_SAFE_INTEGER) return wholePower(base, exponent);
  if (base === 0) return 0;
  const log = logarithm(base);
  const rough = log.high * exponent;
  if (rough > 720) return Number.POSITIVE_INFINITY;
  if (rough < -760) return 0;
  return exponential(multiply(log, { high: exponent, low: 0 }));
};
