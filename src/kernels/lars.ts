/**
 * LARS in two passes, because the trust ratio needs the norms of whole tensors. One shard; `count` elements; `sums` is this
 * block's row of float64 results; buffer is 0 without momentum. Scalars in the order of src/optimizers/lars.ts.
 */
import { coupled, filled, narrow, read, spread, VECTOR, wholeBytes, wideHigh, wideLow, write } from "./_lanes";
import { squaresHigh, squaresLow, storeSum } from "./_reduce";

/** sums = [|param|^2, |grad + l2*param|^2]. */
function norms<T>(param: usize, grad: usize, sums: usize, count: usize, l2: f64): void {
  const l2s = spread<T>(l2),
    couples = l2 !== 0;
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  let paramLow = f64x2.splat(0),
    paramHigh = f64x2.splat(0),
    gradLow = f64x2.splat(0),
    gradHigh = f64x2.splat(0);
  let i: usize = 0;
  for (; i < whole; i += VECTOR) {
    const p = read<T, v128>(param + i);
    const g = coupled<T>(read<T, v128>(grad + i), p, l2s, couples);
    paramLow = squaresLow<T>(paramLow, p);
    paramHigh = squaresHigh<T>(paramHigh, p);
    gradLow = squaresLow<T>(gradLow, g);
    gradHigh = squaresHigh<T>(gradHigh, g);
  }
  for (; i < bytes; i += sizeof<T>()) {
    const p = read<T, T>(param + i);
    paramLow = squaresLow<T>(paramLow, p);
    gradLow = squaresLow<T>(gradLow, filled<T, T>(coupled<T>(read<T, T>(grad + i), p, l2s, couples)));
  }
  storeSum(sums, paramLow, paramHigh);
  storeSum(sums + 8, gradLow, gradHigh);
}

/** d = gain * (grad + l2*param); buffer = keep*buffer + fresh*d; param -= rate * (ahead ? d + ahead*buffer : buffer), in float64 with one rounding each. */
function apply<T>(param: usize, grad: usize, buffer: usize, count: usize, l2: f64, gain: f64, rate: f64, keep: f64, fresh: f64, ahead: f64): void {
  const couples = l2 !== 0;
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < whole; i += VECTOR) element<T, v128>(param + i, grad + i, buffer ? buffer + i : 0, couples, l2 * gain, gain, rate, keep, fresh, ahead);
  for (; i < bytes; i += sizeof<T>()) element<T, T>(param + i, grad + i, buffer ? buffer + i : 0, couples, l2 * gain, gain, rate, keep, fresh, ahead);
}

function element<T, W>(param: usize, grad: usize, buffer: usize, couples: bool, l2: f64, gain: f64, rate: f64, keep: f64, fresh: f64, ahead: f64): void {
  const p = read<T, W>(param);
  const g = read<T, W>(grad);
  const b = buffer ? read<T, W>(buffer) : i32x4.splat(0);
  const lowStep = scaled(wideLow<T>(g), wideLow<T>(p), couples, l2, gain);
  const highStep = scaled(wideHigh<T>(g), wideHigh<T>(p), couples, l2, gain);
  let low = lowStep,
    high = highStep;
  if (buffer) {
    low = kept(wideLow<T>(b), lowStep, keep, fresh);
    high = kept(wideHigh<T>(b), highStep, keep, fresh);
    write<T, W>(buffer, narrow<T>(low, high));
    if (ahead !== 0) {
      low = kept(low, lowStep, ahead, 1);
      high = kept(high, highStep, ahead, 1);
    }
  }
  const rates = f64x2.splat(rate);
  write<T, W>(param, narrow<T>(f64x2.sub(wideLow<T>(p), f64x2.mul(rates, low)), f64x2.sub(wideHigh<T>(p), f64x2.mul(rates, high))));
}

/** gain*g + l2*p in float64, the decay left out whole where there is none. */
function scaled(g: v128, p: v128, couples: bool, l2: f64, gain: f64): v128 {
  const plain = f64x2.mul(f64x2.splat(gain), g);
  return couples ? f64x2.add(plain, f64x2.mul(f64x2.splat(l2), p)) : plain;
}

/** keep*b + fresh*d in float64. */
function kept(b: v128, d: v128, keep: f64, fresh: f64): v128 {
  return f64x2.add(f64x2.mul(f64x2.splat(keep), b), f64x2.mul(f64x2.splat(fresh), d));
}

export function lars_norms_f32(param: usize, grad: usize, sums: usize, count: usize, l2: f64): void {
  norms<f32>(param, grad, sums, count, l2);
}

export function lars_norms_f64(param: usize, grad: usize, sums: usize, count: usize, l2: f64): void {
  norms<f64>(param, grad, sums, count, l2);
}

export function lars_apply_f32(param: usize, grad: usize, buffer: usize, count: usize, l2: f64, gain: f64, rate: f64, keep: f64, fresh: f64, ahead: f64): void {
  apply<f32>(param, grad, buffer, count, l2, gain, rate, keep, fresh, ahead);
}

export function lars_apply_f64(param: usize, grad: usize, buffer: usize, count: usize, l2: f64, gain: f64, rate: f64, keep: f64, fresh: f64, ahead: f64): void {
  apply<f64>(param, grad, buffer, count, l2, gain, rate, keep, fresh, ahead);
}
