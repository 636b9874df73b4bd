/**
 * Adam and its variants (src/optimizers/_adam.ts). Scalars:
 *   adam, for weights below 0.5: l2, decay, weight1, weight2, stepSize, eps
 *   qhadam, for any weights, with the terms of QHAdam, Nesterov and eps_root: l2, decay, weight1, weight2, stepSize, meanScale,
 *     gradScale, squareScale, gradSquareScale, epsRoot, eps
 *   qhadam_cautious: those of qhadam; `lamb_apply` applies decay and stepSize
 */
import { adaptiveUpdate } from "./_adam";
import {
  AnyWeight,
  applyUpdate,
  areLight,
  Coupled,
  Decoupled,
  decayLanes,
  hasTail,
  isCoupled,
  isOn,
  isSuspect,
  Light,
  lanes,
  largestFinite,
  lerpAny,
  lerpSquareAny,
  mask,
  NoDecay,
  Off,
  On,
  read,
  readNext,
  scalar,
  strideOf,
  walkedBytes,
  withCoupledDecay,
  writePair,
  writeParam,
  zeroUnusedLanes,
} from "./_lanes";
import { storeTally, tally } from "./_reduce";

/**
 * param -= decay*param + stepSize * exp_avg / (sqrt(v) + eps), where v is exp_avg_sq, or its running maximum with Max. With Quasi the
 * numerator is meanScale*exp_avg + gradScale*grad, and squareScale*v + gradSquareScale*grad^2 + epsRoot stands under the root.
 */
function step<T, W, K, D, Max, Quasi>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, maxExpAvgSq: usize, count: usize, scalars: usize): bool {
  const decay = decayLanes<T, D>(scalars),
    weight1 = scalar(scalars, 2),
    weight2 = scalar(scalars, 3),
    weights1 = lanes<T>(scalars, 2),
    weights2 = lanes<T>(scalars, 3),
    largest = largestFinite<T>(count);
  const stepSize = lanes<T>(scalars, 4),
    mean = lanes<T>(scalars, 5),
    now = lanes<T>(scalars, 6),
    square = lanes<T>(scalars, 7),
    nowSquare = lanes<T>(scalars, 8),
    epsRoot = lanes<T>(scalars, 9),
    eps = lanes<T>(scalars, isOn<Quasi>() ? 10 : 5);
  const useGrad = mask(scalar(scalars, 6)),
    useSquare = mask(scalar(scalars, 8));
  const stride = strideOf<W>(),
    end = param + walkedBytes<T, W>(count);
  let total = v128.splat<T>(0);
  for (; param !== end; param += stride, grad += stride, expAvg += stride, expAvgSq += stride, maxExpAvgSq += stride) {
    const p = read<T, W>(param),
      pNext = readNext<T, W>(param);
    const g = withCoupledDecay<T, D>(read<T, W>(grad), p, decay),
      gNext = withCoupledDecay<T, D>(readNext<T, W>(grad), pNext, decay);
    const gg = v128.mul<T>(g, g),
      ggNext = v128.mul<T>(gNext, gNext);
    const m = lerpAny<T, K>(read<T, W>(expAvg), g, weight1, weights1),
      mNext = lerpAny<T, K>(readNext<T, W>(expAvg), gNext, weight1, weights1);
    let v = lerpSquareAny<T, K>(read<T, W>(expAvgSq), gg, weight2, weights2, largest),
      vNext = lerpSquareAny<T, K>(readNext<T, W>(expAvgSq), ggNext, weight2, weights2, largest);
    writePair<T, W>(expAvg, m, mNext);
    writePair<T, W>(expAvgSq, v, vNext);
    if (isOn<Max>()) {
      v = v128.max<T>(read<T, W>(maxExpAvgSq), v);
      vNext = v128.max<T>(readNext<T, W>(maxExpAvgSq), vNext);
      writePair<T, W>(maxExpAvgSq, v, vNext);
    }
    let numerator = m,
      numeratorNext = mNext;
    if (isOn<Quasi>()) {
      numerator = quasiHyperbolic<T>(mean, m, now, g, useGrad);
      numeratorNext = quasiHyperbolic<T>(mean, mNext, now, gNext, useGrad);
      v = v128.add<T>(quasiHyperbolic<T>(square, v, nowSquare, gg, useSquare), epsRoot);
      vNext = v128.add<T>(quasiHyperbolic<T>(square, vNext, nowSquare, ggNext, useSquare), epsRoot);
    }
    const update = adaptiveUpdate<T>(numerator, v, stepSize, eps),
      updateNext = adaptiveUpdate<T>(numeratorNext, vNext, stepSize, eps);
    total = v128.add<T>(total, writeParam<T, W>(param, applyUpdate<T, D>(p, decay, update), applyUpdate<T, D>(pNext, decay, updateNext)));
  }
  return (hasTail<T, W>(count) && step<T, T, K, D, Max, Quasi>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars)) || isSuspect<T>(total);
}

/**
 * The first pass of `caution`: updates the moments as `step` does with Quasi, and writes the quotient over the gradient where
 * their signs agree, else 0. sums = [number of elements that agree].
 */
function cautious<T, W, K, D, Max>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, maxExpAvgSq: usize, count: usize, scalars: usize): v128 {
  const l2 = lanes<T>(scalars, 0),
    weight1 = scalar(scalars, 2),
    weight2 = scalar(scalars, 3),
    weights1 = lanes<T>(scalars, 2),
    weights2 = lanes<T>(scalars, 3),
    largest = largestFinite<T>(count);
  const mean = lanes<T>(scalars, 5),
    now = lanes<T>(scalars, 6),
    square = lanes<T>(scalars, 7),
    nowSquare = lanes<T>(scalars, 8),
    epsRoot = lanes<T>(scalars, 9),
    eps = lanes<T>(scalars, 10),
    useGrad = mask(scalar(scalars, 6)),
    useSquare = mask(scalar(scalars, 8));
  const zero = i32x4.splat(0),
    stride = strideOf<W>(),
    end = grad + walkedBytes<T, W>(count);
  let agree = zero;
  for (; grad !== end; param += stride, grad += stride, expAvg += stride, expAvgSq += stride, maxExpAvgSq += stride) {
    let g = read<T, W>(grad),
      gNext = readNext<T, W>(grad);
    if (isCoupled<D>()) {
      g = withCoupledDecay<T, D>(g, read<T, W>(param), l2);
      gNext = withCoupledDecay<T, D>(gNext, readNext<T, W>(param), l2);
    }
    const gg = v128.mul<T>(g, g),
      ggNext = v128.mul<T>(gNext, gNext);
    const m = lerpAny<T, K>(read<T, W>(expAvg), g, weight1, weights1),
      mNext = lerpAny<T, K>(readNext<T, W>(expAvg), gNext, weight1, weights1);
    let v = lerpSquareAny<T, K>(read<T, W>(expAvgSq), gg, weight2, weights2, largest),
      vNext = lerpSquareAny<T, K>(readNext<T, W>(expAvgSq), ggNext, weight2, weights2, largest);
    writePair<T, W>(expAvg, m, mNext);
    writePair<T, W>(expAvgSq, v, vNext);
    if (isOn<Max>()) {
      v = v128.max<T>(read<T, W>(maxExpAvgSq), v);
      vNext = v128.max<T>(readNext<T, W>(maxExpAvgSq), vNext);
      writePair<T, W>(maxExpAvgSq, v, vNext);
    }
    v = v128.add<T>(quasiHyperbolic<T>(square, v, nowSquare, gg, useSquare), epsRoot);
    vNext = v128.add<T>(quasiHyperbolic<T>(square, vNext, nowSquare, ggNext, useSquare), epsRoot);
    const numerator = quasiHyperbolic<T>(mean, m, now, g, useGrad),
      numeratorNext = quasiHyperbolic<T>(mean, mNext, now, gNext, useGrad);
    const agrees = v128.gt<T>(v128.mul<T>(numerator, g), zero),
      agreesNext = v128.gt<T>(v128.mul<T>(numeratorNext, gNext), zero);
    const u = v128.div<T>(numerator, v128.add<T>(v128.sqrt<T>(v), eps)),
      uNext = v128.div<T>(numeratorNext, v128.add<T>(v128.sqrt<T>(vNext), eps));
    writePair<T, W>(grad, v128.and(u, agrees), v128.and(uNext, agreesNext));
    agree = tally(tally(agree, zeroUnusedLanes<T, W>(agrees)), agreesNext);
  }
  return hasTail<T, W>(count) ? i32x4.add(agree, cautious<T, T, K, D, Max>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars)) : agree;
}

/** scale * average + sampleScale * sample; a zero `sampleMask` removes the second term. */
function quasiHyperbolic<T>(scale: v128, average: v128, sampleScale: v128, sample: v128, sampleMask: v128): v128 {
  return v128.add<T>(v128.mul<T>(scale, average), v128.and(v128.mul<T>(sampleScale, sample), sampleMask));
}

function anyMax<T, K, D, Quasi>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, maxExpAvgSq: usize, count: usize, scalars: usize): bool {
  if (maxExpAvgSq) return step<T, v128, K, D, On, Quasi>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
  return step<T, v128, K, D, Off, Quasi>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
}

function anyDecay<T, K, Quasi>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, maxExpAvgSq: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 0) !== 0) return anyMax<T, K, Coupled, Quasi>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
  if (scalar(scalars, 1) !== 0) return anyMax<T, K, Decoupled, Quasi>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
  return anyMax<T, K, NoDecay, Quasi>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
}

function qhadam<T>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, maxExpAvgSq: usize, count: usize, scalars: usize): bool {
  if (areLight(scalar(scalars, 2), scalar(scalars, 3))) return anyDecay<T, Light, On>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
  return anyDecay<T, AnyWeight, On>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
}

function cautiousMax<T, K, D>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, maxExpAvgSq: usize, count: usize, scalars: usize): v128 {
  if (maxExpAvgSq) return cautious<T, v128, K, D, On>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
  return cautious<T, v128, K, D, Off>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
}

function cautiousDecay<T, K>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, maxExpAvgSq: usize, count: usize, scalars: usize): v128 {
  if (scalar(scalars, 0) !== 0) return cautiousMax<T, K, Coupled>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
  return cautiousMax<T, K, NoDecay>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
}

// biome-ignore format: operands in one line
function anyCautious<T>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, maxExpAvgSq: usize, sums: usize, count: usize, scalars: usize): void {
  const isLight = areLight(scalar(scalars, 2), scalar(scalars, 3));
  if (isLight) storeTally<T>(sums, cautiousDecay<T, Light>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars));
  else storeTally<T>(sums, cautiousDecay<T, AnyWeight>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars));
}

export function adam_f32(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, maxExpAvgSq: usize, count: usize, scalars: usize): bool {
  return anyDecay<f32, Light, Off>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
}

export function adam_f64(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, maxExpAvgSq: usize, count: usize, scalars: usize): bool {
  return anyDecay<f64, Light, Off>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
}

export function qhadam_f32(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, maxExpAvgSq: usize, count: usize, scalars: usize): bool {
  return qhadam<f32>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
}

export function qhadam_f64(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, maxExpAvgSq: usize, count: usize, scalars: usize): bool {
  return qhadam<f64>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
}

// biome-ignore format: operands in one line
export function qhadam_cautious_f32(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, maxExpAvgSq: usize, sums: usize, count: usize, scalars: usize): void {
  anyCautious<f32>(param, grad, expAvg, expAvgSq, maxExpAvgSq, sums, count, scalars);
}

// biome-ignore format: operands in one line
export function qhadam_cautious_f64(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, maxExpAvgSq: usize, sums: usize, count: usize, scalars: usize): void {
  anyCautious<f64>(param, grad, expAvg, expAvgSq, maxExpAvgSq, sums, count, scalars);
}
