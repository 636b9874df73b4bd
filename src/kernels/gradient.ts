/** Passes over gradients that every optimizer shares: checks, sums and scaling. One shard; `count` elements; `sums` is this block's row of float64 results. */
import { filled, read, spread, VECTOR, wholeBytes, write } from "./_lanes";
import { squaresHigh, squaresLow, storeSum, storeTally, tally } from "./_reduce";

/** sums = [how many values are NaN or infinite]: x - x is 0 for every finite x, else NaN. */
function check<T>(grad: usize, sums: usize, count: usize): void {
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  const zero = i32x4.splat(0);
  let found = i32x4.splat(0);
  let i: usize = 0;
  for (; i < whole; i += VECTOR) {
    const g = read<T, v128>(grad + i);
    found = tally(found, v128.ne<T>(v128.sub<T>(g, g), zero));
  }
  for (; i < bytes; i += sizeof<T>()) {
    const g = read<T, T>(grad + i);
    found = tally(found, v128.ne<T>(v128.sub<T>(g, g), zero));
  }
  storeTally<T>(sums, found);
}

/** sums = [how many values are NaN or infinite, sum of squares]. */
function norm<T>(grad: usize, sums: usize, count: usize): void {
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  const zero = i32x4.splat(0);
  let found = i32x4.splat(0),
    low = f64x2.splat(0),
    high = f64x2.splat(0);
  let i: usize = 0;
  for (; i < whole; i += VECTOR) {
    const g = read<T, v128>(grad + i);
    found = tally(found, v128.ne<T>(v128.sub<T>(g, g), zero));
    low = squaresLow<T>(low, g);
    high = squaresHigh<T>(high, g);
  }
  for (; i < bytes; i += sizeof<T>()) {
    const g = read<T, T>(grad + i);
    found = tally(found, v128.ne<T>(v128.sub<T>(g, g), zero));
    low = squaresLow<T>(low, filled<T, T>(g));
  }
  storeTally<T>(sums, found);
  storeSum(sums + 8, low, high);
}

/** grad *= factor: -1 for `maximize`, the clipping coefficient otherwise. */
function scale<T>(grad: usize, count: usize, factor: f64): void {
  const factors = spread<T>(factor);
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < whole; i += VECTOR) write<T, v128>(grad + i, v128.mul<T>(read<T, v128>(grad + i), factors));
  for (; i < bytes; i += sizeof<T>()) write<T, T>(grad + i, v128.mul<T>(read<T, T>(grad + i), factors));
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

export function gradient_scale_f32(grad: usize, count: usize, factor: f64): void {
  scale<f32>(grad, count, factor);
}

export function gradient_scale_f64(grad: usize, count: usize, factor: f64): void {
  scale<f64>(grad, count, factor);
}
