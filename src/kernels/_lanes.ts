/**
 * What every kernel is made of: reads and writes of a whole vector or of one element, and the arithmetic whose order of
 * operations is part of the contract (docs/determinism.md). Nothing here fuses a multiply with an add.
 *
 * T is the arithmetic type, f32 or f64. W is how much is read: v128 for a whole vector, T for one element in lane 0 (the
 * tail of a shard). The same instructions run on both, so an element's result does not depend on where it stands.
 */

/** Bytes in a vector. */
export const VECTOR: usize = 16;

/** Bytes of the whole vectors in `count` elements; the rest goes element by element. */
export function wholeBytes<T>(count: usize): usize {
  return (count * sizeof<T>()) & ~(VECTOR - 1);
}

/** A scalar, computed in float64 by the caller, rounded once to T and spread over the lanes. */
export function spread<T>(scalar: f64): v128 {
  return v128.splat<T>(<T>scalar);
}

/** Reads a vector, or one element with zeros beside it. */
export function read<T, W>(at: usize): v128 {
  if (isVector<W>()) return v128.load(at);
  return v128.load_zero<T>(at);
}

/** Writes what `read` has read. */
export function write<T, W>(at: usize, value: v128): void {
  if (isVector<W>()) v128.store(at, value);
  else v128.store_lane<T>(at, value, 0);
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
export function lerpSquare<T>(average: v128, sample: v128, weight: v128): v128 {
  const finite = v128.pmin<T>(average, v128.splat<T>(sizeof<T>() === 4 ? <T>f32.MAX_VALUE : <T>f64.MAX_VALUE));
  return v128.add<T>(average, v128.mul<T>(weight, v128.sub<T>(sample, finite)));
}

/** The factor of `lerpEither`: it measures from the nearer end. */
export function eitherFactor(weight: f64): f64 {
  return weight < 0.5 ? weight : weight - 1;
}

/** The end that `lerpEither` starts from: bits set for the sample, clear for the average. */
export function eitherStart(weight: f64): v128 {
  return i32x4.splat(weight < 0.5 ? 0 : -1);
}

/**
 * `lerp` for any weight: from 0.5 on, sample - (1 - weight) * (sample - average), exact for weight 1, as torch.lerp does.
 * The two choices cost 15 % of an AdamW step (measured), so the kernels of the common case do without.
 */
export function lerpEither<T>(average: v128, sample: v128, factor: v128, start: v128): v128 {
  return v128.add<T>(v128.bitselect(sample, average, start), v128.mul<T>(factor, v128.sub<T>(sample, average)));
}

/** `lerpEither` for averages of squares: an infinite average stays infinite. */
export function lerpSquareEither<T>(average: v128, sample: v128, factor: v128, start: v128): v128 {
  const moved = lerpEither<T>(average, sample, factor, start);
  return v128.bitselect(v128.add<T>(average, sample), moved, v128.eq<T>(average, v128.splat<T>(<T>Infinity)));
}

/** param - (decay * param + update): one subtraction from the parameter, which is 17 to 24 times closer to the float64 result than param * (1 - decay) - update. */
export function descend<T>(param: v128, decay: v128, decays: bool, update: v128): v128 {
  if (decays) return v128.sub<T>(param, v128.add<T>(v128.mul<T>(decay, param), update));
  return v128.sub<T>(param, update);
}

/** grad + l2 * param: coupled weight decay, left out whole where it is zero. */
export function coupled<T>(grad: v128, param: v128, l2: v128, couples: bool): v128 {
  if (couples) return v128.add<T>(grad, v128.mul<T>(l2, param));
  return grad;
}
