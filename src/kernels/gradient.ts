/** Gradient passes shared by all optimizers: checks, sums, scaling. `scale`, `divide` and `clamp` take one scalar. */
import {
  hasTail,
  lanes,
  PAIR,
  pairedBytes,
  read,
  readNext,
  scalar,
  spread,
  strideOf,
  VECTOR,
  walkedBytes,
  wholeBytes,
  writePair,
  zeroUnusedLanes,
} from "./_lanes";
import { squaresHigh, squaresLow, storeSum, storeTally, tally } from "./_reduce";

/** 0 where the square of the gradient is finite, else NaN. */
function squareDefect<T>(g: v128): v128 {
  const square = v128.mul<T>(g, g);
  return v128.sub<T>(square, square);
}

/** sums = [count of NaN or infinite values, count of values whose square is not finite]. x - x is 0 for every finite x, else NaN. */
function countNonFinite<T>(grad: usize, sums: usize, count: usize): void {
  const zero = i32x4.splat(0),
    bytes = count * sizeof<T>();
  let found = zero,
    large = zero;
  // One element at a time: this rare pass needs no speed.
  for (let i: usize = 0; i < bytes; i += sizeof<T>()) {
    const g = read<T, T>(grad + i);
    found = tally(found, v128.ne<T>(v128.sub<T>(g, g), zero));
    large = tally(large, v128.ne<T>(squareDefect<T>(g), zero));
  }
  storeTally<T>(sums, found);
  storeTally<T>(sums + 8, large);
}

/** Stores zero as the two counts of `countNonFinite`. */
function storeAllFinite(sums: usize): void {
  store<f64>(sums, 0);
  store<f64>(sums + 8, 0);
}

/** sums as in `countNonFinite`. A fast pass tests for any non-finite square, and counts only then: two thirds of the time. */
function check<T>(grad: usize, sums: usize, count: usize): void {
  const paired = pairedBytes<T>(count),
    bytes = count * sizeof<T>();
  let first = v128.splat<T>(0),
    second = v128.splat<T>(0);
  let i: usize = 0;
  for (; i < paired; i += PAIR) {
    first = v128.add<T>(first, squareDefect<T>(read<T, v128>(grad + i)));
    second = v128.add<T>(second, squareDefect<T>(readNext<T, v128>(grad + i)));
  }
  for (; i < bytes; i += sizeof<T>()) first = v128.add<T>(first, squareDefect<T>(read<T, T>(grad + i)));
  const all = v128.add<T>(first, second);
  if (v128.any_true(v128.ne<T>(all, all))) countNonFinite<T>(grad, sums, count);
  else storeAllFinite(sums);
}

/** sums = [the two counts of `countNonFinite`, count of zeros, sum of squares]. */
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
    zeros = tally(zeros, zeroUnusedLanes<T, T>(v128.eq<T>(g, zero)));
    low = squaresLow<T>(low, g);
  }
  storeTally<T>(sums + 16, zeros);
  storeSum(sums + 24, low, high);
  // A sum within T's finite range proves that every square is finite in T.
  const largest: f64 = sizeof<T>() === 4 ? <f64>f32.MAX_VALUE : f64.MAX_VALUE;
  if (load<f64>(sums + 24) <= largest) storeAllFinite(sums);
  else countNonFinite<T>(grad, sums, count);
}

/** grad *= factor: -1 for `maximize`, or the clipping coefficient. */
function scale<T, W>(grad: usize, count: usize, scalars: usize): void {
  const factors = lanes<T>(scalars, 0);
  const stride = strideOf<W>(),
    end = grad + walkedBytes<T, W>(count);
  for (; grad !== end; grad += stride) writePair<T, W>(grad, v128.mul<T>(read<T, W>(grad), factors), v128.mul<T>(readNext<T, W>(grad), factors));
  if (hasTail<T, W>(count)) scale<T, T>(grad, count, scalars);
}

/** grad /= divisor, rounded once; exact if the divisor is a power of two. */
function divide<T, W>(grad: usize, count: usize, scalars: usize): void {
  const divisors = lanes<T>(scalars, 0);
  const stride = strideOf<W>(),
    end = grad + walkedBytes<T, W>(count);
  for (; grad !== end; grad += stride) writePair<T, W>(grad, v128.div<T>(read<T, W>(grad), divisors), v128.div<T>(readNext<T, W>(grad), divisors));
  if (hasTail<T, W>(count)) divide<T, T>(grad, count, scalars);
}

/** grad = min(max(grad, -limit), limit); NaN stays NaN. */
function clamp<T, W>(grad: usize, count: usize, scalars: usize): void {
  // Not v128.neg: V8 13.6 merges the negation of a float64 vector to a wrong 256-bit result.
  const upper = lanes<T>(scalars, 0),
    lower = spread<T>(-scalar(scalars, 0));
  const stride = strideOf<W>(),
    end = grad + walkedBytes<T, W>(count);
  for (; grad !== end; grad += stride) {
    const g = v128.max<T>(read<T, W>(grad), lower),
      gNext = v128.max<T>(readNext<T, W>(grad), lower);
    writePair<T, W>(grad, v128.min<T>(g, upper), v128.min<T>(gNext, upper));
  }
  if (hasTail<T, W>(count)) clamp<T, T>(grad, count, scalars);
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
  scale<f32, v128>(grad, count, scalars);
}

export function gradient_scale_f64(grad: usize, count: usize, scalars: usize): void {
  scale<f64, v128>(grad, count, scalars);
}

export function gradient_divide_f32(grad: usize, count: usize, scalars: usize): void {
  divide<f32, v128>(grad, count, scalars);
}

export function gradient_divide_f64(grad: usize, count: usize, scalars: usize): void {
  divide<f64, v128>(grad, count, scalars);
}

export function gradient_clamp_f32(grad: usize, count: usize, scalars: usize): void {
  clamp<f32, v128>(grad, count, scalars);
}

export function gradient_clamp_f64(grad: usize, count: usize, scalars: usize): void {
  clamp<f64, v128>(grad, count, scalars);
}
