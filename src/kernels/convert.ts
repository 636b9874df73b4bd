/**
 * Conversions between the dtypes of tensors and those of arithmetic: exact where they widen, to nearest even where they
 * narrow, subnormal numbers kept. One shard; `count` elements. Names are convert_<from>_<to>.
 */

/** BF16 is the upper half of a float32. */
export function convert_bf16_f32(source: usize, target: usize, count: usize): void {
  const whole = count & ~7;
  const zero = i32x4.splat(0);
  let i: usize = 0;
  for (; i < whole; i += 8) {
    const halves = v128.load(source + 2 * i);
    v128.store(target + 4 * i, v128.shuffle<i16>(zero, halves, 0, 8, 0, 9, 0, 10, 0, 11));
    v128.store(target + 4 * i + 16, v128.shuffle<i16>(zero, halves, 0, 12, 0, 13, 0, 14, 0, 15));
  }
  for (; i < count; i++) store<u32>(target + 4 * i, (<u32>load<u16>(source + 2 * i)) << 16);
}

/** Four float16 in the low halves of lanes to float32: the exponent is moved by a multiplication, which also normalizes subnormals. */
function halfToSingle(halves: v128): v128 {
  const sign = i32x4.shl(v128.and(halves, i32x4.splat(0x8000)), 16);
  const magnitude = v128.and(halves, i32x4.splat(0x7fff));
  // 2^112 carries the exponent's bias from 15 to 127; what had exponent 31 gets 255, which is infinity and NaN.
  const finite = f32x4.mul(i32x4.shl(magnitude, 13), f32x4.splat(reinterpret<f32>(0x77800000)));
  const special = v128.or(i32x4.shl(magnitude, 13), i32x4.splat(0x7f800000));
  const isSpecial = i32x4.ge_u(magnitude, i32x4.splat(0x7c00));
  return v128.or(v128.bitselect(special, finite, isSpecial), sign);
}

export function convert_f16_f32(source: usize, target: usize, count: usize): void {
  const whole = count & ~3;
  let i: usize = 0;
  for (; i < whole; i += 4) v128.store(target + 4 * i, halfToSingle(v128.load_ext<u16>(source + 2 * i)));
  for (; i < count; i++) v128.store_lane<f32>(target + 4 * i, halfToSingle(i32x4.splat(<i32>load<u16>(source + 2 * i))), 0);
}

/** Adds `carry` to the bits below the BF16 part and cuts them off; NaN becomes a quiet NaN instead of being carried to infinity. */
function toBf16(value: v128, carry: v128): v128 {
  const rounded = i32x4.shr_u(i32x4.add(value, carry), 16);
  const quiet = v128.or(i32x4.shr_u(value, 16), i32x4.splat(0x40));
  return v128.bitselect(quiet, rounded, f32x4.ne(value, value));
}

/** Half of the last place that is kept, less one where the part that is kept is even: ties go to even. */
function nearestEven(value: v128): v128 {
  return i32x4.add(i32x4.splat(0x7fff), v128.and(i32x4.shr_u(value, 16), i32x4.splat(1)));
}

export function convert_f32_bf16(source: usize, target: usize, count: usize): void {
  const whole = count & ~3;
  let i: usize = 0;
  for (; i < whole; i += 4) {
    const value = v128.load(source + 4 * i);
    const rounded = toBf16(value, nearestEven(value));
    v128.store64_lane(target + 2 * i, i16x8.narrow_i32x4_u(rounded, rounded), 0);
  }
  for (; i < count; i++) {
    const value = v128.load_splat<f32>(source + 4 * i);
    store<u16>(target + 2 * i, <u16>i32x4.extract_lane(toBf16(value, nearestEven(value)), 0));
  }
}

/**
 * Sixteen bits that look random, from an element's index and a key of 64 bits: two rounds of multiply and xor-shift. The
 * constants are those of Wellons' lowbias32 (https://nullprogram.com/blog/2018/07/31/).
 */
function noise(index: v128, keyLow: v128, keyHigh: v128): v128 {
  return v128.and(mix(v128.xor(mix(v128.xor(index, keyLow)), keyHigh)), i32x4.splat(0xffff));
}

function mix(value: v128): v128 {
  let x = v128.xor(value, i32x4.shr_u(value, 16));
  x = i32x4.mul(x, i32x4.splat(0x7feb352d));
  x = v128.xor(x, i32x4.shr_u(x, 15));
  x = i32x4.mul(x, i32x4.splat(<i32>0x846ca68b));
  return v128.xor(x, i32x4.shr_u(x, 16));
}

/** Rounds up with the probability of the part that is cut off. `index` is one more than the tensor's element that the shard starts at. */
export function convert_stochastic_f32_bf16(source: usize, target: usize, index: usize, count: usize, keyLow: f64, keyHigh: f64): void {
  const low = i32x4.splat(<i32>(<u32>keyLow)),
    high = i32x4.splat(<i32>(<u32>keyHigh));
  const whole = count & ~3;
  let elements = i32x4.add(i32x4.splat(<i32>index), i32x4(0, 1, 2, 3));
  let i: usize = 0;
  for (; i < whole; i += 4) {
    const value = v128.load(source + 4 * i);
    const rounded = toBf16(value, noise(elements, low, high));
    v128.store64_lane(target + 2 * i, i16x8.narrow_i32x4_u(rounded, rounded), 0);
    elements = i32x4.add(elements, i32x4.splat(4));
  }
  for (; i < count; i++) {
    const value = v128.load_splat<f32>(source + 4 * i);
    store<u16>(target + 2 * i, <u16>i32x4.extract_lane(toBf16(value, noise(i32x4.splat(<i32>(index + i)), low, high)), 0));
  }
}

/** Four float32 to float16 in the low halves of lanes, to nearest even. */
function singleToHalf(value: v128): v128 {
  const sign = i32x4.shr_u(v128.and(value, i32x4.splat(<i32>0x80000000)), 16);
  const magnitude = v128.and(value, i32x4.splat(0x7fffffff));
  // Normal results: rebias the exponent and add half of the last place, less one where the kept part is even.
  const odd = v128.and(i32x4.shr_u(magnitude, 13), i32x4.splat(1));
  const normal = i32x4.shr_u(i32x4.add(i32x4.add(magnitude, i32x4.splat(<i32>0xc8000fff)), odd), 13);
  // Subnormal results: adding 0.5 leaves the rounded bits at the end of the sum.
  const subnormal = i32x4.sub(f32x4.add(magnitude, f32x4.splat(0.5)), i32x4.splat(0x3f000000));
  const isSubnormal = i32x4.lt_u(magnitude, i32x4.splat(0x38800000));
  const finite = v128.bitselect(subnormal, normal, isSubnormal);
  // From 65520 on the nearest is infinity; a NaN keeps a bit of its own.
  const isNan = i32x4.gt_u(magnitude, i32x4.splat(0x7f800000));
  const special = v128.bitselect(i32x4.splat(0x7e00), i32x4.splat(0x7c00), isNan);
  const isSpecial = i32x4.ge_u(magnitude, i32x4.splat(0x477ff000));
  return v128.or(v128.bitselect(special, finite, isSpecial), sign);
}

export function convert_f32_f16(source: usize, target: usize, count: usize): void {
  const whole = count & ~3;
  let i: usize = 0;
  for (; i < whole; i += 4) {
    const halves = singleToHalf(v128.load(source + 4 * i));
    v128.store64_lane(target + 2 * i, i16x8.narrow_i32x4_u(halves, halves), 0);
  }
  for (; i < count; i++) store<u16>(target + 2 * i, <u16>i32x4.extract_lane(singleToHalf(v128.load_splat<f32>(source + 4 * i)), 0));
}

export function convert_f64_f32(source: usize, target: usize, count: usize): void {
  for (let i: usize = 0; i < count; i++) store<f32>(target + 4 * i, <f32>load<f64>(source + 8 * i));
}

export function convert_f32_f64(source: usize, target: usize, count: usize): void {
  for (let i: usize = 0; i < count; i++) store<f64>(target + 8 * i, <f64>load<f32>(source + 4 * i));
}

export function convert_bf16_f64(source: usize, target: usize, count: usize): void {
  for (let i: usize = 0; i < count; i++) store<f64>(target + 8 * i, <f64>reinterpret<f32>((<u32>load<u16>(source + 2 * i)) << 16));
}

export function convert_f16_f64(source: usize, target: usize, count: usize): void {
  for (let i: usize = 0; i < count; i++) {
    const single = halfToSingle(i32x4.splat(<i32>load<u16>(source + 2 * i)));
    store<f64>(target + 8 * i, <f64>f32x4.extract_lane(single, 0));
  }
}
