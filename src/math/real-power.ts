/**
 * Computes powers with real exponents, for instance for NAdam's momentum warm-up. `power` in power.ts is more exact but differs in the
 * last bits, so using it would change NAdam's results and states.
 */
import { divide, exactProduct, exactSum, type Pair } from "./_double.ts";

/** ln 2 in two parts. The high part ends in enough zero bits that its multiples up to 2^20 are exact. */
const LN2: Pair = { high: 0x162e42fee / 2 ** 33, low: 1.9082149292705877e-10 };

/** In float64, exp(x) is 0 for x below this number, and infinite for x above its negative. */
const MIN_EXPONENT = -746;

const SERIES_TERMS = 14;

/** Computes ln(base) = doublings * ln 2 + 2*atanh((f-1)/(f+1)), with f from sqrt(1/2) to sqrt(2). */
const logarithm = (base: number): Pair => {
  let f = base;
  let doublings = 0;
  for (; f > Math.SQRT2; f /= 2) doublings++;
  for (; f < Math.SQRT1_2; f *= 2) doublings--;
  const { high: denominator, low: denominatorRest } = exactSum(f, 1);
  const s = (f - 1) / denominator;
  const { high: back, low: backRest } = exactProduct(s, denominator);
  const sRest = (f - 1 - back - backRest - s * denominatorRest) / denominator;
  const square = s * s;
  let series = 0;
  for (let k = SERIES_TERMS; k > 0; k--) series = square * (1 / (2 * k + 1) + series);
  const { high, low } = exactSum(doublings * LN2.high, 2 * s);
  return exactSum(high, low + (doublings * LN2.low + (2 * sRest + 2 * s * series)));
};

const exponential = ({ high, low }: Pair): number => {
  if (high < MIN_EXPONENT) return 0;
  if (high > -MIN_EXPONENT) return Infinity;
  const doublings = Math.round(high / LN2.high);
  const rest = high - doublings * LN2.high - doublings * LN2.low + low;
  let series = 1;
  for (let k = SERIES_TERMS; k > 0; k--) series = 1 + (rest / k) * series;
  // 2^1024 is infinite even if the result is finite, so the result is doubled one step at a time.
  for (let k = 0; k < doublings; k++) series *= 2;
  for (let k = 0; k > doublings; k--) series /= 2;
  return series;
};

/** Computes base^exponent for a finite base above 0 and a finite exponent, within 16 units in the last place (4 for bases from 0.96 to 1). */
export const realPower = (base: number, exponent: number): number => {
  const { high, low } = logarithm(base);
  const { high: result, low: rest } = exactProduct(high, exponent);
  if (!Number.isFinite(rest)) return exponential({ high: high * exponent, low: 0 });
  return exponential(exactSum(result, rest + low * exponent));
};

/** Computes ln(a) / ln(b) for a and b between 0 and 1. */
export const logarithmRatio = (a: number, b: number): number => {
  const { high, low } = divide(logarithm(a), logarithm(b));
  return high + low;
};
