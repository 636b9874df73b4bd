/** Sums of squares of parameters and of their change, taken while the shard is in the cache. */
import { read, VECTOR, wholeBytes, write } from "./_lanes";
import { squaresHigh, squaresLow, storeSum } from "./_reduce";

/** Copies the parameters before a step; sums = [sum of their squares]. */
function keep<T>(param: usize, copy: usize, sums: usize, count: usize): void {
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  let low = f64x2.splat(0),
    high = f64x2.splat(0);
  let i: usize = 0;
  for (; i < whole; i += VECTOR) {
    const p = read<T, v128>(param + i);
    write<T, v128>(copy + i, p);
    low = squaresLow<T>(low, p);
    high = squaresHigh<T>(high, p);
  }
  for (; i < bytes; i += sizeof<T>()) {
    const p = read<T, T>(param + i);
    write<T, T>(copy + i, p);
    low = squaresLow<T>(low, p);
  }
  storeSum(sums, low, high);
}

/** sums = [sum of squares of the parameters' change since `keep` copied them]. */
function moved<T>(param: usize, copy: usize, sums: usize, count: usize): void {
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  let low = f64x2.splat(0),
    high = f64x2.splat(0);
  let i: usize = 0;
  for (; i < whole; i += VECTOR) {
    const change = v128.sub<T>(read<T, v128>(param + i), read<T, v128>(copy + i));
    low = squaresLow<T>(low, change);
    high = squaresHigh<T>(high, change);
  }
  for (; i < bytes; i += sizeof<T>()) low = squaresLow<T>(low, v128.sub<T>(read<T, T>(param + i), read<T, T>(copy + i)));
  storeSum(sums, low, high);
}

/** sums = [sum of squares of the values]. */
function squares<T>(values: usize, sums: usize, count: usize): void {
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  let low = f64x2.splat(0),
    high = f64x2.splat(0);
  let i: usize = 0;
  for (; i < whole; i += VECTOR) {
    const value = read<T, v128>(values + i);
    low = squaresLow<T>(low, value);
    high = squaresHigh<T>(high, value);
  }
  for (; i < bytes; i += sizeof<T>()) low = squaresLow<T>(low, read<T, T>(values + i));
  storeSum(sums, low, high);
}

export function stats_keep_f32(param: usize, copy: usize, sums: usize, count: usize): void {
  keep<f32>(param, copy, sums, count);
}

export function stats_keep_f64(param: usize, copy: usize, sums: usize, count: usize): void {
  keep<f64>(param, copy, sums, count);
}

export function stats_moved_f32(param: usize, copy: usize, sums: usize, count: usize): void {
  moved<f32>(param, copy, sums, count);
}

export function stats_moved_f64(param: usize, copy: usize, sums: usize, count: usize): void {
  moved<f64>(param, copy, sums, count);
}

export function stats_squares_f32(values: usize, sums: usize, count: usize): void {
  squares<f32>(values, sums, count);
}

export function stats_squares_f64(values: usize, sums: usize, count: usize): void {
  squares<f64>(values, sums, count);
}
