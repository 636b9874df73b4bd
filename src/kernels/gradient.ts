/** Passes over gradients that every optimizer shares: checks, sums, scaling. `scale`, `divide` and `clamp` have one scalar. */
import { filled, lanes, PAIR, pairedBytes, read, readNext, scalar, spread, VECTOR, wholeBytes, write, writePair } from "./_lanes";
import { squaresHigh, squaresLow, storeSum, storeTally, tally } from "./_reduce";

/** 0 where the square is finite, else NaN. */
function defect<T>(g: v128): v128 {
  const square = v128.mul<T>(g, g);
  return v128.sub<T>(square, square);
}

/** sums = [values that are NaN or infinite, values whose square is not finite]: x - x is 0 for every finite x, else NaN. */
function tallies<T>(grad: usize, sums: usize, count: usize): void {
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  const zero = i32x4.splat(0);
  let found = zero,
    large = zero;
  let i: usize = 0;
  for (; i < whole; i += VECTOR) {
    const g = read<T, v128>(grad + i);
    found = tally(found, v128.ne<T>(v128.sub<T>(g, g), zero));
    large = tally(large, v128.ne<T>(defect<T>(g), zero));
  }
  for (; i < bytes; i += sizeof<T>()) {
    const g = read<T, T>(grad + i);
    found = tally(found, v128.ne<T>(v128.sub<T>(g, g), zero));
    large = tally(large, v128.ne<T>(defect<T>(g), zero));
  }
  storeTally<T>(sums, found);
  storeTally<T>(sums + 8, large);
}

/** Zeros as the first two sums. */
function storeNone(sums: usize): void {
  store<f64>(sums, 0);
  store<f64>(sums + 8, 0);
}

/** sums as in `tallies`. Values are told apart only where a square is not finite, which takes two thirds of the time. */
function check<T>(grad: usize, sums: usize, count: usize): void {
  const paired = pairedBytes<T>(count),
    bytes = count * sizeof<T>();
  let first = v128.splat<T>(0),
    second = v128.splat<T>(0);
  let i: usize = 0;
  for (; i < paired; i += PAIR) {
    first = v128.add<T>(first, defect<T>(read<T, v128>(grad + i)));
    second = v128.add<T>(second, defect<T>(readNext<T, v128>(grad + i)));
  }
  for (; i < bytes; i += sizeof<T>()) first = v128.add<T>(first, defect<T>(read<T, T>(grad + i)));
  const all = v128.add<T>(first, second);
  if (v128.any_true(v128.ne<T>(all, all))) tallies<T>(grad, sums, count);
  else storeNone(sums);
}

/** sums = those of `tallies`, zeros, sum of squares. */
function norm<T>(grad: usize, sums: usize, count: usize): void {
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  const zero = i32x4.splat(0);
  let zeros = zero,
    low = f64x2.splat(0),
    high = f64x2.splat(0);
  let i: usize = 0;
  for (; i < whole; i += VECTOR) {
    const g = read<T, v128>(grad + i);
    zeros = tally(zeros, v128.eq<T>(g, zero));
    low = squaresLow<T>(low, g);
    high = squaresHigh<T>(high, g);
  }
  for (; i < bytes; i += sizeof<T>()) {
    const g = read<T, T>(grad + i);
    zeros = tally(zeros, filled<T, T>(v128.eq<T>(g, zero)));
    low = squaresLow<T>(low, g);
  }
  storeTally<T>(sums + 16, zeros);
  storeSum(sums + 24, low, high);
  // A sum that is a finite number of T has no part that is none.
  const largest: f64 = sizeof<T>() === 4 ? <f64>f32.MAX_VALUE : f64.MAX_VALUE;
  if (load<f64>(sums + 24) <= largest) storeNone(sums);
  else tallies<T>(grad, sums, count);
}

/** grad *= factor: -1 for `maximize`, the clipping coefficient otherwise. */
function scale<T>(grad: usize, count: usize, scalars: usize): void {
  const factors = lanes<T>(scalars, 0);
  const paired = pairedBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < paired; i += PAIR) writePair<T, v128>(grad + i, v128.mul<T>(read<T, v128>(grad + i), factors), v128.mul<T>(readNext<T, v128>(grad + i), factors));
  for (; i < bytes; i += sizeof<T>()) write<T, T>(grad + i, v128.mul<T>(read<T, T>(grad + i), factors));
}

/** grad /= divisor, rounded once: exact for powers of two. */
function divide<T>(grad: usize, count: usize, scalars: usize): void {
  const divisors = lanes<T>(scalars, 0);
  const paired = pairedBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < paired; i += PAIR)
    writePair<T, v128>(grad + i, v128.div<T>(read<T, v128>(grad + i), divisors), v128.div<T>(readNext<T, v128>(grad + i), divisors));
  for (; i < bytes; i += sizeof<T>()) write<T, T>(grad + i, v128.div<T>(read<T, T>(grad + i), divisors));
}

/** grad = min(max(grad, -limit), limit); NaN stays. */
function clamp<T>(grad: usize, count: usize, scalars: usize): void {
  const limit = scalar(scalars, 0);
  const upper = spread<T>(limit),
    lower = spread<T>(-limit);
  const paired = pairedBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < paired; i += PAIR) {
    const g = v128.max<T>(read<T, v128>(grad + i), lower),
      gNext = v128.max<T>(readNext<T, v128>(grad + i), lower);
    writePair<T, v128>(grad + i, v128.min<T>(g, upper), v128.min<T>(gNext, upper));
  }
  for (; i < bytes; i += sizeof<T>()) write<T, T>(grad + i, v128.min<T>(v128.max<T>(read<T, T>(grad + i), lower), upper));
}

export function gradient_check_f32(grad: usize, sums: usize, count: usize): void {
  check<f32>(grad, sums, count);
}

export function gradient_check_f64(grad: usize, sums: usize, count: usize): void {
  check<f64>(grad, sums, count);
}

export function gradient_norm_f32(grad: usize, sums: usize, count: usize): void {
  norm<f32>(grad, sums, count);
}

export function gradient_norm_f64(grad: usize, sums: usize, count: usize): void {
  norm<f64>(grad, sums, count);
}

export function gradient_scale_f32(grad: usize, count: usize, scalars: usize): void {
  scale<f32>(grad, count, scalars);
}

export function gradient_scale_f64(grad: usize, count: usize, scalars: usize): void {
  scale<f64>(grad, count, scalars);
}

export function gradient_divide_f32(grad: usize, count: usize, scalars: usize): void {
  divide<f32>(grad, count, scalars);
}

export function gradient_divide_f64(grad: usize, count: usize, scalars: usize): void {
  divide<f64>(grad, count, scalars);
}

export function gradient_clamp_f32(grad: usize, count: usize, scalars: usize): void {
  clamp<f32>(grad, count, scalars);
}

export function gradient_clamp_f64(grad: usize, count: usize, scalars: usize): void {
  clamp<f64>(grad, count, scalars);
}
