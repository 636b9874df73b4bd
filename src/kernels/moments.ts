/**
 * Moments in narrow formats (docs/state-format.md, "Narrow moments"). A step widens a block of a slot to float32, runs the optimizer's
 * kernel on it, and rounds the new moments back.
 *
 * Moments are rounded stochastically, up or down with probabilities that keep the expected value: a slow average moves by less than
 * half a step of the format, so that nearest would stall it. `index` is the tensor's index of the first element, plus one. Scalars:
 * the lower and the upper half of the noise's key. `work` has room for the values as float32; it may be `source` itself. Rounded
 * values go there before they are packed, because V8 merges only instructions between whole vectors (see _lanes.ts).
 *
 * Q8 stores 64 consecutive elements as codes of 8 bits and a scale in BF16, the largest magnitude rounded up.
 */
import { constant, isOn, Off, On } from "./_lanes";
import { keyPart, mix, multiplier1, multiplier2 } from "./_noise";

/** Elements that share a scale. */
const BLOCK: usize = 64;

/** Elements of an iteration with noise. Each 32-bit hash serves the elements e and e + 8 with its lower and its upper half. */
const GROUP: usize = 16;

/** The hash for the elements `at` and at + 8 of a group. */
function hash(at: v128, keyLow: v128, keyHigh: v128, first: v128, second: v128): v128 {
  return v128.xor(mix(v128.xor(at, keyLow), first, second), keyHigh);
}

/** The sixteen random bits of one element, in lane 0. */
function noiseOf(element: usize, keyLow: v128, keyHigh: v128, first: v128, second: v128): v128 {
  const found = hash(i32x4.splat(<i32>(element & ~8)), keyLow, keyHigh, first, second);
  return (element & 8) === 0 ? v128.and(found, i32x4.splat(0xffff)) : i32x4.shr_u(found, 16);
}

/** Drops the low 16 bits after adding random ones. A NaN becomes a quiet NaN. */
function toBf16(value: v128, noise: v128, quietBit: v128): v128 {
  const rounded = i32x4.shr_u(i32x4.add(value, noise), 16);
  return v128.bitselect(v128.or(i32x4.shr_u(value, 16), quietBit), rounded, f32x4.ne(value, value));
}

export function moments_f32_bf16(source: usize, work: usize, target: usize, index: usize, count: usize, scalars: usize): void {
  const keyLow = keyPart(scalars, 0),
    keyHigh = keyPart(scalars, 1),
    first = multiplier1(count),
    second = multiplier2(count),
    lowHalf = constant<i32>(0xffff, count),
    group = constant<i32>(GROUP, count),
    quietBit = constant<i32>(0x40, count);
  const whole = count & ~(GROUP - 1),
    start = index - 1;
  let lane = i32x4.add(i32x4(0, 1, 2, 3), i32x4.splat(<i32>start)),
    laneNext = i32x4.add(i32x4(4, 5, 6, 7), i32x4.splat(<i32>start));
  let i: usize = 0;
  for (; i < whole; i += GROUP) {
    const at = source + 4 * i,
      to = work + 4 * i;
    const h = hash(lane, keyLow, keyHigh, first, second),
      hNext = hash(laneNext, keyLow, keyHigh, first, second);
    const a = toBf16(v128.load(at), v128.and(h, lowHalf), quietBit),
      b = toBf16(v128.load(at, 16), v128.and(hNext, lowHalf), quietBit);
    v128.store(to, a);
    v128.store(to, b, 16);
    const c = toBf16(v128.load(at, 32), i32x4.shr_u(h, 16), quietBit),
      d = toBf16(v128.load(at, 48), i32x4.shr_u(hNext, 16), quietBit);
    v128.store(to, c, 32);
    v128.store(to, d, 48);
    lane = i32x4.add(lane, group);
    laneNext = i32x4.add(laneNext, group);
  }
  for (let packed: usize = 0; packed < whole; packed += 8) {
    const from = work + 4 * packed;
    v128.store(target + 2 * packed, i16x8.narrow_i32x4_u(v128.load(from), v128.load(from, 16)));
  }
  for (; i < count; i++) {
    const half = toBf16(v128.load_splat<f32>(source + 4 * i), noiseOf(start + i, keyLow, keyHigh, first, second), quietBit);
    v128.store_lane<i16>(target + 2 * i, half, 0);
  }
}

function loadScale(at: usize): f32 {
  return reinterpret<f32>((<u32>load<u16>(at)) << 16);
}

/** The larger of two magnitudes, as integers: these have the order of their values, and NaN is the largest. */
function larger(a: v128, b: v128, magnitude: v128): v128 {
  return i32x4.max_s(a, v128.and(b, magnitude));
}

/** Scales from the largest magnitudes of their blocks: rounded up to BF16, but a finite one to a finite one. Gives the upper halves. */
function toScales<Square>(largest: v128, magnitude: v128): v128 {
  // The scalar root takes five times as long as the whole loop (measured).
  const size = isOn<Square>() ? v128.and(f32x4.sqrt(largest), magnitude) : largest;
  const infinity = i32x4.splat(0x7f80);
  const rounded = i32x4.shr_u(i32x4.add(size, i32x4.splat(0xffff)), 16);
  const limit = i32x4.add(infinity, i32x4.lt_s(size, i32x4.splat(0x7f800000)));
  const nan = v128.and(f32x4.ne(size, size), i32x4.splat(0x7fc0));
  return v128.or(i32x4.min_s(rounded, limit), nan);
}

/** Stores the scales of all blocks, of four at a time. A pass of its own lets a processor overlap the blocks. */
function storeScales<Square>(source: usize, scales: usize, count: usize): void {
  const magnitude = constant<i32>(0x7fffffff, count);
  for (; count >= 4 * BLOCK; scales += 8) {
    let a = i32x4.splat(0),
      b = a,
      c = a,
      d = a;
    for (let end = source + 4 * BLOCK; source < end; source += 16) {
      a = larger(a, v128.load(source), magnitude);
      b = larger(b, v128.load(source, 4 * BLOCK), magnitude);
      c = larger(c, v128.load(source, 8 * BLOCK), magnitude);
      d = larger(d, v128.load(source, 12 * BLOCK), magnitude);
    }
    const ab = i32x4.max_s(v128.shuffle<i64>(a, b, 0, 2), v128.shuffle<i64>(a, b, 1, 3)),
      cd = i32x4.max_s(v128.shuffle<i64>(c, d, 0, 2), v128.shuffle<i64>(c, d, 1, 3));
    const found = toScales<Square>(i32x4.max_s(v128.shuffle<i32>(ab, cd, 0, 2, 4, 6), v128.shuffle<i32>(ab, cd, 1, 3, 5, 7)), magnitude);
    v128.store64_lane(scales, i16x8.narrow_i32x4_u(found, found), 0);
    source += 12 * BLOCK;
    count -= 4 * BLOCK;
  }
  for (; count > 0; scales += 2) {
    const length = min<usize>(count, BLOCK);
    let largest = i32x4.splat(0);
    for (let end = source + 4 * length; source < end; source += 4) largest = larger(largest, v128.load_splat<f32>(source), magnitude);
    v128.store_lane<i16>(scales, toScales<Square>(largest, magnitude), 0);
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

/**
 * Codes are computed in units of 1/65536, so that random bits need no division. All constants of the computation are multiplied by
 * 65536; a power of two changes no rounding.
 */
const UNIT: f32 = 65536;

/** 1.5 * 2^23 codes: added to a small number of codes, it leaves the nearest whole number in the low bits. */
const TO_WHOLE: f32 = 12582912 * UNIT;

/**
 * The size of a signed moment's code: x = 254 * (|m| / (scale + |m|)), rounded down, or up with the probability
 * (x - down) * (253 - down) / (254 - x), which keeps the expected moment. `factor` is half of the scale. |m| is halved, too, so that
 * the sum cannot overflow.
 */
function encodeSigned(value: v128, factor: v128, bits: v128, half: v128, magnitude: v128, limit: v128, last: v128, halfCode: v128, toWhole: v128): v128 {
  const halved = f32x4.mul(v128.and(value, magnitude), half);
  const x = f32x4.mul(limit, f32x4.div(halved, f32x4.add(factor, halved)));
  // The nearest whole number of x - 0.5; where x is whole, it may be one less, and then goes up with certainty.
  const whole = f32x4.add(f32x4.sub(x, halfCode), toWhole),
    down = f32x4.sub(whole, toWhole);
  const threshold = f32x4.mul(f32x4.convert_i32x4_s(bits), f32x4.sub(limit, x));
  const goesUp = f32x4.lt(threshold, f32x4.mul(f32x4.sub(x, down), f32x4.sub(last, down)));
  const size = i32x4.sub(i32x4.sub(whole, toWhole), goesUp);
  const sign = i32x4.shr_s(value, 31);
  return i32x4.sub(v128.xor(size, sign), sign);
}

/**
 * Code of a square v: x = 255 * sqrt(v) / scale, rounded down, or up with the probability (x^2 - down^2) / (up^2 - down^2), which
 * keeps the expected square. At least 1 for v > 0, because a moment over a square of 0 would be infinite.
 */
function encodeSquare(value: v128, factor: v128, bits: v128, one: v128, least: v128, halfCode: v128, toWhole: v128): v128 {
  const x = f32x4.mul(f32x4.sqrt(value), factor);
  const whole = f32x4.add(f32x4.sub(x, halfCode), toWhole),
    down = f32x4.sub(whole, toWhole);
  const threshold = f32x4.mul(f32x4.convert_i32x4_s(bits), f32x4.add(f32x4.add(down, down), one));
  const goesUp = f32x4.lt(threshold, f32x4.mul(f32x4.sub(x, down), f32x4.add(x, down)));
  const code = i32x4.sub(i32x4.sub(whole, toWhole), goesUp);
  // As an integer, a square above 0 is at least 1.
  return i32x4.max_s(code, i32x4.min_s(value, least));
}

/** Codes of a vector. `one` is 1 for squares; 253 for signed moments, the largest code below `limit`. `mask` is 1, or a float's magnitude. */
function encode<Square>(value: v128, factor: v128, bits: v128, half: v128, mask: v128, limit: v128, one: v128, halfCode: v128, toWhole: v128): v128 {
  if (isOn<Square>()) return encodeSquare(value, factor, bits, one, mask, halfCode, toWhole);
  return encodeSigned(value, factor, bits, half, mask, limit, one, halfCode, toWhole);
}

function narrow<Square>(source: usize, work: usize, codes: usize, scales: usize, index: usize, count: usize, scalars: usize): void {
  const keyLow = keyPart(scalars, 0),
    keyHigh = keyPart(scalars, 1),
    first = multiplier1(count),
    second = multiplier2(count),
    lowHalf = constant<i32>(0xffff, count),
    group = constant<i32>(GROUP, count);
  const half = constant<f32>(0.5, count),
    mask = constant<i32>(isOn<Square>() ? 1 : 0x7fffffff, count),
    limit = constant<f32>(254 * UNIT, count),
    one = constant<f32>((isOn<Square>() ? 1 : 253) * UNIT, count),
    halfCode = constant<f32>(0.5 * UNIT, count),
    toWhole = constant<f32>(TO_WHOLE, count);
  storeScales<Square>(source, scales, count);
  for (let start = index - 1; count > 0; scales += 2) {
    const length = min<usize>(count, BLOCK);
    const scale = loadScale(scales);
    let i: usize = 0;
    if (scale > 0 && scale < Infinity) {
      const factor = f32x4.splat(isOn<Square>() ? (255 / scale) * UNIT : scale * 0.5),
        whole = length & ~(GROUP - 1);
      let lane = i32x4.add(i32x4(0, 1, 2, 3), i32x4.splat(<i32>start)),
        laneNext = i32x4.add(i32x4(4, 5, 6, 7), i32x4.splat(<i32>start));
      for (; i < whole; i += GROUP) {
        const at = source + 4 * i,
          to = work + 4 * i;
        const h = hash(lane, keyLow, keyHigh, first, second),
          hNext = hash(laneNext, keyLow, keyHigh, first, second);
        const a = encode<Square>(v128.load(at), factor, v128.and(h, lowHalf), half, mask, limit, one, halfCode, toWhole),
          b = encode<Square>(v128.load(at, 16), factor, v128.and(hNext, lowHalf), half, mask, limit, one, halfCode, toWhole);
        v128.store(to, a);
        v128.store(to, b, 16);
        const c = encode<Square>(v128.load(at, 32), factor, i32x4.shr_u(h, 16), half, mask, limit, one, halfCode, toWhole),
          d = encode<Square>(v128.load(at, 48), factor, i32x4.shr_u(hNext, 16), half, mask, limit, one, halfCode, toWhole);
        v128.store(to, c, 32);
        v128.store(to, d, 48);
        lane = i32x4.add(lane, group);
        laneNext = i32x4.add(laneNext, group);
      }
      for (let packed: usize = 0; packed < whole; packed += GROUP) {
        const from = work + 4 * packed;
        const low = i16x8.narrow_i32x4_s(v128.load(from), v128.load(from, 16)),
          high = i16x8.narrow_i32x4_s(v128.load(from, 32), v128.load(from, 48));
        v128.store(codes + packed, isOn<Square>() ? i8x16.narrow_i16x8_u(low, high) : i8x16.narrow_i16x8_s(low, high));
      }
      for (; i < length; i++) {
        const bits = noiseOf(start + i, keyLow, keyHigh, first, second);
        const code = encode<Square>(v128.load_splat<f32>(source + 4 * i), factor, bits, half, mask, limit, one, halfCode, toWhole);
        store<u8>(codes + i, <u8>min(i32x4.extract_lane(code, 0), 255));
      }
    } else {
      // Codes of signed moments are 0, which an infinite or NaN scale turns to NaN. With an infinite square, all squares above 0 become
      // infinite. With NaN, all become NaN.
      for (; i < length; i++) store<u8>(codes + i, <u8>(isOn<Square>() && scale === Infinity && load<f32>(source + 4 * i) > 0));
    }
    codes += length;
    source += 4 * length;
    work += 4 * length;
    start += length;
    count -= length;
  }
}

export function moments_signed_f32_q8(source: usize, work: usize, codes: usize, scales: usize, index: usize, count: usize, scalars: usize): void {
  narrow<Off>(source, work, codes, scales, index, count, scalars);
}

export function moments_square_f32_q8(source: usize, work: usize, codes: usize, scales: usize, index: usize, count: usize, scalars: usize): void {
  narrow<On>(source, work, codes, scales, index, count, scalars);
}
