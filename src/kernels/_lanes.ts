/**
 * Building blocks of all kernels: loads, stores, and arithmetic. The order of operations is part of the contract
 * (docs/determinism.md). Nothing here fuses a multiply with an add.
 *
 * A kernel takes the addresses of its operands in one shard, the element count, and the address of its float64 `scalars`.
 * `sums` is the address of its float64 results for this block. A kernel that writes the parameter returns true if a new value
 * may be NaN or infinite.
 *
 * T is the arithmetic type, f32 or f64. W is the access width: v128 for a whole vector, T for one element in lane 0 (the
 * tail of a shard). Both widths run the same instructions, so a result does not depend on the element's position.
 */

/** Bytes of a vector. */
export const VECTOR: usize = 16;

/**
 * Bytes of the two vectors that one loop iteration handles. V8 can merge the same instruction on both into one 256-bit
 * instruction (src/pool/kernels.ts), if each load and store of the first is followed directly by that of the second.
 */
export const PAIR: usize = 32;

/** Bytes of the complete vector pairs in `count` elements; the tail is handled one element at a time. */
export function pairedBytes<T>(count: usize): usize {
  return (count * sizeof<T>()) & ~(PAIR - 1);
}

/**
 * Bytes that a loop of width W walks. A kernel's loop exists in two widths: with v128 it walks the complete pairs of vectors,
 * and its function then calls itself with T for the tail. Advancing the operands takes fewer registers than an index (measured).
 */
export function walkedBytes<T, W>(count: usize): usize {
  return isVector<W>() ? pairedBytes<T>(count) : count * sizeof<T>() - pairedBytes<T>(count);
}

/** Bytes by which a loop of width W advances its operands. */
export function strideOf<W>(): usize {
  return isVector<W>() ? PAIR : sizeof<W>();
}

/** True in the loop over pairs if a tail follows. */
export function hasTail<T, W>(count: usize): bool {
  return isVector<W>() && walkedBytes<T, T>(count) !== 0;
}

/** Bytes of the complete vectors in `count` elements; the tail is handled one element at a time. */
export function wholeBytes<T>(count: usize): usize {
  return (count * sizeof<T>()) & ~(VECTOR - 1);
}

/** A float64 argument by its index; each kernel's header lists its scalars in order. */
export function scalar(scalars: usize, index: usize): f64 {
  return load<f64>(scalars + 8 * index);
}

/** Rounds a float64 value once to T and copies it to every lane. */
export function spread<T>(value: f64): v128 {
  return v128.splat<T>(<T>value);
}

/** A scalar argument, rounded once to T and copied to every lane. */
export function lanes<T>(scalars: usize, index: usize): v128 {
  return spread<T>(scalar(scalars, index));
}

/** Reads a vector, or one element into lane 0 with zeros in the other lanes. */
export function read<T, W>(at: usize): v128 {
  if (isVector<W>()) return v128.load(at);
  return v128.load_zero<T>(at);
}

/** Reads the second vector of a pair; zeros if W is one element. */
export function readNext<T, W>(at: usize): v128 {
  if (isVector<W>()) return v128.load(at, VECTOR);
  return v128.splat<T>(0);
}

/** Reads two elements to be widened to float64. V8 merges the load and the widening; the high half of a loaded vector takes two more instructions. */
export function readPair<T>(at: usize): v128 {
  return sizeof<T>() === 4 ? v128.load64_zero(at) : v128.load(at);
}

/** Writes a vector, or the element in lane 0. */
export function write<T, W>(at: usize, value: v128): void {
  if (isVector<W>()) v128.store(at, value);
  else v128.store_lane<T>(at, value, 0);
}

/** Writes a pair of vectors, or the element in lane 0 of the first. */
export function writePair<T, W>(at: usize, value: v128, next: v128): void {
  write<T, W>(at, value);
  if (isVector<W>()) v128.store(at, next, VECTOR);
}

/**
 * Writes new parameter values and returns their sum, lane by lane. Loops add these sums up: a finite total proves that every
 * value was finite. `isSuspect` tests the total.
 */
export function writeParam<T, W>(at: usize, p: v128, pNext: v128): v128 {
  writePair<T, W>(at, p, pNext);
  return zeroUnusedLanes<T, W>(v128.add<T>(p, pNext));
}

/** True if the total is NaN or infinite: x - x is 0 for every finite x, else NaN. Large finite values can overflow the total, too. */
export function isSuspect<T>(total: v128): bool {
  return v128.any_true(v128.sub<T>(total, total));
}

/** Zeros the unused lanes of a single element before a sum: with eps = 0 they hold 0/0. */
export function zeroUnusedLanes<T, W>(value: v128): v128 {
  if (isVector<W>()) return value;
  const lane0 = sizeof<T>() === 4 ? i32x4(-1, 0, 0, 0) : i64x2(-1, 0);
  return v128.and(value, lane0);
}

/** A bit mask: all ones if the scalar is not zero, else zeros. `and` with it removes a term, so 0 * inf never makes a NaN. */
export function mask(scalar: f64): v128 {
  return i32x4.splat(scalar !== 0 ? -1 : 0);
}

/**
 * average + weight * (sample - average): subtract, multiply, add. Exact for weight 0. It avoids the bias of
 * beta * average + (1 - beta) * sample, whose two rounded factors do not add up to one.
 */
export function lerp<T>(average: v128, sample: v128, weight: v128): v128 {
  return v128.add<T>(average, v128.mul<T>(weight, v128.sub<T>(sample, average)));
}

/** `lerp` for averages of squares. An infinite average stays infinite, as in torch; plain `lerp` would make NaN of inf - inf. */
export function lerpSquare<T>(average: v128, sample: v128, weight: v128, largest: v128): v128 {
  return v128.add<T>(average, v128.mul<T>(weight, v128.sub<T>(sample, v128.pmin<T>(average, largest))));
}

/**
 * A constant in every lane, for a loop over `count` elements. V8 rebuilds a literal at each use with three instructions, but
 * keeps a value that depends on an argument in a register (measured: saves 9 % of AdamW in the cache, 40 % of Lion, half of float16's conversions).
 */
export function constant<T>(value: T, count: usize): v128 {
  return v128.splat<T>(count > 0 ? value : <T>0);
}

/** The largest finite number, for `lerpSquare`. */
export function largestFinite<T>(count: usize): v128 {
  return constant<T>(sizeof<T>() === 4 ? <T>f32.MAX_VALUE : <T>f64.MAX_VALUE, count);
}

/** The low half of a vector, widened to float64. */
export function wideLow<T>(value: v128): v128 {
  return sizeof<T>() === 4 ? f64x2.promote_low_f32x4(value) : value;
}

/** The high half of a float32 vector, widened to float64. Callers skip it for float64, where `wideLow` covers the whole vector. */
export function wideHigh<T>(value: v128): v128 {
  return sizeof<T>() === 4 ? f64x2.promote_low_f32x4(v128.shuffle<i64>(value, value, 1, 1)) : value;
}

/** Rounds two float64 halves to one vector of T. */
export function narrow<T>(low: v128, high: v128): v128 {
  if (sizeof<T>() === 8) return low;
  return v128.shuffle<i64>(f32x4.demote_f64x2_zero(low), f32x4.demote_f64x2_zero(high), 0, 2);
}

/** x * left + y * right, computed in float64 and rounded once to T. */
export function blend<T>(x: v128, left: v128, y: v128, right: v128): v128 {
  const low = f64x2.add(f64x2.mul(x, wideLow<T>(left)), f64x2.mul(y, wideLow<T>(right)));
  if (sizeof<T>() === 8) return low;
  return narrow<T>(low, f64x2.add(f64x2.mul(x, wideHigh<T>(left)), f64x2.mul(y, wideHigh<T>(right))));
}

/** Weights from here on are heavy: `lerp` would be inexact at weight 1 and lose digits, so `blend` computes the average in float64. */
export const HEAVY: f64 = 0.5;

/**
 * Type arguments that switch a part of a loop on or off at compile time. A branch in the loop, on a condition that is the same
 * for all elements, costs a tenth of AdamW's time and half of SGD with momentum's, in the cache (measured).
 */
export type Off = i8;
export type On = i16;

/** True if a type argument is On. */
export function isOn<F>(): bool {
  return sizeof<F>() === sizeof<On>();
}

/**
 * Type arguments for the averaging weights of a loop: all below HEAVY (light), any, or all from HEAVY on. A branch on the weight in
 * the loop would spill registers and cost as much as the rest of the step (measured).
 */
export type Light = i8;
export type AnyWeight = i16;
export type Heavy = i32;

/** True if a type argument is Light. */
export function isLight<K>(): bool {
  return sizeof<K>() === sizeof<Light>();
}

/** True if both weights are light, so that the loop for light weights applies. */
export function areLight(weight1: f64, weight2: f64): bool {
  return weight1 < HEAVY && weight2 < HEAVY;
}

/** `lerp` for a heavy weight, computed in float64. */
export function lerpHeavy<T>(average: v128, sample: v128, weight: f64): v128 {
  return blend<T>(f64x2.splat(1 - weight), average, f64x2.splat(weight), sample);
}

/** True if `lerp` applies to this weight in a loop compiled for the weights K. */
function usesLerp<K>(weight: f64): bool {
  return isLight<K>() || (sizeof<K>() !== sizeof<Heavy>() && weight < HEAVY);
}

/** `lerp` for the weights K; `weights` is `weight` in every lane. */
export function lerpAny<T, K>(average: v128, sample: v128, weight: f64, weights: v128): v128 {
  if (usesLerp<K>(weight)) return lerp<T>(average, sample, weights);
  return lerpHeavy<T>(average, sample, weight);
}

/** `lerpSquare` for the weights K; `weights` is `weight` in every lane. */
export function lerpSquareAny<T, K>(average: v128, sample: v128, weight: f64, weights: v128, largest: v128): v128 {
  if (usesLerp<K>(weight)) return lerpSquare<T>(average, sample, weights, largest);
  return lerpHeavy<T>(average, sample, weight);
}

/**
 * Type arguments for weight decay: none; coupled, added to the gradient (`l2`, scalar 0); or decoupled, subtracted from the
 * parameter (`decay`, scalar 1). A loop without decay has no such term, so 0 * inf never makes a NaN.
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

/** The scalar `decay` with decoupled decay, else `l2`, in every lane. */
export function decayLanes<T, D>(scalars: usize): v128 {
  return lanes<T>(scalars, isDecoupled<D>() ? 1 : 0);
}

/** grad + l2 * param with coupled decay, else grad. */
export function withCoupledDecay<T, D>(grad: v128, param: v128, l2: v128): v128 {
  if (isCoupled<D>()) return v128.add<T>(grad, v128.mul<T>(l2, param));
  return grad;
}

/** -1, 0 or 1; NaN stays NaN. `one` is 1 in every lane. */
export function sign<T>(value: v128, one: v128): v128 {
  const zero = i32x4.splat(0);
  const positive = v128.and(v128.gt<T>(value, zero), one);
  const negative = v128.and(v128.lt<T>(value, zero), one);
  const nan = v128.and(v128.ne<T>(value, value), value);
  return v128.or(v128.sub<T>(positive, negative), nan);
}

/** param - (decay * param + update): one subtraction from the parameter. param * (1 - decay) - update is 17 to 24 times further from the float64 result. */
export function applyUpdate<T, D>(param: v128, decay: v128, update: v128): v128 {
  if (isDecoupled<D>()) return v128.sub<T>(param, v128.add<T>(v128.mul<T>(decay, param), update));
  return v128.sub<T>(param, update);
}
