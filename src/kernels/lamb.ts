/**
 * LAMB in passes, because the trust ratio needs the norms of whole tensors (src/optimizers/lamb.ts). The update is kept in
 * the gradient's memory between the passes. Scalars: lamb_moments decay, inUpdate, averages, weight1, weight2, meanScale, epsRoot,
 * eps; lamb_cautious those from averages on; lamb_decayed decay, inUpdate, scale; lamb_apply decay, rate.
 */
import {
  AnyWeight,
  areLight,
  Decoupled,
  descend,
  filled,
  isLight,
  isOn,
  isSuspect,
  Light,
  lanes,
  largestFinite,
  lerpAny,
  lerpSquareAny,
  NoDecay,
  Off,
  On,
  PAIR,
  pairedBytes,
  read,
  readNext,
  readPair,
  scalar,
  spread,
  VECTOR,
  wholeBytes,
  write,
  writePair,
  writeParam,
} from "./_lanes";
import { squaresHigh, squaresLow, storeSum, storeTally, tally } from "./_reduce";

/** The denominator sqrt(exp_avg_sq + epsRoot) + eps. */
function denominator<T>(v: v128, epsRoot: v128, eps: v128): v128 {
  return v128.add<T>(v128.sqrt<T>(v128.add<T>(v, epsRoot)), eps);
}

/** exp_avg with the gradient in it. */
function mean<T, K>(expAvg: v128, g: v128, averages: bool, weight1: f64, weights1: v128): v128 {
  return averages ? lerpAny<T, K>(expAvg, g, weight1, weights1) : v128.add<T>(v128.mul<T>(spread<T>(1 - weight1), expAvg), g);
}

/**
 * Brings the moments up to date and leaves the denominator in the gradient's memory. A pair of vectors, or one element. Usual is
 * that of `moments`: each of its loops has a copy of its own, which becomes a part of it. A call takes as long as all the rest (measured).
 */
// biome-ignore format: operands, then constants
function average<T, W, K, Usual>(
  grad: usize, expAvg: usize, expAvgSq: usize,
  averages: bool, weight1: f64, weights1: v128, weight2: f64, weights2: v128, largest: v128, epsRoot: v128, eps: v128,
): void {
  const weighs = isOn<Usual>() || averages;
  const g = read<T, W>(grad),
    gNext = readNext<T, W>(grad);
  const m = mean<T, K>(read<T, W>(expAvg), g, weighs, weight1, weights1),
    mNext = mean<T, K>(readNext<T, W>(expAvg), gNext, weighs, weight1, weights1);
  const v = lerpSquareAny<T, K>(read<T, W>(expAvgSq), v128.mul<T>(g, g), weight2, weights2, largest),
    vNext = lerpSquareAny<T, K>(readNext<T, W>(expAvgSq), v128.mul<T>(gNext, gNext), weight2, weights2, largest);
  writePair<T, W>(expAvg, m, mNext);
  writePair<T, W>(expAvgSq, v, vNext);
  writePair<T, W>(grad, denominator<T>(v, epsRoot, eps), denominator<T>(vNext, epsRoot, eps));
}

/** r = meanScale * exp_avg / denominator. */
function ratio<T>(expAvg: v128, denominator: v128, meanScale: v128): v128 {
  return v128.mul<T>(meanScale, v128.div<T>(expAvg, denominator));
}

/** The update r + inUpdate*param in place of the denominator that is in the gradient's memory. A pair of vectors, or one element. */
function update<T, W, Usual>(param: usize, grad: usize, expAvg: usize, meanScale: v128, inUpdate: v128, adds: bool): void {
  let u = ratio<T>(read<T, W>(expAvg), read<T, W>(grad), meanScale),
    uNext = ratio<T>(readNext<T, W>(expAvg), readNext<T, W>(grad), meanScale);
  if (isOn<Usual>() || adds) {
    u = v128.add<T>(u, v128.mul<T>(inUpdate, read<T, W>(param)));
    uNext = v128.add<T>(uNext, v128.mul<T>(inUpdate, readNext<T, W>(param)));
  }
  writePair<T, W>(grad, u, uNext);
}

/** param - decay*param. */
function kept<T>(param: v128, decay: v128, shrinks: bool): v128 {
  return shrinks ? v128.sub<T>(param, v128.mul<T>(decay, param)) : param;
}

/** Bytes that the parts of `moments` keep between them: a processor can look ahead over as many, and each part finds done what it needs. */
const LAG: usize = 4 * PAIR;

/**
 * sums = [|param - decay*param|^2, |update|^2], update = r + inUpdate*param, written over the gradient. Usual says
 * that averages and inUpdate are there and decay is not. The loop has a root, a division and two sums
 * under way at three places, which takes four fifths of the time of one after the other (measured).
 */
function moments<T, K, Usual>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, sums: usize, count: usize, scalars: usize): void {
  const decays = lanes<T>(scalars, 0),
    inUpdates = lanes<T>(scalars, 1),
    shrinks = !isOn<Usual>() && scalar(scalars, 0) !== 0,
    adds = scalar(scalars, 1) !== 0,
    weighs = scalar(scalars, 2) !== 0;
  const weight1 = scalar(scalars, 3),
    weight2 = scalar(scalars, 4),
    weights1 = lanes<T>(scalars, 3),
    weights2 = lanes<T>(scalars, 4),
    largest = largestFinite<T>(count);
  const means = lanes<T>(scalars, 5),
    root = lanes<T>(scalars, 6),
    epss = lanes<T>(scalars, 7);
  const paired = pairedBytes<T>(count),
    whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  let paramLow = f64x2.splat(0),
    paramHigh = f64x2.splat(0),
    updateLow = f64x2.splat(0),
    updateHigh = f64x2.splat(0);
  for (let i: usize = 0; i < paired + 2 * LAG; i += PAIR) {
    if (i < paired) average<T, v128, K, Usual>(grad + i, expAvg + i, expAvgSq + i, weighs, weight1, weights1, weight2, weights2, largest, root, epss);
    // Below 0 these wrap round to more than `paired`.
    const j = i - LAG,
      k = i - 2 * LAG;
    if (j < paired) update<T, v128, Usual>(param + j, grad + j, expAvg + j, means, inUpdates, adds);
    if (k < paired) {
      paramLow = squaresLow<T>(paramLow, kept<T>(readPair<T>(param + k), decays, shrinks));
      updateLow = squaresLow<T>(updateLow, readPair<T>(grad + k));
      if (sizeof<T>() === 4) {
        paramHigh = squaresLow<T>(paramHigh, kept<T>(readPair<T>(param + k + 8), decays, shrinks));
        updateHigh = squaresLow<T>(updateHigh, readPair<T>(grad + k + 8));
      }
      paramLow = squaresLow<T>(paramLow, kept<T>(readPair<T>(param + k + VECTOR), decays, shrinks));
      updateLow = squaresLow<T>(updateLow, readPair<T>(grad + k + VECTOR));
      if (sizeof<T>() === 4) {
        paramHigh = squaresLow<T>(paramHigh, kept<T>(readPair<T>(param + k + VECTOR + 8), decays, shrinks));
        updateHigh = squaresLow<T>(updateHigh, readPair<T>(grad + k + VECTOR + 8));
      }
    }
  }
  for (let i = paired; i < bytes; i += sizeof<T>()) {
    average<T, T, K, Usual>(grad + i, expAvg + i, expAvgSq + i, weighs, weight1, weights1, weight2, weights2, largest, root, epss);
    update<T, T, Usual>(param + i, grad + i, expAvg + i, means, inUpdates, adds);
  }
  for (let i = paired; i < whole; i += VECTOR) {
    const p = kept<T>(read<T, v128>(param + i), decays, shrinks);
    const u = read<T, v128>(grad + i);
    paramLow = squaresLow<T>(paramLow, p);
    paramHigh = squaresHigh<T>(paramHigh, p);
    updateLow = squaresLow<T>(updateLow, u);
    updateHigh = squaresHigh<T>(updateHigh, u);
  }
  for (let i = whole; i < bytes; i += sizeof<T>()) {
    paramLow = squaresLow<T>(paramLow, kept<T>(read<T, T>(param + i), decays, shrinks));
    updateLow = squaresLow<T>(updateLow, read<T, T>(grad + i));
  }
  storeSum(sums, paramLow, paramHigh);
  storeSum(sums + 8, updateLow, updateHigh);
}

/** For `caution`: r where its sign agrees with the gradient's, else 0, written over the gradient; sums = [how many agree]. */
function cautious<T, K>(grad: usize, expAvg: usize, expAvgSq: usize, sums: usize, count: usize, scalars: usize): void {
  const weight1 = scalar(scalars, 1),
    weight2 = scalar(scalars, 2),
    weights1 = lanes<T>(scalars, 1),
    weights2 = lanes<T>(scalars, 2),
    largest = largestFinite<T>(count);
  const means = lanes<T>(scalars, 3),
    root = lanes<T>(scalars, 4),
    epss = lanes<T>(scalars, 5);
  const paired = pairedBytes<T>(count),
    bytes = count * sizeof<T>();
  // Light weights come here only with averages.
  const weighs = isLight<K>() || scalar(scalars, 0) !== 0;
  let agree = i32x4.splat(0);
  let i: usize = 0;
  for (; i < paired; i += PAIR)
    agree = tally(
      agree,
      cautiousElement<T, v128, K>(grad + i, expAvg + i, expAvgSq + i, weighs, weight1, weights1, weight2, weights2, largest, means, root, epss),
    );
  for (; i < bytes; i += sizeof<T>())
    agree = tally(
      agree,
      cautiousElement<T, T, K>(grad + i, expAvg + i, expAvgSq + i, weighs, weight1, weights1, weight2, weights2, largest, means, root, epss),
    );
  storeTally<T>(sums, agree);
}

/** Returns -1 for each value in a lane whose sign agrees. */
// biome-ignore format: operands, then constants
function cautiousElement<T, W, K>(
  grad: usize, expAvg: usize, expAvgSq: usize,
  averages: bool, weight1: f64, weights1: v128, weight2: f64, weights2: v128, largest: v128, meanScale: v128, epsRoot: v128, eps: v128,
): v128 {
  const zero = i32x4.splat(0);
  const g = read<T, W>(grad),
    gNext = readNext<T, W>(grad);
  const m = mean<T, K>(read<T, W>(expAvg), g, averages, weight1, weights1),
    mNext = mean<T, K>(readNext<T, W>(expAvg), gNext, averages, weight1, weights1);
  const v = lerpSquareAny<T, K>(read<T, W>(expAvgSq), v128.mul<T>(g, g), weight2, weights2, largest),
    vNext = lerpSquareAny<T, K>(readNext<T, W>(expAvgSq), v128.mul<T>(gNext, gNext), weight2, weights2, largest);
  writePair<T, W>(expAvg, m, mNext);
  writePair<T, W>(expAvgSq, v, vNext);
  const r = ratio<T>(m, denominator<T>(v, epsRoot, eps), meanScale),
    rNext = ratio<T>(mNext, denominator<T>(vNext, epsRoot, eps), meanScale);
  const agrees = v128.gt<T>(v128.mul<T>(r, g), zero),
    agreesNext = v128.gt<T>(v128.mul<T>(rNext, gNext), zero);
  writePair<T, W>(grad, v128.and(r, agrees), v128.and(rNext, agreesNext));
  return i32x4.add(filled<T, W>(agrees), agreesNext);
}

/** After `cautious`: update = scale*r + inUpdate*param over the gradient; sums as in `moments`. */
function decayed<T>(param: usize, grad: usize, sums: usize, count: usize, scalars: usize): void {
  const decays = lanes<T>(scalars, 0),
    shrinks = scalar(scalars, 0) !== 0,
    inUpdates = lanes<T>(scalars, 1),
    adds = scalar(scalars, 1) !== 0,
    scales = lanes<T>(scalars, 2);
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
    const k = kept<T>(p, decays, shrinks);
    write<T, v128>(grad + i, u);
    paramLow = squaresLow<T>(paramLow, k);
    paramHigh = squaresHigh<T>(paramHigh, k);
    updateLow = squaresLow<T>(updateLow, u);
    updateHigh = squaresHigh<T>(updateHigh, u);
  }
  for (; i < bytes; i += sizeof<T>()) {
    const p = read<T, T>(param + i);
    let u = v128.mul<T>(scales, read<T, T>(grad + i));
    if (adds) u = v128.add<T>(u, v128.mul<T>(inUpdates, p));
    write<T, T>(grad + i, u);
    paramLow = squaresLow<T>(paramLow, kept<T>(p, decays, shrinks));
    updateLow = squaresLow<T>(updateLow, filled<T, T>(u));
  }
  storeSum(sums, paramLow, paramHigh);
  storeSum(sums + 8, updateLow, updateHigh);
}

/** param -= decay*param + rate*update, the update read from the gradient's memory. */
function apply<T, D>(param: usize, grad: usize, count: usize, scalars: usize): bool {
  const decay = lanes<T>(scalars, 0),
    rate = lanes<T>(scalars, 1);
  const paired = pairedBytes<T>(count),
    bytes = count * sizeof<T>();
  let total = v128.splat<T>(0);
  let i: usize = 0;
  for (; i < paired; i += PAIR) total = v128.add<T>(total, applyElement<T, v128, D>(param + i, grad + i, decay, rate));
  for (; i < bytes; i += sizeof<T>()) total = v128.add<T>(total, applyElement<T, T, D>(param + i, grad + i, decay, rate));
  return isSuspect<T>(total);
}

function applyElement<T, W, D>(param: usize, grad: usize, decay: v128, rate: v128): v128 {
  const update = v128.mul<T>(rate, read<T, W>(grad)),
    updateNext = v128.mul<T>(rate, readNext<T, W>(grad));
  return writeParam<T, W>(param, descend<T, D>(read<T, W>(param), decay, update), descend<T, D>(readNext<T, W>(param), decay, updateNext));
}

function anyMoments<T>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, sums: usize, count: usize, scalars: usize): void {
  const isUsual = scalar(scalars, 2) !== 0 && scalar(scalars, 1) !== 0 && scalar(scalars, 0) === 0;
  if (!areLight(scalar(scalars, 3), scalar(scalars, 4))) moments<T, AnyWeight, Off>(param, grad, expAvg, expAvgSq, sums, count, scalars);
  else if (isUsual) moments<T, Light, On>(param, grad, expAvg, expAvgSq, sums, count, scalars);
  else moments<T, Light, Off>(param, grad, expAvg, expAvgSq, sums, count, scalars);
}

function anyCautious<T>(grad: usize, expAvg: usize, expAvgSq: usize, sums: usize, count: usize, scalars: usize): void {
  if (scalar(scalars, 0) !== 0 && areLight(scalar(scalars, 1), scalar(scalars, 2))) cautious<T, Light>(grad, expAvg, expAvgSq, sums, count, scalars);
  else cautious<T, AnyWeight>(grad, expAvg, expAvgSq, sums, count, scalars);
}

function anyApply<T>(param: usize, grad: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 0) !== 0) return apply<T, Decoupled>(param, grad, count, scalars);
  return apply<T, NoDecay>(param, grad, count, scalars);
}

export function lamb_moments_f32(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, sums: usize, count: usize, scalars: usize): void {
  anyMoments<f32>(param, grad, expAvg, expAvgSq, sums, count, scalars);
}

export function lamb_moments_f64(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, sums: usize, count: usize, scalars: usize): void {
  anyMoments<f64>(param, grad, expAvg, expAvgSq, sums, count, scalars);
}

export function lamb_cautious_f32(grad: usize, expAvg: usize, expAvgSq: usize, sums: usize, count: usize, scalars: usize): void {
  anyCautious<f32>(grad, expAvg, expAvgSq, sums, count, scalars);
}

export function lamb_cautious_f64(grad: usize, expAvg: usize, expAvgSq: usize, sums: usize, count: usize, scalars: usize): void {
  anyCautious<f64>(grad, expAvg, expAvgSq, sums, count, scalars);
}

export function lamb_decayed_f32(param: usize, grad: usize, sums: usize, count: usize, scalars: usize): void {
  decayed<f32>(param, grad, sums, count, scalars);
}

export function lamb_decayed_f64(param: usize, grad: usize, sums: usize, count: usize, scalars: usize): void {
  decayed<f64>(param, grad, sums, count, scalars);
}

export function lamb_apply_f32(param: usize, grad: usize, count: usize, scalars: usize): bool {
  return anyApply<f32>(param, grad, count, scalars);
}

export function lamb_apply_f64(param: usize, grad: usize, count: usize, scalars: usize): bool {
  return anyApply<f64>(param, grad, count, scalars);
}
