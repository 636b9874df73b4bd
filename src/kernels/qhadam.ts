/**
 * The general Adam step, for any weights, with the terms of QHAdam, Nesterov and eps_root (src/optimizers/_adam.ts).
 * Scalars: l2, decay, weight1, weight2, stepSize, meanScale, gradScale, squareScale, gradSquareScale, epsRoot, eps.
 */
import { adaptiveUpdate } from "./_adam";
import {
  AnyWeight,
  applyUpdate,
  areLight,
  Coupled,
  Decoupled,
  decayLanes,
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
  PAIR,
  pairedBytes,
  read,
  readNext,
  scalar,
  withCoupledDecay,
  writePair,
  writeParam,
} from "./_lanes";

/** param -= decay*param + stepSize * (meanScale*exp_avg + gradScale*grad) / (sqrt(squareScale*v + gradSquareScale*grad^2 + epsRoot) + eps), v as in Adam. */
function step<T, K, D, Max>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, maxExpAvgSq: usize, count: usize, scalars: usize): bool {
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
    eps = lanes<T>(scalars, 10);
  const useGrad = mask(scalar(scalars, 6)),
    useSquare = mask(scalar(scalars, 8));
  const paired = pairedBytes<T>(count),
    bytes = count * sizeof<T>();
  let total = v128.splat<T>(0);
  let i: usize = 0;
  // biome-ignore format: the constants of a loop in the order of `element`
  for (; i < paired; i += PAIR)
    total = v128.add<T>(total, element<T, v128, K, D, Max>(param + i, grad + i, expAvg + i, expAvgSq + i, maxExpAvgSq + i,
      decay, weight1, weights1, weight2, weights2, largest, stepSize, mean, now, useGrad, square, nowSquare, useSquare, epsRoot, eps));
  // biome-ignore format: as above
  for (; i < bytes; i += sizeof<T>())
    total = v128.add<T>(total, element<T, T, K, D, Max>(param + i, grad + i, expAvg + i, expAvgSq + i, maxExpAvgSq + i,
      decay, weight1, weights1, weight2, weights2, largest, stepSize, mean, now, useGrad, square, nowSquare, useSquare, epsRoot, eps));
  return isSuspect<T>(total);
}

// biome-ignore format: operands, then constants
function element<T, W, K, D, Max>(
  param: usize, grad: usize, expAvg: usize, expAvgSq: usize, maxExpAvgSq: usize,
  decay: v128, weight1: f64, weights1: v128, weight2: f64, weights2: v128, largest: v128,
  stepSize: v128, mean: v128, now: v128, useGrad: v128, square: v128, nowSquare: v128, useSquare: v128, epsRoot: v128, eps: v128,
): v128 {
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
  const root = v128.add<T>(quasiHyperbolic<T>(square, v, nowSquare, gg, useSquare), epsRoot),
    rootNext = v128.add<T>(quasiHyperbolic<T>(square, vNext, nowSquare, ggNext, useSquare), epsRoot);
  const update = adaptiveUpdate<T>(quasiHyperbolic<T>(mean, m, now, g, useGrad), root, stepSize, eps),
    updateNext = adaptiveUpdate<T>(quasiHyperbolic<T>(mean, mNext, now, gNext, useGrad), rootNext, stepSize, eps);
  return writeParam<T, W>(param, applyUpdate<T, D>(p, decay, update), applyUpdate<T, D>(pNext, decay, updateNext));
}

/** scale * average + sampleScale * sample; a zero `sampleMask` removes the second term. */
function quasiHyperbolic<T>(scale: v128, average: v128, sampleScale: v128, sample: v128, sampleMask: v128): v128 {
  return v128.add<T>(v128.mul<T>(scale, average), v128.and(v128.mul<T>(sampleScale, sample), sampleMask));
}

function anyMax<T, K, D>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, maxExpAvgSq: usize, count: usize, scalars: usize): bool {
  if (maxExpAvgSq) return step<T, K, D, On>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
  return step<T, K, D, Off>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
}

function anyDecay<T, K>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, maxExpAvgSq: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 0) !== 0) return anyMax<T, K, Coupled>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
  if (scalar(scalars, 1) !== 0) return anyMax<T, K, Decoupled>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
  return anyMax<T, K, NoDecay>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
}

function qhadam<T>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, maxExpAvgSq: usize, count: usize, scalars: usize): bool {
  if (areLight(scalar(scalars, 2), scalar(scalars, 3))) return anyDecay<T, Light>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
  return anyDecay<T, AnyWeight>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
}

export function qhadam_f32(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, maxExpAvgSq: usize, count: usize, scalars: usize): bool {
  return qhadam<f32>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
}

export function qhadam_f64(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, maxExpAvgSq: usize, count: usize, scalars: usize): bool {
  return qhadam<f64>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
}
