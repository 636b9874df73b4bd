/**
 * Pseudo-random bits for stochastic rounding, from an element's index and a 64-bit key: the mixing function and the constants of
 * Wellons' lowbias32 (https://nullprogram.com/blog/2018/07/31/).
 */
import { constant, scalar } from "./_lanes";

/** Each constant has one of the two multipliers in every lane. */
export function multiplier1(count: usize): v128 {
  return constant<i32>(0x7feb352d, count);
}

export function multiplier2(count: usize): v128 {
  return constant<i32>(<i32>0x846ca68b, count);
}

/** Copies one half of the key to every lane. The half is a 32-bit integer, passed as a float64 scalar. */
export function keyPart(scalars: usize, index: usize): v128 {
  return i32x4.splat(<i32>(<u32>scalar(scalars, index)));
}

export function mix(value: v128, first: v128, second: v128): v128 {
  let x = v128.xor(value, i32x4.shr_u(value, 16));
  x = i32x4.mul(x, first);
  x = v128.xor(x, i32x4.shr_u(x, 15));
  x = i32x4.mul(x, second);
  return v128.xor(x, i32x4.shr_u(x, 16));
}
