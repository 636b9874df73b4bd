/** Sums of squares of parameters and of their change, taken while the shard is in the cache. */
import { read, VECTOR, wholeBytes, write } from "./_lanes";
import { squaresHigh, squaresLow, storeSum } from "./_reduce";

/** Type arguments for a pass over values: their squares alone; also a copy of the values; or the squares of their change since the copy. */
type Squares = i8;
type Copy = i16;
type Change = i32;

/** The value to square at an address; `copy` is the address of its copy. */
function operand<T, W, Pass>(at: usize, copy: usize): v128 {
  const value = read<T, W>(at);
  if (sizeof<Pass>() === sizeof<Change>()) return v128.sub<T>(value, read<T, W>(copy));
  if (sizeof<Pass>() === sizeof<Copy>()) write<T, W>(copy, value);
  return value;
}

/** sums = [sum of squares]. */
function sumSquares<T, Pass>(values: usize, copy: usize, sums: usize, count: usize): void {
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  let low = f64x2.splat(0),
    high = f64x2.splat(0);
  let i: usize = 0;
  for (; i < whole; i += VECTOR) {
    const value = operand<T, v128, Pass>(values + i, copy + i);
    low = squaresLow<T>(low, value);
    high = squaresHigh<T>(high, value);
  }
  for (; i < bytes; i += sizeof<T>()) low = squaresLow<T>(low, operand<T, T, Pass>(values + i, copy + i));
  storeSum(sums, low, high);
}

export function stats_keep_f32(param: usize, copy: usize, sums: usize, count: usize): void {
  sumSquares<f32, Copy>(param, copy, sums, count);
}

export function stats_keep_f64(param: usize, copy: usize, sums: usize, count: usize): void {
  sumSquares<f64, Copy>(param, copy, sums, count);
}

export function stats_moved_f32(param: usize, copy: usize, sums: usize, count: usize): void {
  sumSquares<f32, Change>(param, copy, sums, count);
}

export function stats_moved_f64(param: usize, copy: usize, sums: usize, count: usize): void {
  sumSquares<f64, Change>(param, copy, sums, count);
}

export function stats_squares_f32(values: usize, sums: usize, count: usize): void {
  sumSquares<f32, Squares>(values, 0, sums, count);
}

export function stats_squares_f64(values: usize, sums: usize, count: usize): void {
  sumSquares<f64, Squares>(values, 0, sums, count);
}
