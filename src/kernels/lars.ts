/**
 * LARS in two passes, because the trust ratio needs the norms of whole tensors. One shard; `count` elements; `sums` is this
 * block's row of float64 results; buffer is 0 without momentum. Scalars in the order of src/optimizers/lars.ts.
 */
import { coupled, filled, isOn, narrow, Off, On, read, readPair, spread, VECTOR, wholeBytes, wideLow, write } from "./_lanes";
import { squaresLow, storeSum } from "./_reduce";

/** sums = [|param|^2, |grad + l2*param|^2]. Couples says whether l2 is there. */
function norms<T, Couples>(param: usize, grad: usize, sums: usize, count: usize, l2: f64): void {
  const l2s = spread<T>(l2);
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  let paramLow = f64x2.splat(0),
    paramHigh = f64x2.splat(0),
    gradLow = f64x2.splat(0),
    gradHigh = f64x2.splat(0);
  let i: usize = 0;
  for (; i < whole; i += VECTOR) {
    const low = readPair<T>(param + i);
    paramLow = squaresLow<T>(paramLow, low);
    gradLow = squaresLow<T>(gradLow, coupled<T>(readPair<T>(grad + i), low, l2s, isOn<Couples>()));
    if (sizeof<T>() === 4) {
      const high = readPair<T>(param + i + 8);
      paramHigh = squaresLow<T>(paramHigh, high);
      gradHigh = squaresLow<T>(gradHigh, coupled<T>(readPair<T>(grad + i + 8), high, l2s, isOn<Couples>()));
    }
  }
  for (; i < bytes; i += sizeof<T>()) {
    const p = read<T, T>(param + i);
    paramLow = squaresLow<T>(paramLow, p);
    gradLow = squaresLow<T>(gradLow, filled<T, T>(coupled<T>(read<T, T>(grad + i), p, l2s, isOn<Couples>())));
  }
  storeSum(sums, paramLow, paramHigh);
  storeSum(sums + 8, gradLow, gradHigh);
}

/**
 * d = gain * (grad + l2*param); buffer = keep*buffer + fresh*d; param -= rate * (ahead ? d + ahead*buffer : buffer), in float64
 * with one rounding each. Couples, Buffers and Nesterov say whether l2, buffer and ahead are there.
 */
function apply<T, Couples, Buffers, Nesterov>(
  param: usize,
  grad: usize,
  buffer: usize,
  count: usize,
  l2: f64,
  gain: f64,
  rate: f64,
  keep: f64,
  fresh: f64,
  ahead: f64,
): void {
  const l2s = f64x2.splat(l2 * gain),
    gains = f64x2.splat(gain),
    rates = f64x2.splat(rate),
    keeps = f64x2.splat(keep),
    freshs = f64x2.splat(fresh),
    aheads = f64x2.splat(ahead);
  const fours = (count & ~3) * sizeof<T>(),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < fours; i += 2 * half<T>()) element<T, v128, Couples, Buffers, Nesterov>(param + i, grad + i, buffer + i, l2s, gains, rates, keeps, freshs, aheads);
  for (; i < bytes; i += sizeof<T>()) element<T, T, Couples, Buffers, Nesterov>(param + i, grad + i, buffer + i, l2s, gains, rates, keeps, freshs, aheads);
}

/** Bytes of the elements that a vector of float64 holds. */
function half<T>(): usize {
  return 2 * sizeof<T>();
}

/** Reads two elements, or one with zeros beside it, in float64. */
function wide<T, W>(at: usize): v128 {
  return wideLow<T>(isVector<W>() ? readPair<T>(at) : read<T, T>(at));
}

/** Reads the two elements after those; beside one there is nothing. */
function wideNext<T, W>(at: usize): v128 {
  return isVector<W>() ? wideLow<T>(readPair<T>(at + half<T>())) : f64x2.splat(0);
}

/** Rounds and writes what `wide` and `wideNext` have read. */
function writeWide<T, W>(at: usize, low: v128, high: v128): void {
  if (sizeof<T>() === 4 || !isVector<W>()) write<T, W>(at, narrow<T>(low, high));
  else {
    v128.store(at, low);
    v128.store(at, high, VECTOR);
  }
}

/** Four elements, or one. */
function element<T, W, Couples, Buffers, Nesterov>(
  param: usize,
  grad: usize,
  buffer: usize,
  l2: v128,
  gain: v128,
  rate: v128,
  keep: v128,
  fresh: v128,
  ahead: v128,
): void {
  const p = wide<T, W>(param),
    pNext = wideNext<T, W>(param);
  const d = scaled<Couples>(wide<T, W>(grad), p, l2, gain),
    dNext = scaled<Couples>(wideNext<T, W>(grad), pNext, l2, gain);
  let step = d,
    stepNext = dNext;
  if (isOn<Buffers>()) {
    step = kept(wide<T, W>(buffer), d, keep, fresh);
    stepNext = kept(wideNext<T, W>(buffer), dNext, keep, fresh);
    writeWide<T, W>(buffer, step, stepNext);
    if (isOn<Nesterov>()) {
      step = f64x2.add(f64x2.mul(ahead, step), d);
      stepNext = f64x2.add(f64x2.mul(ahead, stepNext), dNext);
    }
  }
  writeWide<T, W>(param, f64x2.sub(p, f64x2.mul(rate, step)), f64x2.sub(pNext, f64x2.mul(rate, stepNext)));
}

/** gain*g + l2*p in float64, the decay left out whole where there is none. */
function scaled<Couples>(g: v128, p: v128, l2: v128, gain: v128): v128 {
  const plain = f64x2.mul(gain, g);
  return isOn<Couples>() ? f64x2.add(plain, f64x2.mul(l2, p)) : plain;
}

/** keep*b + fresh*d in float64. */
function kept(b: v128, d: v128, keep: v128, fresh: v128): v128 {
  return f64x2.add(f64x2.mul(keep, b), f64x2.mul(fresh, d));
}

function anyApply<T>(param: usize, grad: usize, buffer: usize, count: usize, l2: f64, gain: f64, rate: f64, keep: f64, fresh: f64, ahead: f64): void {
  if (l2 !== 0) coupledApply<T, On>(param, grad, buffer, count, l2, gain, rate, keep, fresh, ahead);
  else coupledApply<T, Off>(param, grad, buffer, count, l2, gain, rate, keep, fresh, ahead);
}

function coupledApply<T, Couples>(
  param: usize,
  grad: usize,
  buffer: usize,
  count: usize,
  l2: f64,
  gain: f64,
  rate: f64,
  keep: f64,
  fresh: f64,
  ahead: f64,
): void {
  if (!buffer) apply<T, Couples, Off, Off>(param, grad, buffer, count, l2, gain, rate, keep, fresh, ahead);
  else if (ahead !== 0) apply<T, Couples, On, On>(param, grad, buffer, count, l2, gain, rate, keep, fresh, ahead);
  else apply<T, Couples, On, Off>(param, grad, buffer, count, l2, gain, rate, keep, fresh, ahead);
}

export function lars_norms_f32(param: usize, grad: usize, sums: usize, count: usize, l2: f64): void {
  if (l2 !== 0) norms<f32, On>(param, grad, sums, count, l2);
  else norms<f32, Off>(param, grad, sums, count, l2);
}

export function lars_norms_f64(param: usize, grad: usize, sums: usize, count: usize, l2: f64): void {
  if (l2 !== 0) norms<f64, On>(param, grad, sums, count, l2);
  else norms<f64, Off>(param, grad, sums, count, l2);
}

export function lars_apply_f32(param: usize, grad: usize, buffer: usize, count: usize, l2: f64, gain: f64, rate: f64, keep: f64, fresh: f64, ahead: f64): void {
  anyApply<f32>(param, grad, buffer, count, l2, gain, rate, keep, fresh, ahead);
}

export function lars_apply_f64(param: usize, grad: usize, buffer: usize, count: usize, l2: f64, gain: f64, rate: f64, keep: f64, fresh: f64, ahead: f64): void {
  anyApply<f64>(param, grad, buffer, count, l2, gain, rate, keep, fresh, ahead);
}
