/**
 * Moments in narrow formats (docs/state-format.md, "Narrow moments"). A step widens a block of a slot to float32, runs the optimizer's
 * kernel on it, and rounds the new moments back.
 *
 * A signed slot is rounded to nearest even. A slot of squares is rounded stochastically, up or down with probabilities that
 * keep the expected value: an average of squares moves by less than half a step of the format, so that nearest would stall it.
 * `index` is the tensor's index of the first element, plus one. Scalars: the lower and the upper half of the noise's key.
 *
 * Q8 stores 64 consecutive elements as codes of 8 bits and a scale in BF16, the largest magnitude rounded up.
 */
import { constant, isOn, Off, On } from "./_lanes";
import { keyPart, mix, multiplier1, multiplier2 } from "./_noise";

/** Elements that share a scale. */
const BLOCK: usize = 64;

/** Elements of an iteration with noise. Each 32-bit hash serves the elements e and e + 8 with its lower and its upper half. */
const GROUP: usize = 16;

/** The hash for the elements e and e + 8 of a group. `at` is the index of the group's first element, `lane` numbers the elements. */
function hash(at: usize, lane: v128, keyLow: v128, keyHigh: v128, first: v128, second: v128): v128 {
  return v128.xor(mix(v128.xor(i32x4.add(i32x4.splat(<i32>at), lane), keyLow), first, second), keyHigh);
}

function lowHalf(hash: v128): v128 {
  return i32x4.shr_u(i32x4.shl(hash, 16), 16);
}

function highHalf(hash: v128): v128 {
  return i32x4.shr_u(hash, 16);
}

/** The sixteen random bits of one element, in lane 0. */
function noiseOf(element: usize, keyLow: v128, keyHigh: v128, first: v128, second: v128): v128 {
  const inGroup = element & (GROUP - 1);
  const found = hash(element - inGroup, i32x4.splat(<i32>(inGroup & 7)), keyLow, keyHigh, first, second);
  return inGroup < 8 ? lowHalf(found) : highHalf(found);
}

/** Drops the low 16 bits after adding random ones. A NaN becomes a quiet NaN. */
function toBf16(value: v128, noise: v128, quietBit: v128): v128 {
  const rounded = i32x4.shr_u(i32x4.add(value, noise), 16);
  return v128.bitselect(v128.or(i32x4.shr_u(value, 16), quietBit), rounded, f32x4.ne(value, value));
}

export function moments_square_f32_bf16(source: usize, target: usize, index: usize, count: usize, scalars: usize): void {
  const keyLow = keyPart(scalars, 0),
    keyHigh = keyPart(scalars, 1),
    first = multiplier1(count),
    second = multiplier2(count),
    quietBit = constant<i32>(0x40, count);
  const whole = count & ~(GROUP - 1),
    start = index - 1;
  let i: usize = 0;
  for (; i < whole; i += GROUP) {
    const h = hash(start + i, i32x4(0, 1, 2, 3), keyLow, keyHigh, first, second),
      hNext = hash(start + i, i32x4(4, 5, 6, 7), keyLow, keyHigh, first, second);
    const at = source + 4 * i,
      to = target + 2 * i;
    v128.store(to, i16x8.narrow_i32x4_u(toBf16(v128.load(at), lowHalf(h), quietBit), toBf16(v128.load(at, 16), lowHalf(hNext), quietBit)));
    v128.store(to, i16x8.narrow_i32x4_u(toBf16(v128.load(at, 32), highHalf(h), quietBit), toBf16(v128.load(at, 48), highHalf(hNext), quietBit)), 16);
  }
  for (; i < count; i++) {
    const half = toBf16(v128.load_splat<f32>(source + 4 * i), noiseOf(start + i, keyLow, keyHigh, first, second), quietBit);
    v128.store_lane<i16>(target + 2 * i, half, 0);
  }
}

const INFINITY_BITS: u32 = 0x7f800000;

/** A scale in BF16: a magnitude rounded up, but a finite one to a finite one. Takes and gives the bits of a float32. */
function roundUp(magnitude: u32): u32 {
  if (magnitude > INFINITY_BITS) return 0x7fc00000;
  const rounded = (magnitude + 0xffff) & 0xffff0000;
  return rounded === INFINITY_BITS && magnitude < INFINITY_BITS ? 0x7f7f0000 : rounded;
}

function loadScale(at: usize): f32 {
  return reinterpret<f32>((<u32>load<u16>(at)) << 16);
}

/** The bits of the largest magnitude of a block. As integers, magnitudes have the order of their values, and NaN is the largest. */
function largestOf(source: usize, count: usize, magnitude: v128): u32 {
  const whole = count & ~7;
  let a = i32x4.splat(0),
    b = i32x4.splat(0);
  let i: usize = 0;
  for (; i < whole; i += 8) {
    a = i32x4.max_s(a, v128.and(v128.load(source + 4 * i), magnitude));
    b = i32x4.max_s(b, v128.and(v128.load(source + 4 * i, 16), magnitude));
  }
  for (; i < count; i++) a = i32x4.max_s(a, v128.and(v128.load_splat<f32>(source + 4 * i), magnitude));
  a = i32x4.max_s(a, b);
  a = i32x4.max_s(a, v128.shuffle<i64>(a, a, 1, 0));
  return max<i32>(i32x4.extract_lane(a, 0), i32x4.extract_lane(a, 1));
}

/** Stores the scales of all blocks. A pass of its own lets a processor overlap the blocks. */
function storeScales<Square>(source: usize, scales: usize, count: usize): void {
  const magnitude = constant<i32>(0x7fffffff, count);
  for (; count > 0; scales += 2) {
    const length = min<usize>(count, BLOCK);
    let largest = largestOf(source, length, magnitude);
    if (isOn<Square>()) largest = reinterpret<u32>(sqrt<f32>(reinterpret<f32>(largest))) & 0x7fffffff;
    store<u16>(scales, <u16>(roundUp(largest) >> 16));
    source += 4 * length;
    count -= length;
  }
}

/**
 * The moment of a code: scale * (code / (254 - |code|)) for a signed slot, (scale/255 * code)^2 for squares. `factor` is the scale,
 * or its 255th part.
 */
function decode<Square>(code: v128, factor: v128, limit: v128): v128 {
  const c = f32x4.convert_i32x4_s(code);
  if (isOn<Square>()) {
    const root = f32x4.mul(factor, c);
    return f32x4.mul(root, root);
  }
  return f32x4.mul(factor, f32x4.div(c, f32x4.sub(limit, f32x4.abs(c))));
}

function widen<Square>(codes: usize, scales: usize, target: usize, count: usize): void {
  const limit = constant<f32>(254, count);
  for (; count > 0; scales += 2) {
    const length = min<usize>(count, BLOCK),
      whole = length & ~7;
    // An infinite scale of squares is lowered, so that code 0 means 0: infinity * 0 would be NaN. All other codes overflow to infinity.
    const scale = loadScale(scales);
    const factor = f32x4.splat(isOn<Square>() ? min<f32>(scale, f32.MAX_VALUE) / 255 : scale);
    let i: usize = 0;
    for (; i < whole; i += 8) {
      const wide = isOn<Square>() ? v128.load_ext<u8>(codes + i) : v128.load_ext<i8>(codes + i);
      v128.store(target + 4 * i, decode<Square>(i32x4.extend_low_i16x8_s(wide), factor, limit));
      v128.store(target + 4 * i, decode<Square>(i32x4.extend_high_i16x8_s(wide), factor, limit), 16);
    }
    for (; i < length; i++) {
      const code = isOn<Square>() ? <i32>load<u8>(codes + i) : <i32>load<i8>(codes + i);
      v128.store_lane<f32>(target + 4 * i, decode<Square>(i32x4.splat(code), factor, limit), 0);
    }
    codes += length;
    target += 4 * length;
    count -= length;
  }
}

export function moments_signed_q8_f32(codes: usize, scales: usize, target: usize, count: usize): void {
  widen<Off>(codes, scales, target, count);
}

export function moments_square_q8_f32(codes: usize, scales: usize, target: usize, count: usize): void {
  widen<On>(codes, scales, target, count);
}

/** 1.5 * 2^23: added to a small number, it leaves the nearest whole number in the low bits. */
const TO_WHOLE: f32 = 12582912;

/** Code of a signed moment m: nearest(254 * (m / (scale + |m|))). Both are halved first, so that the sum cannot overflow. */
function encodeSigned(value: v128, halfScale: v128, half: v128, limit: v128, toWhole: v128): v128 {
  const halved = f32x4.mul(value, half);
  const code = f32x4.mul(limit, f32x4.div(halved, f32x4.add(halfScale, f32x4.abs(halved))));
  return i32x4.sub(f32x4.add(code, toWhole), toWhole);
}

export function moments_signed_f32_q8(source: usize, codes: usize, scales: usize, count: usize): void {
  const half = constant<f32>(0.5, count),
    limit = constant<f32>(254, count),
    toWhole = constant<f32>(TO_WHOLE, count);
  storeScales<Off>(source, scales, count);
  for (; count > 0; scales += 2) {
    const length = min<usize>(count, BLOCK);
    const scale = loadScale(scales);
    // A block with an infinite or NaN moment has codes 0, which its scale turns to NaN. A block of zeros has them, too.
    if (scale > 0 && scale < Infinity) {
      const halfScale = f32x4.splat(scale * 0.5),
        whole = length & ~15;
      let i: usize = 0;
      for (; i < whole; i += 16) {
        const at = source + 4 * i;
        const a = encodeSigned(v128.load(at), halfScale, half, limit, toWhole),
          b = encodeSigned(v128.load(at, 16), halfScale, half, limit, toWhole);
        const c = encodeSigned(v128.load(at, 32), halfScale, half, limit, toWhole),
          d = encodeSigned(v128.load(at, 48), halfScale, half, limit, toWhole);
        v128.store(codes + i, i8x16.narrow_i16x8_s(i16x8.narrow_i32x4_s(a, b), i16x8.narrow_i32x4_s(c, d)));
      }
      for (; i < length; i++) v128.store_lane<i8>(codes + i, encodeSigned(v128.load_splat<f32>(source + 4 * i), halfScale, half, limit, toWhole), 0);
    } else memory.fill(codes, 0, length);
    codes += length;
    source += 4 * length;
    count -= length;
  }
}

/**
 * Code of a square v: x = 255 * sqrt(v) / scale, rounded down, or up with the probability (x^2 - down^2) / (up^2 - down^2), which
 * keeps the expected square. At least 1 for v > 0, because a moment over a square of 0 would be infinite.
 */
function encodeSquare(value: v128, factor: v128, noise: v128, unit: v128, half: v128, one: v128, least: v128, toWhole: v128): v128 {
  const x = f32x4.mul(f32x4.sqrt(value), factor);
  // The nearest whole number of x - 0.5; where x is whole, it may be one less, and then goes up with certainty.
  const whole = f32x4.add(f32x4.sub(x, half), toWhole),
    down = f32x4.sub(whole, toWhole);
  const threshold = f32x4.mul(f32x4.mul(f32x4.convert_i32x4_s(noise), unit), f32x4.add(f32x4.add(down, down), one));
  const goesUp = f32x4.lt(threshold, f32x4.mul(f32x4.sub(x, down), f32x4.add(x, down)));
  const code = i32x4.sub(i32x4.sub(whole, toWhole), goesUp);
  // As an integer, a square above 0 is at least 1.
  return i32x4.max_s(code, i32x4.min_s(value, least));
}

export function moments_square_f32_q8(source: usize, codes: usize, scales: usize, index: usize, count: usize, scalars: usize): void {
  const keyLow = keyPart(scalars, 0),
    keyHigh = keyPart(scalars, 1),
    first = multiplier1(count),
    second = multiplier2(count);
  const unit = constant<f32>(1 / 65536, count),
    half = constant<f32>(0.5, count),
    one = constant<f32>(1, count),
    least = constant<i32>(1, count),
    toWhole = constant<f32>(TO_WHOLE, count);
  storeScales<On>(source, scales, count);
  for (let start = index - 1; count > 0; scales += 2) {
    const length = min<usize>(count, BLOCK);
    const scale = loadScale(scales);
    let i: usize = 0;
    if (scale > 0 && scale < Infinity) {
      const factor = f32x4.splat(255 / scale),
        whole = length & ~(GROUP - 1);
      for (; i < whole; i += GROUP) {
        const h = hash(start + i, i32x4(0, 1, 2, 3), keyLow, keyHigh, first, second),
          hNext = hash(start + i, i32x4(4, 5, 6, 7), keyLow, keyHigh, first, second);
        const at = source + 4 * i;
        const a = encodeSquare(v128.load(at), factor, lowHalf(h), unit, half, one, least, toWhole),
          b = encodeSquare(v128.load(at, 16), factor, lowHalf(hNext), unit, half, one, least, toWhole);
        const c = encodeSquare(v128.load(at, 32), factor, highHalf(h), unit, half, one, least, toWhole),
          d = encodeSquare(v128.load(at, 48), factor, highHalf(hNext), unit, half, one, least, toWhole);
        v128.store(codes + i, i8x16.narrow_i16x8_u(i16x8.narrow_i32x4_s(a, b), i16x8.narrow_i32x4_s(c, d)));
      }
      for (; i < length; i++) {
        const code = encodeSquare(
          v128.load_splat<f32>(source + 4 * i),
          factor,
          noiseOf(start + i, keyLow, keyHigh, first, second),
          unit,
          half,
          one,
          least,
          toWhole,
        );
        store<u8>(codes + i, <u8>min(i32x4.extract_lane(code, 0), 255));
      }
    } else {
      // With an infinite square, all squares above 0 become infinite. With NaN, all become NaN.
      for (; i < length; i++) store<u8>(codes + i, <u8>(scale === Infinity && load<f32>(source + 4 * i) > 0));
    }
    codes += length;
    source += 4 * length;
    start += length;
    count -= length;
  }
}
