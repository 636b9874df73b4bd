/**
 * LAMB in passes, because the trust ratio needs the norms of whole tensors (src/optimizers/lamb.ts). The update is kept in
 * the gradient's memory between the passes. One shard; `count` elements; `sums` is this block's row of float64 results.
 */
import { AnyWeight, areLight, descend, filled, Light, lerpAny, lerpSquareAny, read, spread, VECTOR, wholeBytes, write } from "./_lanes";
import { squaresHigh, squaresLow, storeSum, storeTally, tally } from "./_reduce";

/** The moments and the ratio r = meanScale * exp_avg / (sqrt(exp_avg_sq + epsRoot) + eps). */
function direction<T, W, K>(
  g: v128,
  expAvg: usize,
  expAvgSq: usize,
  averages: bool,
  weight1: f64,
  weight1s: v128,
  weight2: f64,
  weight2s: v128,
  meanScale: v128,
  epsRoot: v128,
  eps: v128,
): v128 {
  const m0 = read<T, W>(expAvg);
  const m = averages ? lerpAny<T, K>(m0, g, weight1, weight1s) : v128.add<T>(v128.mul<T>(spread<T>(1 - weight1), m0), g);
  const v = lerpSquareAny<T, K>(read<T, W>(expAvgSq), v128.mul<T>(g, g), weight2, weight2s);
  write<T, W>(expAvg, m);
  write<T, W>(expAvgSq, v);
  return v128.mul<T>(meanScale, v128.div<T>(m, v128.add<T>(v128.sqrt<T>(v128.add<T>(v, epsRoot)), eps)));
}

/** sums = [|param - decay*param|^2, |update|^2], update = r + inUpdate*param, written over the gradient. */
function moments<T, K>(
  param: usize,
  grad: usize,
  expAvg: usize,
  expAvgSq: usize,
  sums: usize,
  count: usize,
  decay: f64,
  inUpdate: f64,
  averages: f64,
  weight1: f64,
  weight2: f64,
  meanScale: f64,
  epsRoot: f64,
  eps: f64,
): void {
  const decays = spread<T>(decay),
    shrinks = decay !== 0,
    inUpdates = spread<T>(inUpdate),
    adds = inUpdate !== 0;
  const weight1s = spread<T>(weight1);
  const weight2s = spread<T>(weight2);
  const mean = spread<T>(meanScale),
    root = spread<T>(epsRoot),
    epss = spread<T>(eps);
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  let paramLow = f64x2.splat(0),
    paramHigh = f64x2.splat(0),
    updateLow = f64x2.splat(0),
    updateHigh = f64x2.splat(0);
  let i: usize = 0;
  for (; i < whole; i += VECTOR) {
    const p = read<T, v128>(param + i);
    let u = direction<T, v128, K>(read<T, v128>(grad + i), expAvg + i, expAvgSq + i, averages !== 0, weight1, weight1s, weight2, weight2s, mean, root, epss);
    if (adds) u = v128.add<T>(u, v128.mul<T>(inUpdates, p));
    const kept = shrinks ? v128.sub<T>(p, v128.mul<T>(decays, p)) : p;
    write<T, v128>(grad + i, u);
    paramLow = squaresLow<T>(paramLow, kept);
    paramHigh = squaresHigh<T>(paramHigh, kept);
    updateLow = squaresLow<T>(updateLow, u);
    updateHigh = squaresHigh<T>(updateHigh, u);
  }
  for (; i < bytes; i += sizeof<T>()) {
    const p = read<T, T>(param + i);
    let u = direction<T, T, K>(read<T, T>(grad + i), expAvg + i, expAvgSq + i, averages !== 0, weight1, weight1s, weight2, weight2s, mean, root, epss);
    if (adds) u = v128.add<T>(u, v128.mul<T>(inUpdates, p));
    const kept = shrinks ? v128.sub<T>(p, v128.mul<T>(decays, p)) : p;
    write<T, T>(grad + i, u);
    paramLow = squaresLow<T>(paramLow, kept);
    updateLow = squaresLow<T>(updateLow, filled<T, T>(u));
  }
  storeSum(sums, paramLow, paramHigh);
  storeSum(sums + 8, updateLow, updateHigh);
}

/** For `caution`: r where its sign agrees with the gradient's, else 0, written over the gradient; sums = [how many agree]. */
function cautious<T, K>(
  grad: usize,
  expAvg: usize,
  expAvgSq: usize,
  sums: usize,
  count: usize,
  averages: f64,
  weight1: f64,
  weight2: f64,
  meanScale: f64,
  epsRoot: f64,
  eps: f64,
): void {
  const weight1s = spread<T>(weight1);
  const weight2s = spread<T>(weight2);
  const mean = spread<T>(meanScale),
    root = spread<T>(epsRoot),
    epss = spread<T>(eps);
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  const zero = i32x4.splat(0);
  let agree = i32x4.splat(0);
  let i: usize = 0;
  for (; i < whole; i += VECTOR) {
    const g = read<T, v128>(grad + i);
    const r = direction<T, v128, K>(g, expAvg + i, expAvgSq + i, averages !== 0, weight1, weight1s, weight2, weight2s, mean, root, epss);
    const agrees = v128.gt<T>(v128.mul<T>(r, g), zero);
    write<T, v128>(grad + i, v128.and(r, agrees));
    agree = tally(agree, agrees);
  }
  for (; i < bytes; i += sizeof<T>()) {
    const g = read<T, T>(grad + i);
    const r = direction<T, T, K>(g, expAvg + i, expAvgSq + i, averages !== 0, weight1, weight1s, weight2, weight2s, mean, root, epss);
    const agrees = v128.gt<T>(v128.mul<T>(r, g), zero);
    write<T, T>(grad + i, v128.and(r, agrees));
    agree = tally(agree, filled<T, T>(agrees));
  }
  storeTally<T>(sums, agree);
}

/** After `cautious`: update = scale*r + inUpdate*param over the gradient; sums as in `moments`. */
function decayed<T>(param: usize, grad: usize, sums: usize, count: usize, decay: f64, inUpdate: f64, scale: f64): void {
  const decays = spread<T>(decay),
    shrinks = decay !== 0,
    inUpdates = spread<T>(inUpdate),
    adds = inUpdate !== 0,
    scales = spread<T>(scale);
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  let paramLow = f64x2.splat(0),
    paramHigh = f64x2.splat(0),
    updateLow = f64x2.splat(0),
    updateHigh = f64x2.splat(0);
  let i: usize = 0;
  for (; i < whole; i += VECTOR) {
    const p = read<T, v128>(param + i);
    let u = v128.mul<T>(scales, read<T, v128>(grad + i));
    if (adds) u = v128.add<T>(u, v128.mul<T>(inUpdates, p));
    const kept = shrinks ? v128.sub<T>(p, v128.mul<T>(decays, p)) : p;
    write<T, v128>(grad + i, u);
    paramLow = squaresLow<T>(paramLow, kept);
    paramHigh = squaresHigh<T>(paramHigh, kept);
    updateLow = squaresLow<T>(updateLow, u);
    updateHigh = squaresHigh<T>(updateHigh, u);
  }
  for (; i < bytes; i += sizeof<T>()) {
    const p = read<T, T>(param + i);
    let u = v128.mul<T>(scales, read<T, T>(grad + i));
    if (adds) u = v128.add<T>(u, v128.mul<T>(inUpdates, p));
    const kept = shrinks ? v128.sub<T>(p, v128.mul<T>(decays, p)) : p;
    write<T, T>(grad + i, u);
    paramLow = squaresLow<T>(paramLow, kept);
    updateLow = squaresLow<T>(updateLow, filled<T, T>(u));
  }
  storeSum(sums, paramLow, paramHigh);
  storeSum(sums + 8, updateLow, updateHigh);
}

/** param -= decay*param + rate*update, the update read from the gradient's memory. */
function apply<T>(param: usize, grad: usize, count: usize, decay: f64, rate: f64): void {
  const decays = spread<T>(decay),
    shrinks = decay !== 0,
    rates = spread<T>(rate);
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < whole; i += VECTOR) applyElement<T, v128>(param + i, grad + i, decays, shrinks, rates);
  for (; i < bytes; i += sizeof<T>()) applyElement<T, T>(param + i, grad + i, decays, shrinks, rates);
}

function applyElement<T, W>(param: usize, grad: usize, decay: v128, shrinks: bool, rate: v128): void {
  const update = v128.mul<T>(rate, read<T, W>(grad));
  write<T, W>(param, descend<T>(read<T, W>(param), decay, shrinks, update));
}

export function lamb_moments_f32(
  param: usize,
  grad: usize,
  expAvg: usize,
  expAvgSq: usize,
  sums: usize,
  count: usize,
  decay: f64,
  inUpdate: f64,
  averages: f64,
  weight1: f64,
  weight2: f64,
  meanScale: f64,
  epsRoot: f64,
  eps: f64,
): void {
  if (areLight(weight1, weight2))
    moments<f32, Light>(param, grad, expAvg, expAvgSq, sums, count, decay, inUpdate, averages, weight1, weight2, meanScale, epsRoot, eps);
  else moments<f32, AnyWeight>(param, grad, expAvg, expAvgSq, sums, count, decay, inUpdate, averages, weight1, weight2, meanScale, epsRoot, eps);
}

export function lamb_moments_f64(
  param: usize,
  grad: usize,
  expAvg: usize,
  expAvgSq: usize,
  sums: usize,
  count: usize,
  decay: f64,
  inUpdate: f64,
  averages: f64,
  weight1: f64,
  weight2: f64,
  meanScale: f64,
  epsRoot: f64,
  eps: f64,
): void {
  if (areLight(weight1, weight2))
    moments<f64, Light>(param, grad, expAvg, expAvgSq, sums, count, decay, inUpdate, averages, weight1, weight2, meanScale, epsRoot, eps);
  else moments<f64, AnyWeight>(param, grad, expAvg, expAvgSq, sums, count, decay, inUpdate, averages, weight1, weight2, meanScale, epsRoot, eps);
}

export function lamb_cautious_f32(
  grad: usize,
  expAvg: usize,
  expAvgSq: usize,
  sums: usize,
  count: usize,
  averages: f64,
  weight1: f64,
  weight2: f64,
  meanScale: f64,
  epsRoot: f64,
  eps: f64,
): void {
  if (areLight(weight1, weight2)) cautious<f32, Light>(grad, expAvg, expAvgSq, sums, count, averages, weight1, weight2, meanScale, epsRoot, eps);
  else cautious<f32, AnyWeight>(grad, expAvg, expAvgSq, sums, count, averages, weight1, weight2, meanScale, epsRoot, eps);
}

export function lamb_cautious_f64(
  grad: usize,
  expAvg: usize,
  expAvgSq: usize,
  sums: usize,
  count: usize,
  averages: f64,
  weight1: f64,
  weight2: f64,
  meanScale: f64,
  epsRoot: f64,
  eps: f64,
): void {
  if (areLight(weight1, weight2)) cautious<f64, Light>(grad, expAvg, expAvgSq, sums, count, averages, weight1, weight2, meanScale, epsRoot, eps);
  else cautious<f64, AnyWeight>(grad, expAvg, expAvgSq, sums, count, averages, weight1, weight2, meanScale, epsRoot, eps);
}

export function lamb_decayed_f32(param: usize, grad: usize, sums: usize, count: usize, decay: f64, inUpdate: f64, scale: f64): void {
  decayed<f32>(param, grad, sums, count, decay, inUpdate, scale);
}

export function lamb_decayed_f64(param: usize, grad: usize, sums: usize, count: usize, decay: f64, inUpdate: f64, scale: f64): void {
  decayed<f64>(param, grad, sums, count, decay, inUpdate, scale);
}

export function lamb_apply_f32(param: usize, grad: usize, count: usize, decay: f64, rate: f64): void {
  apply<f32>(param, grad, count, decay, rate);
}

export function lamb_apply_f64(param: usize, grad: usize, count: usize, decay: f64, rate: f64): void {
  apply<f64>(param, grad, count, decay, rate);
}
