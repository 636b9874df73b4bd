/**
 * Float64 sums over one block of a tensor, in an order that depends on the block alone: first within each lane, then the four
 * partial sums from left to right. The engine adds the blocks in order, so a sum has the same bits for any worker count.
 */

/** Adds the squares of the first two lanes to an accumulator; a float64 vector has no others. */
export function squaresLow<T>(sum: v128, value: v128): v128 {
  const wide = sizeof<T>() === 4 ? f64x2.promote_low_f32x4(value) : value;
  return f64x2.add(sum, f64x2.mul(wide, wide));
}

/** Adds the squares of lanes 2 and 3 of a float32 vector to an accumulator. */
export function squaresHigh<T>(sum: v128, value: v128): v128 {
  if (sizeof<T>() === 8) return sum;
  const wide = f64x2.promote_low_f32x4(v128.shuffle<i64>(value, value, 1, 1));
  return f64x2.add(sum, f64x2.mul(wide, wide));
}

/** low[0] + low[1] + high[0] + high[1]. */
export function total(low: v128, high: v128): f64 {
  const left = f64x2.extract_lane(low, 0) + f64x2.extract_lane(low, 1);
  return left + f64x2.extract_lane(high, 0) + f64x2.extract_lane(high, 1);
}

/** Stores the total of two accumulators. */
export function storeSum(at: usize, low: v128, high: v128): void {
  store<f64>(at, total(low, high));
}

/** Adds one to the integer lanes where a comparison was true: its result there is -1. */
export function tally(counts: v128, holds: v128): v128 {
  return i32x4.sub(counts, holds);
}

/** Stores the sum of the four counts as a float64. A float64 comparison counts in two integer lanes, so its sum is halved. */
export function storeTally<T>(at: usize, counts: v128): void {
  const sum = i32x4.extract_lane(counts, 0) + i32x4.extract_lane(counts, 1) + i32x4.extract_lane(counts, 2) + i32x4.extract_lane(counts, 3);
  store<f64>(at, <f64>(sizeof<T>() === 4 ? sum : sum / 2));
}
