/**
 * Conversions between the tensors' dtypes and the arithmetic types. Widening is exact, narrowing rounds to nearest even, and
 * subnormal numbers are kept. Names are convert_<from>_<to>. Conversions to BF16 and F16 return true if a result is NaN or infinite.
 */
import { constant, isOn, narrow, Off, On } from "./_lanes";
import { keyPart, mix, multiplier1, multiplier2 } from "./_noise";
import { Bf16, F16, singlesToDoubles, widen, widenTwice } from "./_widen";

/** Rounds to bfloat16: adds `carry` and drops the low 16 bits. A NaN becomes a quiet NaN; the carry could otherwise turn it into infinity. */
function toBf16(value: v128, carry: v128, quietBit: v128): v128 {
  const rounded = i32x4.shr_u(i32x4.add(value, carry), 16);
  const quiet = v128.or(i32x4.shr_u(value, 16), quietBit);
  return v128.bitselect(quiet, rounded, f32x4.ne(value, value));
}

/** The carry for rounding to nearest even: half of the last kept place, minus one if the kept part is even. */
function nearestEven(value: v128, below: v128): v128 {
  return i32x4.add(below, i32x4.shr_u(i32x4.shl(value, 15), 31));
}

/** Sixteen pseudo-random bits for each index, from two rounds of `mix`. */
function noise(index: v128, keyLow: v128, keyHigh: v128, first: v128, second: v128): v128 {
  const mixed = mix(v128.xor(mix(v128.xor(index, keyLow), first, second), keyHigh), first, second);
  return i32x4.shr_u(i32x4.shl(mixed, 16), 16);
}

/** Converts four float32 values to float16, in the low halves of the lanes, rounded to nearest even. */
function toF16(value: v128, rebias: v128, half: v128, leastNormal: v128, inf: v128): v128 {
  const sign = i32x4.shl(i32x4.shr_u(value, 31), 15);
  const magnitude = i32x4.shr_u(i32x4.shl(value, 1), 1);
  // Normal results: `rebias` includes the carry for rounding to nearest even if the kept part is even; `odd` adds 1 if it is odd.
  const odd = i32x4.shr_u(i32x4.shl(value, 18), 31);
  const normal = i32x4.shr_u(i32x4.add(i32x4.add(magnitude, rebias), odd), 13);
  // Subnormal results: adding 0.5 aligns the sum so that its last bits are the rounded result.
  const subnormal = i32x4.sub(f32x4.add(magnitude, half), half);
  const finite = v128.bitselect(subnormal, normal, i32x4.lt_s(magnitude, leastNormal));
  // Values from 65520 on round to infinity. For NaN one more bit is set below.
  const nan = i32x4.shl(i32x4.shr_u(f32x4.ne(value, value), 31), 9);
  return v128.or(v128.or(i32x4.min_s(finite, inf), nan), sign);
}

/** Infinity shifted left by one, without its sign. Larger values are NaN. */
const BF16_INFINITY: i32 = 0xff00;
const F16_INFINITY: i32 = 0xf800;

/** The larger of two 16-bit magnitudes, lane by lane: `halves` shifted left by one to drop the sign. */
function larger(maxima: v128, halves: v128): v128 {
  return i16x8.max_u(maxima, i16x8.shl(halves, 1));
}

/** Writes the low half of lane 0, and returns it in all lanes. */
function writeHalf(target: usize, half: v128): v128 {
  v128.store_lane<i16>(target, half, 0);
  return i16x8.splat(<i16>i32x4.extract_lane(half, 0));
}

/** True if the largest magnitudes reach infinity, so that a result is infinite or NaN. */
function reaches(maxima: v128, infinity: i32): bool {
  return v128.any_true(i16x8.ge_u(maxima, i16x8.splat(<i16>infinity)));
}

/**
 * Rounds float32 values to bfloat16: to nearest even, or stochastically, rounding up with a probability equal to the dropped
 * fraction. `index` is the tensor's index of the shard's first element, plus one. Scalars: the lower and the upper half of the key.
 */
function roundBf16<Stochastic>(source: usize, target: usize, index: usize, count: usize, scalars: usize): bool {
  const low = isOn<Stochastic>() ? keyPart(scalars, 0) : i32x4.splat(0),
    high = isOn<Stochastic>() ? keyPart(scalars, 1) : low,
    first = multiplier1(count),
    second = multiplier2(count),
    below = constant<i32>(0x7fff, count),
    quietBit = constant<i32>(0x40, count);
  const whole = count & ~7;
  let maxima = i32x4.splat(0);
  let i: usize = 0;
  for (; i < whole; i += 8) {
    const at = i32x4.splat(<i32>(index + i));
    const value = v128.load(source + 4 * i),
      next = v128.load(source + 4 * i, 16);
    const carry = isOn<Stochastic>() ? noise(i32x4.add(at, i32x4(0, 1, 2, 3)), low, high, first, second) : nearestEven(value, below),
      carryNext = isOn<Stochastic>() ? noise(i32x4.add(at, i32x4(4, 5, 6, 7)), low, high, first, second) : nearestEven(next, below);
    const halves = i16x8.narrow_i32x4_u(toBf16(value, carry, quietBit), toBf16(next, carryNext, quietBit));
    v128.store(target + 2 * i, halves);
    maxima = larger(maxima, halves);
  }
  for (; i < count; i++) {
    const value = v128.load_splat<f32>(source + 4 * i);
    const carry = isOn<Stochastic>() ? noise(i32x4.splat(<i32>(index + i)), low, high, first, second) : nearestEven(value, below);
    maxima = larger(maxima, writeHalf(target + 2 * i, toBf16(value, carry, quietBit)));
  }
  return reaches(maxima, BF16_INFINITY);
}

export function convert_f32_bf16(source: usize, target: usize, count: usize): bool {
  return roundBf16<Off>(source, target, 0, count, 0);
}

export function convert_stochastic_f32_bf16(source: usize, target: usize, index: usize, count: usize, scalars: usize): bool {
  return roundBf16<On>(source, target, index, count, scalars);
}

export function convert_f32_f16(source: usize, target: usize, count: usize): bool {
  const rebias = constant<i32>(<i32>0xc8000fff, count),
    half = constant<i32>(0x3f000000, count),
    leastNormal = constant<i32>(0x38800000, count),
    inf = constant<i32>(0x7c00, count);
  const whole = count & ~7;
  let maxima = i32x4.splat(0);
  let i: usize = 0;
  for (; i < whole; i += 8) {
    const low = toF16(v128.load(source + 4 * i), rebias, half, leastNormal, inf),
      high = toF16(v128.load(source + 4 * i, 16), rebias, half, leastNormal, inf);
    const halves = i16x8.narrow_i32x4_u(low, high);
    v128.store(target + 2 * i, halves);
    maxima = larger(maxima, halves);
  }
  for (; i < count; i++) maxima = larger(maxima, writeHalf(target + 2 * i, toF16(v128.load_splat<f32>(source + 4 * i), rebias, half, leastNormal, inf)));
  return reaches(maxima, F16_INFINITY);
}

export function convert_bf16_f32(source: usize, target: usize, count: usize): void {
  widen<Bf16>(source, target, count);
}

export function convert_f16_f32(source: usize, target: usize, count: usize): void {
  widen<F16>(source, target, count);
}

export function convert_bf16_f64(source: usize, target: usize, count: usize): void {
  widenTwice<Bf16>(source, target, count);
}

export function convert_f16_f64(source: usize, target: usize, count: usize): void {
  widenTwice<F16>(source, target, count);
}

export function convert_f64_f32(source: usize, target: usize, count: usize): void {
  const whole = count & ~3;
  let i: usize = 0;
  for (; i < whole; i += 4) v128.store(target + 4 * i, narrow<f32>(v128.load(source + 8 * i), v128.load(source + 8 * i, 16)));
  for (; i < count; i++) store<f32>(target + 4 * i, <f32>load<f64>(source + 8 * i));
}

export function convert_f32_f64(source: usize, target: usize, count: usize): void {
  singlesToDoubles(source, target, count);
}
