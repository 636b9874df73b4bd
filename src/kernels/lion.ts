/** Lion. One shard; `count` elements. With `caution` in two passes: the update stays in the gradient's memory between them. Scalars in the order of src/optimizers/lion.ts. */
import { AnyWeight, areLight, descend, filled, Light, lerpAny, read, spread, VECTOR, wholeBytes, write } from "./_lanes";
import { storeTally, tally } from "./_reduce";

/** -1, 0 or 1; NaN stays. */
function sign<T>(value: v128): v128 {
  const zero = i32x4.splat(0);
  const one = v128.splat<T>(<T>1);
  const positive = v128.and(v128.gt<T>(value, zero), one);
  const negative = v128.and(v128.lt<T>(value, zero), v128.neg<T>(one));
  const nan = v128.and(v128.ne<T>(value, value), value);
  return v128.or(v128.or(positive, negative), nan);
}

/** u = sign(lerp(exp_avg, grad, weight1)); exp_avg = lerp(exp_avg, grad, weight2). */
function direction<T, W, K>(g: v128, expAvg: usize, weight1: f64, weight1s: v128, weight2: f64, weight2s: v128): v128 {
  const m = read<T, W>(expAvg);
  write<T, W>(expAvg, lerpAny<T, K>(m, g, weight2, weight2s));
  return sign<T>(lerpAny<T, K>(m, g, weight1, weight1s));
}

/** param -= decay*param + lr*u. */
function step<T, K>(param: usize, grad: usize, expAvg: usize, count: usize, decay: f64, weight1: f64, weight2: f64, lr: f64): void {
  const decays = spread<T>(decay),
    shrinks = decay !== 0,
    rate = spread<T>(lr),
    weight1s = spread<T>(weight1),
    weight2s = spread<T>(weight2);
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < whole; i += VECTOR) {
    const u = direction<T, v128, K>(read<T, v128>(grad + i), expAvg + i, weight1, weight1s, weight2, weight2s);
    write<T, v128>(param + i, descend<T>(read<T, v128>(param + i), decays, shrinks, v128.mul<T>(rate, u)));
  }
  for (; i < bytes; i += sizeof<T>()) {
    const u = direction<T, T, K>(read<T, T>(grad + i), expAvg + i, weight1, weight1s, weight2, weight2s);
    write<T, T>(param + i, descend<T>(read<T, T>(param + i), decays, shrinks, v128.mul<T>(rate, u)));
  }
}

/** u where its sign is the gradient's, else 0, over the gradient; sums = [how many agree]. */
function cautious<T, K>(grad: usize, expAvg: usize, sums: usize, count: usize, weight1: f64, weight2: f64): void {
  const weight1s = spread<T>(weight1),
    weight2s = spread<T>(weight2);
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  const zero = i32x4.splat(0);
  let agree = zero;
  let i: usize = 0;
  for (; i < whole; i += VECTOR) {
    const g = read<T, v128>(grad + i);
    const u = direction<T, v128, K>(g, expAvg + i, weight1, weight1s, weight2, weight2s);
    const agrees = v128.gt<T>(v128.mul<T>(u, g), zero);
    write<T, v128>(grad + i, v128.and(u, agrees));
    agree = tally(agree, agrees);
  }
  for (; i < bytes; i += sizeof<T>()) {
    const g = read<T, T>(grad + i);
    const u = direction<T, T, K>(g, expAvg + i, weight1, weight1s, weight2, weight2s);
    const agrees = v128.gt<T>(v128.mul<T>(u, g), zero);
    write<T, T>(grad + i, v128.and(u, agrees));
    agree = tally(agree, filled<T, T>(agrees));
  }
  storeTally<T>(sums, agree);
}

/** param -= decay*param + rate*u, u read from the gradient's memory. */
function apply<T>(param: usize, grad: usize, count: usize, decay: f64, rate: f64): void {
  const decays = spread<T>(decay),
    shrinks = decay !== 0,
    rates = spread<T>(rate);
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < whole; i += VECTOR) write<T, v128>(param + i, descend<T>(read<T, v128>(param + i), decays, shrinks, v128.mul<T>(rates, read<T, v128>(grad + i))));
  for (; i < bytes; i += sizeof<T>()) write<T, T>(param + i, descend<T>(read<T, T>(param + i), decays, shrinks, v128.mul<T>(rates, read<T, T>(grad + i))));
}

export function lion_f32(param: usize, grad: usize, expAvg: usize, count: usize, decay: f64, weight1: f64, weight2: f64, lr: f64): void {
  if (areLight(weight1, weight2)) step<f32, Light>(param, grad, expAvg, count, decay, weight1, weight2, lr);
  else step<f32, AnyWeight>(param, grad, expAvg, count, decay, weight1, weight2, lr);
}

export function lion_f64(param: usize, grad: usize, expAvg: usize, count: usize, decay: f64, weight1: f64, weight2: f64, lr: f64): void {
  if (areLight(weight1, weight2)) step<f64, Light>(param, grad, expAvg, count, decay, weight1, weight2, lr);
  else step<f64, AnyWeight>(param, grad, expAvg, count, decay, weight1, weight2, lr);
}

export function lion_cautious_f32(grad: usize, expAvg: usize, sums: usize, count: usize, weight1: f64, weight2: f64): void {
  if (areLight(weight1, weight2)) cautious<f32, Light>(grad, expAvg, sums, count, weight1, weight2);
  else cautious<f32, AnyWeight>(grad, expAvg, sums, count, weight1, weight2);
}

export function lion_cautious_f64(grad: usize, expAvg: usize, sums: usize, count: usize, weight1: f64, weight2: f64): void {
  if (areLight(weight1, weight2)) cautious<f64, Light>(grad, expAvg, sums, count, weight1, weight2);
  else cautious<f64, AnyWeight>(grad, expAvg, sums, count, weight1, weight2);
}

export function lion_apply_f32(param: usize, grad: usize, count: usize, decay: f64, rate: f64): void {
  apply<f32>(param, grad, count, decay, rate);
}

export function lion_apply_f64(param: usize, grad: usize, count: usize, decay: f64, rate: f64): void {
  apply<f64>(param, grad, count, decay, rate);
}
