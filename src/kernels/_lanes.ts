/**
 * What every kernel is made of: reads and writes of a whole vector or of one element, and the arithmetic whose order of
 * operations is part of the contract (docs/determinism.md). Nothing here fuses a multiply with an add.
 *
 * A kernel takes the addresses of its operands in one shard, the count of elements, and the address of float64 `scalars`. `sums`
 * is this block's row of float64 results. One that writes the parameter returns whether a new value may be NaN or infinite.
 *
 * T is the arithmetic type, f32 or f64. W is how much is read: v128 for a whole vector, T for one element in lane 0 (the
 * tail of a shard). The same instructions run on both, so an element's result does not depend on where it stands.
 */

/** Bytes in a vector. */
export const VECTOR: usize = 16;

/**
 * Bytes of the two vectors that a loop takes at once. Where V8 may (src/pool/kernels.ts), it makes one instruction of 256 bits
 * of the same instruction on both, if each read and each write of the first is followed by that of the next.
 */
export const PAIR: usize = 32;

/** Bytes of the whole pairs of vectors in `count` elements; the rest goes element by element. */
export function pairedBytes<T>(count: usize): usize {
  return (count * sizeof<T>()) & ~(PAIR - 1);
}

/** Bytes of the whole vectors in `count` elements; the rest goes element by element. */
export function wholeBytes<T>(count: usize): usize {
  return (count * sizeof<T>()) & ~(VECTOR - 1);
}

/** One of the float64 numbers that are the same for all elements, by its place in the order that the kernel documents. */
export function scalar(scalars: usize, place: usize): f64 {
  return load<f64>(scalars + 8 * place);
}

/** A number, computed in float64 by the caller, rounded once to T and spread over the lanes. */
export function spread<T>(value: f64): v128 {
  return v128.splat<T>(<T>value);
}

/** A scalar, rounded once to T and spread over the lanes. */
export function lanes<T>(scalars: usize, place: usize): v128 {
  return spread<T>(scalar(scalars, place));
}

/** Reads a vector, or one element with zeros beside it. */
export function read<T, W>(at: usize): v128 {
  if (isVector<W>()) return v128.load(at);
  return v128.load_zero<T>(at);
}

/** Reads the second vector of a pair; beside one element there is nothing. */
export function readNext<T, W>(at: usize): v128 {
  if (isVector<W>()) return v128.load(at, VECTOR);
  return v128.splat<T>(0);
}

/** Reads two elements, for float64: V8 makes one instruction of reading and widening, where the high half of a vector takes two more. */
export function readPair<T>(at: usize): v128 {
  return sizeof<T>() === 4 ? v128.load64_zero(at) : v128.load(at);
}

/** Writes what `read` has read. */
export function write<T, W>(at: usize, value: v128): void {
  if (isVector<W>()) v128.store(at, value);
  else v128.store_lane<T>(at, value, 0);
}

/** Writes what `read` and `readNext` have read. */
export function writePair<T, W>(at: usize, value: v128, next: v128): void {
  write<T, W>(at, value);
  if (isVector<W>()) v128.store(at, next, VECTOR);
}

/**
 * Writes new values of a parameter and returns their sum, lane by lane. A loop adds these up, because a total that is a finite
 * number has no part that is none; `isSuspect` looks at the total.
 */
export function writeParam<T, W>(at: usize, p: v128, pNext: v128): v128 {
  writePair<T, W>(at, p, pNext);
  return filled<T, W>(v128.add<T>(p, pNext));
}

/** Whether values in a total may be NaN or infinite: x - x is 0 for every finite x, else NaN. Finite values can have an infinite total, too. */
export function isSuspect<T>(total: v128): bool {
  return v128.any_true(v128.sub<T>(total, total));
}

/** Zeros the lanes that `read` did not fill, for sums: with eps = 0 they hold 0/0. */
export function filled<T, W>(value: v128): v128 {
  if (isVector<W>()) return value;
  const lane0 = sizeof<T>() === 4 ? i32x4(-1, 0, 0, 0) : i64x2(-1, 0);
  return v128.and(value, lane0);
}

/** All bits set where the scalar is not zero: `and` with it drops a term whole, so that 0 * inf never makes a NaN. */
export function mask(scalar: f64): v128 {
  return i32x4.splat(scalar !== 0 ? -1 : 0);
}

/**
 * average + weight * (sample - average): subtract, multiply, add. Exact for weight 0, and without the bias that
 * beta * average + (1 - beta) * sample has because the two rounded factors do not add up to one.
 */
export function lerp<T>(average: v128, sample: v128, weight: v128): v128 {
  return v128.add<T>(average, v128.mul<T>(weight, v128.sub<T>(sample, average)));
}

/** `lerp` for averages of squares: an infinite average stays infinite, as in torch, where inf - inf would make it NaN. */
export function lerpSquare<T>(average: v128, sample: v128, weight: v128, largest: v128): v128 {
  return v128.add<T>(average, v128.mul<T>(weight, v128.sub<T>(sample, v128.pmin<T>(average, largest))));
}

/**
 * A constant in each lane, in a loop over `count` elements. V8 builds a constant anew at each use, by three instructions for each
 * vector; what depends on an operand it keeps in a register (measured: 9 % of AdamW in the cache, 40 % of Lion, half of float16's conversions).
 */
export function constant<T>(value: T, count: usize): v128 {
  return v128.splat<T>(count > 0 ? value : <T>0);
}

/** The largest finite number, for `lerpSquare`. */
export function largestFinite<T>(count: usize): v128 {
  return constant<T>(sizeof<T>() === 4 ? <T>f32.MAX_VALUE : <T>f64.MAX_VALUE, count);
}

/** The low half of a vector in float64. */
export function wideLow<T>(value: v128): v128 {
  return sizeof<T>() === 4 ? f64x2.promote_low_f32x4(value) : value;
}

/** The high half of a float32 vector in float64; a float64 vector has none. */
export function wideHigh<T>(value: v128): v128 {
  return sizeof<T>() === 4 ? f64x2.promote_low_f32x4(v128.shuffle<i64>(value, value, 1, 1)) : value;
}

/** Rounds two halves in float64 to one vector. */
export function narrow<T>(low: v128, high: v128): v128 {
  if (sizeof<T>() === 8) return low;
  return v128.shuffle<i64>(f32x4.demote_f64x2_zero(low), f32x4.demote_f64x2_zero(high), 0, 2);
}

/** x * left + y * right with all of it in float64 and one rounding. */
export function blend<T>(x: v128, left: v128, y: v128, right: v128): v128 {
  const low = f64x2.add(f64x2.mul(x, wideLow<T>(left)), f64x2.mul(y, wideLow<T>(right)));
  if (sizeof<T>() === 8) return low;
  return narrow<T>(low, f64x2.add(f64x2.mul(x, wideHigh<T>(left)), f64x2.mul(y, wideHigh<T>(right))));
}

/** From this weight on `lerp` is not exact at its far end and cancels badly; the average is blended in float64 instead. */
const HEAVY: f64 = 0.5;

/**
 * Type arguments that switch a part of a loop on or off where it is compiled. A branch in the loop on what is the same for all
 * elements takes a tenth of AdamW and half of SGD with momentum in the cache (measured).
 */
export type Off = i8;
export type On = i16;

/** Whether a type argument is On. */
export function isOn<F>(): bool {
  return sizeof<F>() === sizeof<On>();
}

/**
 * Type arguments that say which weights a loop is compiled for: a branch on the weight in the loop would cost as much as the
 * rest of the step (measured: the registers are spilled around it).
 */
export type Light = i8;
export type AnyWeight = i16;
export type Heavy = i32;

/** Whether a type argument is Light. */
export function isLight<K>(): bool {
  return sizeof<K>() === sizeof<Light>();
}

/** Whether a loop for light weights will do. */
export function areLight(weight1: f64, weight2: f64): bool {
  return weight1 < HEAVY && weight2 < HEAVY;
}

/** `lerp` for a weight that is not light. */
export function lerpHeavy<T>(average: v128, sample: v128, weight: f64): v128 {
  return blend<T>(f64x2.splat(1 - weight), average, f64x2.splat(weight), sample);
}

/** Whether to take the form for light weights in a loop for the weights K. */
function takesLight<K>(weight: f64): bool {
  return isLight<K>() || (sizeof<K>() !== sizeof<Heavy>() && weight < HEAVY);
}

/** `lerp` for the weights K, given as a scalar and spread over the lanes. */
export function lerpAny<T, K>(average: v128, sample: v128, weight: f64, weights: v128): v128 {
  if (takesLight<K>(weight)) return lerp<T>(average, sample, weights);
  return lerpHeavy<T>(average, sample, weight);
}

/** `lerpSquare` for the weights K. */
export function lerpSquareAny<T, K>(average: v128, sample: v128, weight: f64, weights: v128, largest: v128): v128 {
  if (takesLight<K>(weight)) return lerpSquare<T>(average, sample, weights, largest);
  return lerpHeavy<T>(average, sample, weight);
}

/**
 * Type arguments for weight decay: none, added to the gradient (`l2`, the first scalar of a kernel that has it), or taken from the
 * parameter (`decay`, the second). A term of 0 is left out whole, so that 0 * inf never makes a NaN.
 */
export type NoDecay = i8;
export type Coupled = i16;
export type Decoupled = i32;

export function isCoupled<D>(): bool {
  return sizeof<D>() === sizeof<Coupled>();
}

export function isDecoupled<D>(): bool {
  return sizeof<D>() === sizeof<Decoupled>();
}

/** l2 or decay in each lane. */
export function decayOf<T, D>(scalars: usize): v128 {
  return lanes<T>(scalars, isDecoupled<D>() ? 1 : 0);
}

/** grad + l2 * param. */
export function decayed<T, D>(grad: v128, param: v128, l2: v128): v128 {
  if (isCoupled<D>()) return v128.add<T>(grad, v128.mul<T>(l2, param));
  return grad;
}

/** param - (decay * param + update): one subtraction from the parameter, which is 17 to 24 times closer to the float64 result than param * (1 - decay) - update. */
export function descend<T, D>(param: v128, decay: v128, update: v128): v128 {
  if (isDecoupled<D>()) return v128.sub<T>(param, v128.add<T>(v128.mul<T>(decay, param), update));
  return v128.sub<T>(param, update);
}
