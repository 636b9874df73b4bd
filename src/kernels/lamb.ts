/**
 * LAMB in several passes, because the trust ratio needs the norms of whole tensors (src/optimizers/lamb.ts). Between the passes
 * the update overwrites the gradient. Scalars:
 *   lamb_moments: decay, inUpdate, averages, weight1, weight2, meanScale, epsRoot, eps
 *   lamb_cautious: averages, weight1, weight2, meanScale, epsRoot, eps
 *   lamb_decayed: decay, inUpdate, scale
 *   lamb_apply: decay, rate
 */
import {
  AnyWeight,
  applyUpdate,
  areLight,
  Decoupled,
  hasTail,
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
  strideOf,
  VECTOR,
  walkedBytes,
  wholeBytes,
  write,
  writePair,
  writeParam,
  zeroUnusedLanes,
} from "./_lanes";
import { squaresHigh, squaresLow, storeSum, storeTally, tally } from "./_reduce";

/** The denominator sqrt(exp_avg_sq + epsRoot) + eps. */
function denominator<T>(v: v128, epsRoot: v128, eps: v128): v128 {
  return v128.add<T>(v128.sqrt<T>(v128.add<T>(v, epsRoot)), eps);
}

/** The new exp_avg: lerp(exp_avg, g, weight1), or beta1*exp_avg + g without `averages`. */
function nextExpAvg<T, K>(expAvg: v128, g: v128, averages: bool, weight1: f64, weights1: v128): v128 {
  return averages ? lerpAny<T, K>(expAvg, g, weight1, weights1) : v128.add<T>(v128.mul<T>(spread<T>(1 - weight1), expAvg), g);
}

/**
 * Updates the moments of a pair of vectors, or of one element, and writes the denominator over the gradient. This function takes the
 * type argument `Usual` of `moments`, too, so that the compiler makes one copy for each loop and inlines it. Calling a shared copy
 * would double the time (measured).
 */
// biome-ignore format: operands, then constants
function average<T, W, K, Usual>(
  grad: usize, expAvg: usize, expAvgSq: usize,
  averages: bool, weight1: f64, weights1: v128, weight2: f64, weights2: v128, largest: v128, epsRoot: v128, eps: v128,
): void {
  const isAveraged = isOn<Usual>() || averages;
  const g = read<T, W>(grad),
    gNext = readNext<T, W>(grad);
  const m = nextExpAvg<T, K>(read<T, W>(expAvg), g, isAveraged, weight1, weights1),
    mNext = nextExpAvg<T, K>(readNext<T, W>(expAvg), gNext, isAveraged, weight1, weights1);
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

/** Writes the update, r + inUpdate*param, over the denominator that `average` left in the gradient. A pair of vectors, or one element. */
function update<T, W, Usual>(param: usize, grad: usize, expAvg: usize, meanScale: v128, inUpdate: v128, adds: bool): void {
  let u = ratio<T>(read<T, W>(expAvg), read<T, W>(grad), meanScale),
    uNext = ratio<T>(readNext<T, W>(expAvg), readNext<T, W>(grad), meanScale);
  if (isOn<Usual>() || adds) {
    u = v128.add<T>(u, v128.mul<T>(inUpdate, read<T, W>(param)));
    uNext = v128.add<T>(uNext, v128.mul<T>(inUpdate, readNext<T, W>(param)));
  }
  writePair<T, W>(grad, u, uNext);
}

/** param - decay*param if `hasDecay`, else param. */
function decayedParam<T>(param: v128, decay: v128, hasDecay: bool): v128 {
  return hasDecay ? v128.sub<T>(param, v128.mul<T>(decay, param)) : param;
}

/** The distance in bytes between the stages of `moments`' pipelined loop: short enough for a processor to overlap them, long enough for each stage's input to be ready. */
const LAG: usize = 4 * PAIR;

/**
 * sums = [|param - decay*param|^2, |update|^2], update = r + inUpdate*param, written over the gradient. Usual is On for the
 * common case: averages and inUpdate, no decay. The loop is a software pipeline: the root, the division and the sums run LAG bytes apart,
 * in four fifths of the time that they take one after the other (measured).
 */
function moments<T, K, Usual>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, sums: usize, count: usize, scalars: usize): void {
  const decays = lanes<T>(scalars, 0),
    inUpdates = lanes<T>(scalars, 1),
    hasDecay = !isOn<Usual>() && scalar(scalars, 0) !== 0,
    adds = scalar(scalars, 1) !== 0,
    averages = scalar(scalars, 2) !== 0;
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
    if (i < paired) average<T, v128, K, Usual>(grad + i, expAvg + i, expAvgSq + i, averages, weight1, weights1, weight2, weights2, largest, root, epss);
    // Unsigned: a negative difference wraps around to a value above `paired`.
    const j = i - LAG,
      k = i - 2 * LAG;
    if (j < paired) update<T, v128, Usual>(param + j, grad + j, expAvg + j, means, inUpdates, adds);
    if (k < paired) {
      paramLow = squaresLow<T>(paramLow, decayedParam<T>(readPair<T>(param + k), decays, hasDecay));
      updateLow = squaresLow<T>(updateLow, readPair<T>(grad + k));
      if (sizeof<T>() === 4) {
        paramHigh = squaresLow<T>(paramHigh, decayedParam<T>(readPair<T>(param + k + 8), decays, hasDecay));
        updateHigh = squaresLow<T>(updateHigh, readPair<T>(grad + k + 8));
      }
      paramLow = squaresLow<T>(paramLow, decayedParam<T>(readPair<T>(param + k + VECTOR), decays, hasDecay));
      updateLow = squaresLow<T>(updateLow, readPair<T>(grad + k + VECTOR));
      if (sizeof<T>() === 4) {
        paramHigh = squaresLow<T>(paramHigh, decayedParam<T>(readPair<T>(param + k + VECTOR + 8), decays, hasDecay));
        updateHigh = squaresLow<T>(updateHigh, readPair<T>(grad + k + VECTOR + 8));
      }
    }
  }
  for (let i = paired; i < bytes; i += sizeof<T>()) {
    average<T, T, K, Usual>(grad + i, expAvg + i, expAvgSq + i, averages, weight1, weights1, weight2, weights2, largest, root, epss);
    update<T, T, Usual>(param + i, grad + i, expAvg + i, means, inUpdates, adds);
  }
  for (let i = paired; i < whole; i += VECTOR) {
    const p = decayedParam<T>(read<T, v128>(param + i), decays, hasDecay);
    const u = read<T, v128>(grad + i);
    paramLow = squaresLow<T>(paramLow, p);
    paramHigh = squaresHigh<T>(paramHigh, p);
    updateLow = squaresLow<T>(updateLow, u);
    updateHigh = squaresHigh<T>(updateHigh, u);
  }
  for (let i = whole; i < bytes; i += sizeof<T>()) {
    paramLow = squaresLow<T>(paramLow, decayedParam<T>(read<T, T>(param + i), decays, hasDecay));
    updateLow = squaresLow<T>(updateLow, read<T, T>(grad + i));
  }
  storeSum(sums, paramLow, paramHigh);
  storeSum(sums + 8, updateLow, updateHigh);
}

/** For `caution`: writes r over the gradient where their signs agree, else 0. sums = [number of elements that agree]. */
function cautious<T, W, K>(grad: usize, expAvg: usize, expAvgSq: usize, count: usize, scalars: usize): v128 {
  const weight1 = scalar(scalars, 1),
    weight2 = scalar(scalars, 2),
    weights1 = lanes<T>(scalars, 1),
    weights2 = lanes<T>(scalars, 2),
    largest = largestFinite<T>(count);
  const means = lanes<T>(scalars, 3),
    root = lanes<T>(scalars, 4),
    epss = lanes<T>(scalars, 5);
  // `anyCautious` takes the loop for light weights only with averages.
  const averages = isLight<K>() || scalar(scalars, 0) !== 0;
  const zero = i32x4.splat(0),
    stride = strideOf<W>(),
    end = grad + walkedBytes<T, W>(count);
  let agree = zero;
  for (; grad !== end; grad += stride, expAvg += stride, expAvgSq += stride) {
    const g = read<T, W>(grad),
      gNext = readNext<T, W>(grad);
    const m = nextExpAvg<T, K>(read<T, W>(expAvg), g, averages, weight1, weights1),
      mNext = nextExpAvg<T, K>(readNext<T, W>(expAvg), gNext, averages, weight1, weights1);
    const v = lerpSquareAny<T, K>(read<T, W>(expAvgSq), v128.mul<T>(g, g), weight2, weights2, largest),
      vNext = lerpSquareAny<T, K>(readNext<T, W>(expAvgSq), v128.mul<T>(gNext, gNext), weight2, weights2, largest);
    writePair<T, W>(expAvg, m, mNext);
    writePair<T, W>(expAvgSq, v, vNext);
    const r = ratio<T>(m, denominator<T>(v, root, epss), means),
      rNext = ratio<T>(mNext, denominator<T>(vNext, root, epss), means);
    const agrees = v128.gt<T>(v128.mul<T>(r, g), zero),
      agreesNext = v128.gt<T>(v128.mul<T>(rNext, gNext), zero);
    writePair<T, W>(grad, v128.and(r, agrees), v128.and(rNext, agreesNext));
    agree = tally(tally(agree, zeroUnusedLanes<T, W>(agrees)), agreesNext);
  }
  return hasTail<T, W>(count) ? i32x4.add(agree, cautious<T, T, K>(grad, expAvg, expAvgSq, count, scalars)) : agree;
}

/** The pass after `cautious`: writes the update, scale*r + inUpdate*param, over the gradient. sums as in `moments`. */
function decayed<T>(param: usize, grad: usize, sums: usize, count: usize, scalars: usize): void {
  const decays = lanes<T>(scalars, 0),
    hasDecay = scalar(scalars, 0) !== 0,
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
    const k = decayedParam<T>(p, decays, hasDecay);
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
    paramLow = squaresLow<T>(paramLow, decayedParam<T>(p, decays, hasDecay));
    updateLow = squaresLow<T>(updateLow, zeroUnusedLanes<T, T>(u));
  }
  storeSum(sums, paramLow, paramHigh);
  storeSum(sums + 8, updateLow, updateHigh);
}

/** param -= decay*param + rate*update; the update stands in the gradient's memory. */
function apply<T, W, D>(param: usize, grad: usize, count: usize, scalars: usize): bool {
  const decay = lanes<T>(scalars, 0),
    rate = lanes<T>(scalars, 1);
  const stride = strideOf<W>(),
    end = param + walkedBytes<T, W>(count);
  let total = v128.splat<T>(0);
  for (; param !== end; param += stride, grad += stride) {
    const update = v128.mul<T>(rate, read<T, W>(grad)),
      updateNext = v128.mul<T>(rate, readNext<T, W>(grad));
    total = v128.add<T>(
      total,
      writeParam<T, W>(param, applyUpdate<T, D>(read<T, W>(param), decay, update), applyUpdate<T, D>(readNext<T, W>(param), decay, updateNext)),
    );
  }
  return (hasTail<T, W>(count) && apply<T, T, D>(param, grad, count, scalars)) || isSuspect<T>(total);
}

function anyMoments<T>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, sums: usize, count: usize, scalars: usize): void {
  const isUsual = scalar(scalars, 2) !== 0 && scalar(scalars, 1) !== 0 && scalar(scalars, 0) === 0;
  if (!areLight(scalar(scalars, 3), scalar(scalars, 4))) moments<T, AnyWeight, Off>(param, grad, expAvg, expAvgSq, sums, count, scalars);
  else if (isUsual) moments<T, Light, On>(param, grad, expAvg, expAvgSq, sums, count, scalars);
  else moments<T, Light, Off>(param, grad, expAvg, expAvgSq, sums, count, scalars);
}

function anyCautious<T>(grad: usize, expAvg: usize, expAvgSq: usize, sums: usize, count: usize, scalars: usize): void {
  if (scalar(scalars, 0) !== 0 && areLight(scalar(scalars, 1), scalar(scalars, 2)))
    storeTally<T>(sums, cautious<T, v128, Light>(grad, expAvg, expAvgSq, count, scalars));
  else storeTally<T>(sums, cautious<T, v128, AnyWeight>(grad, expAvg, expAvgSq, count, scalars));
}

function anyApply<T>(param: usize, grad: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 0) !== 0) return apply<T, v128, Decoupled>(param, grad, count, scalars);
  return apply<T, v128, NoDecay>(param, grad, count, scalars);
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
