/** Widening conversions, which are exact. Subnormal numbers are kept. */
import { constant, readPair, wideHigh, wideLow } from "./_lanes";

/** Type arguments for the 16-bit format of a loop. */
export type Bf16 = i8;
export type F16 = i16;

/** 2^112: multiplying by it moves the exponent's bias from 15 to 127. */
function halfScale(count: usize): v128 {
  return constant<i32>(0x77800000, count);
}

/** 2^16, the scaled value of exponent 31, which in float16 means infinity or NaN. */
function halfSpecial(count: usize): v128 {
  return constant<i32>(0x47800000, count);
}

function infinity(count: usize): v128 {
  return constant<i32>(0x7f800000, count);
}

/**
 * Converts four 16-bit values, in the low halves of the lanes, to float32. BF16 is the upper half of a float32. For float16,
 * multiplying by `scale` rebiases the exponent and normalizes subnormals.
 */
function toSingle<F>(halves: v128, scale: v128, special: v128, inf: v128): v128 {
  if (sizeof<F>() === sizeof<Bf16>()) return i32x4.shl(halves, 16);
  const sign = i32x4.shl(i32x4.shr_u(halves, 15), 31);
  const magnitude = f32x4.mul(i32x4.shr_u(i32x4.shl(halves, 17), 4), scale);
  return v128.or(v128.or(magnitude, v128.and(f32x4.ge(magnitude, special), inf)), sign);
}

/** Widens 16-bit values to float32. */
export function widen<F>(source: usize, target: usize, count: usize): void {
  const scale = halfScale(count),
    special = halfSpecial(count),
    inf = infinity(count);
  const whole = count & ~7;
  let i: usize = 0;
  for (; i < whole; i += 8) {
    const halves = v128.load(source + 2 * i);
    v128.store(target + 4 * i, toSingle<F>(i32x4.extend_low_i16x8_u(halves), scale, special, inf));
    v128.store(target + 4 * i, toSingle<F>(i32x4.extend_high_i16x8_u(halves), scale, special, inf), 16);
  }
  for (; i < count; i++) v128.store_lane<f32>(target + 4 * i, toSingle<F>(i32x4.splat(<i32>load<u16>(source + 2 * i)), scale, special, inf), 0);
}

/** Widens 16-bit values to float64. */
export function widenTwice<F>(source: usize, target: usize, count: usize): void {
  const scale = halfScale(count),
    special = halfSpecial(count),
    inf = infinity(count);
  const whole = count & ~3;
  let i: usize = 0;
  for (; i < whole; i += 4) {
    const singles = toSingle<F>(v128.load_ext<u16>(source + 2 * i), scale, special, inf);
    v128.store(target + 8 * i, wideLow<f32>(singles));
    v128.store(target + 8 * i, wideHigh<f32>(singles), 16);
  }
  for (; i < count; i++) {
    const single = toSingle<F>(i32x4.splat(<i32>load<u16>(source + 2 * i)), scale, special, inf);
    store<f64>(target + 8 * i, <f64>f32x4.extract_lane(single, 0));
  }
}

/** Widens float32 to float64. */
export function singlesToDoubles(source: usize, target: usize, count: usize): void {
  const whole = count & ~1;
  let i: usize = 0;
  for (; i < whole; i += 2) v128.store(target + 8 * i, wideLow<f32>(readPair<f32>(source + 4 * i)));
  for (; i < count; i++) store<f64>(target + 8 * i, <f64>load<f32>(source + 4 * i));
}
