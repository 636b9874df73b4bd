/** Lion. One shard; `count` elements. With `caution` in two passes: the update stays in the gradient's memory for LAMB's second. Scalars in the order of src/optimizers/lion.ts. */
import { AnyWeight, areLight, constant, descend, filled, isOn, Light, lerpAny, Off, On, PAIR, pairedBytes, read, readNext, spread, writePair } from "./_lanes";
import { storeTally, tally } from "./_reduce";

/** -1, 0 or 1; NaN stays. */
function sign<T>(value: v128, one: v128): v128 {
  const zero = i32x4.splat(0);
  const positive = v128.and(v128.gt<T>(value, zero), one);
  const negative = v128.and(v128.lt<T>(value, zero), one);
  const nan = v128.and(v128.ne<T>(value, value), value);
  return v128.or(v128.sub<T>(positive, negative), nan);
}

/** u = sign(lerp(exp_avg, grad, weight1)). */
function direction<T, K>(m: v128, g: v128, weight1: f64, weight1s: v128, one: v128): v128 {
  return sign<T>(lerpAny<T, K>(m, g, weight1, weight1s), one);
}

/** exp_avg = lerp(exp_avg, grad, weight2); param -= decay*param + lr*u. Shrinks says whether decay is there. */
function step<T, K, Shrinks>(param: usize, grad: usize, expAvg: usize, count: usize, decay: f64, weight1: f64, weight2: f64, lr: f64): void {
  const decays = spread<T>(decay),
    rate = spread<T>(lr),
    weight1s = spread<T>(weight1),
    weight2s = spread<T>(weight2),
    one = constant<T>(<T>1, count);
  const paired = pairedBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < paired; i += PAIR) element<T, v128, K, Shrinks>(param + i, grad + i, expAvg + i, decays, weight1, weight1s, weight2, weight2s, rate, one);
  for (; i < bytes; i += sizeof<T>()) element<T, T, K, Shrinks>(param + i, grad + i, expAvg + i, decays, weight1, weight1s, weight2, weight2s, rate, one);
}

/** A pair of vectors, or one element. */
function element<T, W, K, Shrinks>(
  param: usize,
  grad: usize,
  expAvg: usize,
  decay: v128,
  weight1: f64,
  weight1s: v128,
  weight2: f64,
  weight2s: v128,
  lr: v128,
  one: v128,
): void {
  const g = read<T, W>(grad),
    gNext = readNext<T, W>(grad);
  const m = read<T, W>(expAvg),
    mNext = readNext<T, W>(expAvg);
  const u = direction<T, K>(m, g, weight1, weight1s, one),
    uNext = direction<T, K>(mNext, gNext, weight1, weight1s, one);
  const p = read<T, W>(param),
    pNext = readNext<T, W>(param);
  writePair<T, W>(expAvg, lerpAny<T, K>(m, g, weight2, weight2s), lerpAny<T, K>(mNext, gNext, weight2, weight2s));
  writePair<T, W>(param, descend<T>(p, decay, isOn<Shrinks>(), v128.mul<T>(lr, u)), descend<T>(pNext, decay, isOn<Shrinks>(), v128.mul<T>(lr, uNext)));
}

/** u where its sign is the gradient's, else 0, over the gradient; exp_avg as in `step`; sums = [how many agree]. */
function cautious<T, K>(grad: usize, expAvg: usize, sums: usize, count: usize, weight1: f64, weight2: f64): void {
  const weight1s = spread<T>(weight1),
    weight2s = spread<T>(weight2),
    one = constant<T>(<T>1, count);
  const paired = pairedBytes<T>(count),
    bytes = count * sizeof<T>();
  let agree = i32x4.splat(0);
  let i: usize = 0;
  for (; i < paired; i += PAIR) agree = tally(agree, cautiousElement<T, v128, K>(grad + i, expAvg + i, weight1, weight1s, weight2, weight2s, one));
  for (; i < bytes; i += sizeof<T>()) agree = tally(agree, cautiousElement<T, T, K>(grad + i, expAvg + i, weight1, weight1s, weight2, weight2s, one));
  storeTally<T>(sums, agree);
}

/** For `cautious`: a pair of vectors, or one element. Returns -1 for each value in a lane whose sign agrees. */
function cautiousElement<T, W, K>(grad: usize, expAvg: usize, weight1: f64, weight1s: v128, weight2: f64, weight2s: v128, one: v128): v128 {
  const zero = i32x4.splat(0);
  const g = read<T, W>(grad),
    gNext = readNext<T, W>(grad);
  const m = read<T, W>(expAvg),
    mNext = readNext<T, W>(expAvg);
  const u = direction<T, K>(m, g, weight1, weight1s, one),
    uNext = direction<T, K>(mNext, gNext, weight1, weight1s, one);
  writePair<T, W>(expAvg, lerpAny<T, K>(m, g, weight2, weight2s), lerpAny<T, K>(mNext, gNext, weight2, weight2s));
  const agrees = v128.gt<T>(v128.mul<T>(u, g), zero),
    agreesNext = v128.gt<T>(v128.mul<T>(uNext, gNext), zero);
  writePair<T, W>(grad, v128.and(u, agrees), v128.and(uNext, agreesNext));
  return i32x4.add(filled<T, W>(agrees), agreesNext);
}

function lion<T>(param: usize, grad: usize, expAvg: usize, count: usize, decay: f64, weight1: f64, weight2: f64, lr: f64): void {
  const shrinks = decay !== 0,
    light = areLight(weight1, weight2);
  if (light && shrinks) step<T, Light, On>(param, grad, expAvg, count, decay, weight1, weight2, lr);
  else if (light) step<T, Light, Off>(param, grad, expAvg, count, decay, weight1, weight2, lr);
  else if (shrinks) step<T, AnyWeight, On>(param, grad, expAvg, count, decay, weight1, weight2, lr);
  else step<T, AnyWeight, Off>(param, grad, expAvg, count, decay, weight1, weight2, lr);
}

export function lion_f32(param: usize, grad: usize, expAvg: usize, count: usize, decay: f64, weight1: f64, weight2: f64, lr: f64): void {
  lion<f32>(param, grad, expAvg, count, decay, weight1, weight2, lr);
}

export function lion_f64(param: usize, grad: usize, expAvg: usize, count: usize, decay: f64, weight1: f64, weight2: f64, lr: f64): void {
  lion<f64>(param, grad, expAvg, count, decay, weight1, weight2, lr);
}

export function lion_cautious_f32(grad: usize, expAvg: usize, sums: usize, count: usize, weight1: f64, weight2: f64): void {
  if (areLight(weight1, weight2)) cautious<f32, Light>(grad, expAvg, sums, count, weight1, weight2);
  else cautious<f32, AnyWeight>(grad, expAvg, sums, count, weight1, weight2);
}

export function lion_cautious_f64(grad: usize, expAvg: usize, sums: usize, count: usize, weight1: f64, weight2: f64): void {
  if (areLight(weight1, weight2)) cautious<f64, Light>(grad, expAvg, sums, count, weight1, weight2);
  else cautious<f64, AnyWeight>(grad, expAvg, sums, count, weight1, weight2);
}
