/**
 * LAMB in passes, because the trust ratio needs the norms of whole tensors (src/optimizers/lamb.ts). The update is kept in
 * the gradient's memory between the passes. One shard; `count` elements; `sums` is this block's row of float64 results.
 */
import {
  AnyWeight,
  areLight,
  descend,
  filled,
  isOn,
  Light,
  largestFinite,
  lerpAny,
  lerpSquareAny,
  Off,
  On,
  read,
  readPair,
  spread,
  VECTOR,
  wholeBytes,
  write,
} from "./_lanes";
import { squaresHigh, squaresLow, storeSum, storeTally, tally } from "./_reduce";

/** The moments, and the denominator sqrt(exp_avg_sq + epsRoot) + eps. */
function denominator<T, W, K>(
  g: v128,
  expAvg: usize,
  expAvgSq: usize,
  averages: bool,
  weight1: f64,
  weight1s: v128,
  weight2: f64,
  weight2s: v128,
  largest: v128,
  epsRoot: v128,
  eps: v128,
): v128 {
  const m0 = read<T, W>(expAvg);
  const m = averages ? lerpAny<T, K>(m0, g, weight1, weight1s) : v128.add<T>(v128.mul<T>(spread<T>(1 - weight1), m0), g);
  const v = lerpSquareAny<T, K>(read<T, W>(expAvgSq), v128.mul<T>(g, g), weight2, weight2s, largest);
  write<T, W>(expAvg, m);
  write<T, W>(expAvgSq, v);
  return v128.add<T>(v128.sqrt<T>(v128.add<T>(v, epsRoot)), eps);
}

/** r = meanScale * exp_avg / denominator. */
function ratio<T, W>(expAvg: usize, denominator: v128, meanScale: v128): v128 {
  return v128.mul<T>(meanScale, v128.div<T>(read<T, W>(expAvg), denominator));
}

/** The update r + inUpdate*param in place of the denominator that is in the gradient's memory. */
function update<T, W>(param: usize, grad: usize, expAvg: usize, meanScale: v128, inUpdate: v128, adds: bool): void {
  const r = ratio<T, W>(expAvg, read<T, W>(grad), meanScale);
  write<T, W>(grad, adds ? v128.add<T>(r, v128.mul<T>(inUpdate, read<T, W>(param))) : r);
}

/** param - decay*param. */
function kept<T>(param: v128, decay: v128, shrinks: bool): v128 {
  return shrinks ? v128.sub<T>(param, v128.mul<T>(decay, param)) : param;
}

/** Bytes that the parts of `moments` keep between them: a processor can look ahead over as many, and each part finds done what it needs. */
const LAG: usize = 8 * VECTOR;

/**
 * sums = [|param - decay*param|^2, |update|^2], update = r + inUpdate*param, written over the gradient. Usual says
 * that averages and inUpdate are there and decay is not. The loop has a root, a division and two sums
 * under way at three places, which takes four fifths of the time of one after the other (measured).
 */
function moments<T, K, Usual>(
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
    inUpdates = spread<T>(inUpdate),
    shrinks = !isOn<Usual>() && decay !== 0,
    adds = isOn<Usual>() || inUpdate !== 0,
    weighs = isOn<Usual>() || averages !== 0;
  const weight1s = spread<T>(weight1);
  const weight2s = spread<T>(weight2),
    largest = largestFinite<T>(count);
  const mean = spread<T>(meanScale),
    root = spread<T>(epsRoot),
    epss = spread<T>(eps);
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  let paramLow = f64x2.splat(0),
    paramHigh = f64x2.splat(0),
    updateLow = f64x2.splat(0),
    updateHigh = f64x2.splat(0);
  for (let i: usize = 0; i < whole + 2 * LAG; i += VECTOR) {
    if (i < whole) {
      const g = read<T, v128>(grad + i);
      write<T, v128>(grad + i, denominator<T, v128, K>(g, expAvg + i, expAvgSq + i, weighs, weight1, weight1s, weight2, weight2s, largest, root, epss));
    }
    // Below 0 these wrap round to more than `whole`.
    const j = i - LAG,
      k = i - 2 * LAG;
    if (j < whole) update<T, v128>(param + j, grad + j, expAvg + j, mean, inUpdates, adds);
    if (k < whole) {
      paramLow = squaresLow<T>(paramLow, kept<T>(readPair<T>(param + k), decays, shrinks));
      updateLow = squaresLow<T>(updateLow, readPair<T>(grad + k));
      if (sizeof<T>() === 4) {
        paramHigh = squaresLow<T>(paramHigh, kept<T>(readPair<T>(param + k + 8), decays, shrinks));
        updateHigh = squaresLow<T>(updateHigh, readPair<T>(grad + k + 8));
      }
    }
  }
  for (let i = whole; i < bytes; i += sizeof<T>()) {
    const g = read<T, T>(grad + i);
    write<T, T>(grad + i, denominator<T, T, K>(g, expAvg + i, expAvgSq + i, weighs, weight1, weight1s, weight2, weight2s, largest, root, epss));
    update<T, T>(param + i, grad + i, expAvg + i, mean, inUpdates, adds);
    paramLow = squaresLow<T>(paramLow, kept<T>(read<T, T>(param + i), decays, shrinks));
    updateLow = squaresLow<T>(updateLow, read<T, T>(grad + i));
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
  const weight2s = spread<T>(weight2),
    largest = largestFinite<T>(count);
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
    const d = denominator<T, v128, K>(g, expAvg + i, expAvgSq + i, averages !== 0, weight1, weight1s, weight2, weight2s, largest, root, epss);
    const r = ratio<T, v128>(expAvg + i, d, mean);
    const agrees = v128.gt<T>(v128.mul<T>(r, g), zero);
    write<T, v128>(grad + i, v128.and(r, agrees));
    agree = tally(agree, agrees);
  }
  for (; i < bytes; i += sizeof<T>()) {
    const g = read<T, T>(grad + i);
    const d = denominator<T, T, K>(g, expAvg + i, expAvgSq + i, averages !== 0, weight1, weight1s, weight2, weight2s, largest, root, epss);
    const r = ratio<T, T>(expAvg + i, d, mean);
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

/** param -= decay*param + rate*update (Shrinks says whether decay is there), the update read from the gradient's memory. */
function apply<T, Shrinks>(param: usize, grad: usize, count: usize, decay: f64, rate: f64): void {
  const decays = spread<T>(decay),
    rates = spread<T>(rate);
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < whole; i += VECTOR) applyElement<T, v128, Shrinks>(param + i, grad + i, decays, rates);
  for (; i < bytes; i += sizeof<T>()) applyElement<T, T, Shrinks>(param + i, grad + i, decays, rates);
}

function applyElement<T, W, Shrinks>(param: usize, grad: usize, decay: v128, rate: v128): void {
  const update = v128.mul<T>(rate, read<T, W>(grad));
  write<T, W>(param, descend<T>(read<T, W>(param), decay, isOn<Shrinks>(), update));
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
  if (!areLight(weight1, weight2))
    moments<f32, AnyWeight, Off>(param, grad, expAvg, expAvgSq, sums, count, decay, inUpdate, averages, weight1, weight2, meanScale, epsRoot, eps);
  else if (averages !== 0 && inUpdate !== 0 && decay === 0)
    moments<f32, Light, On>(param, grad, expAvg, expAvgSq, sums, count, decay, inUpdate, averages, weight1, weight2, meanScale, epsRoot, eps);
  else moments<f32, Light, Off>(param, grad, expAvg, expAvgSq, sums, count, decay, inUpdate, averages, weight1, weight2, meanScale, epsRoot, eps);
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
  if (!areLight(weight1, weight2))
    moments<f64, AnyWeight, Off>(param, grad, expAvg, expAvgSq, sums, count, decay, inUpdate, averages, weight1, weight2, meanScale, epsRoot, eps);
  else if (averages !== 0 && inUpdate !== 0 && decay === 0)
    moments<f64, Light, On>(param, grad, expAvg, expAvgSq, sums, count, decay, inUpdate, averages, weight1, weight2, meanScale, epsRoot, eps);
  else moments<f64, Light, Off>(param, grad, expAvg, expAvgSq, sums, count, decay, inUpdate, averages, weight1, weight2, meanScale, epsRoot, eps);
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
  if (averages !== 0 && areLight(weight1, weight2))
    cautious<f32, Light>(grad, expAvg, expAvgSq, sums, count, averages, weight1, weight2, meanScale, epsRoot, eps);
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
  if (averages !== 0 && areLight(weight1, weight2))
    cautious<f64, Light>(grad, expAvg, expAvgSq, sums, count, averages, weight1, weight2, meanScale, epsRoot, eps);
  else cautious<f64, AnyWeight>(grad, expAvg, expAvgSq, sums, count, averages, weight1, weight2, meanScale, epsRoot, eps);
}

export function lamb_decayed_f32(param: usize, grad: usize, sums: usize, count: usize, decay: f64, inUpdate: f64, scale: f64): void {
  decayed<f32>(param, grad, sums, count, decay, inUpdate, scale);
}

export function lamb_decayed_f64(param: usize, grad: usize, sums: usize, count: usize, decay: f64, inUpdate: f64, scale: f64): void {
  decayed<f64>(param, grad, sums, count, decay, inUpdate, scale);
}

export function lamb_apply_f32(param: usize, grad: usize, count: usize, decay: f64, rate: f64): void {
  if (decay !== 0) apply<f32, On>(param, grad, count, decay, rate);
  else apply<f32, Off>(param, grad, count, decay, rate);
}

export function lamb_apply_f64(param: usize, grad: usize, count: usize, decay: f64, rate: f64): void {
  if (decay !== 0) apply<f64, On>(param, grad, count, decay, rate);
  else apply<f64, Off>(param, grad, count, decay, rate);
}
