/** Adan (src/optimizers/adan.ts). Scalars: decay, weight1, weight2, weight3, diffWeight, stepSize, diffScale, epsRoot, eps, isFirst. */
import { mixedUpdate } from "./_adam";
import {
  AnyWeight,
  applyUpdate,
  areLight,
  constant,
  Decoupled,
  HEAVY,
  hasTail,
  isSuspect,
  Light,
  lanes,
  largestFinite,
  lerpAny,
  lerpSquareAny,
  mask,
  NoDecay,
  read,
  readNext,
  scalar,
  strideOf,
  walkedBytes,
  writePair,
  writeParam,
} from "./_lanes";

/**
 * d = g + negPreGrad, or 0 at the first step. The averages are those of g, of d, and of (g + diffWeight*d)^2. param -= decay*param +
 * stepSize * (expAvg + diffScale*expAvgDiff) / (sqrt(expAvgSq + epsRoot) + eps); negPreGrad = -g.
 */
// biome-ignore format: operands, then constants
function step<T, W, K, D>(
  param: usize, grad: usize, expAvg: usize, expAvgDiff: usize, expAvgSq: usize, negPreGrad: usize, count: usize, scalars: usize,
): bool {
  const decay = lanes<T>(scalars, 0),
    weight1 = scalar(scalars, 1),
    weight2 = scalar(scalars, 2),
    weight3 = scalar(scalars, 3),
    weights1 = lanes<T>(scalars, 1),
    weights2 = lanes<T>(scalars, 2),
    weights3 = lanes<T>(scalars, 3),
    diffWeight = lanes<T>(scalars, 4),
    stepSize = lanes<T>(scalars, 5),
    diffScale = lanes<T>(scalars, 6),
    epsRoot = lanes<T>(scalars, 7),
    eps = lanes<T>(scalars, 8),
    isFirst = mask(scalar(scalars, 9)),
    minusZero = constant<T>(<T>-0.0, count),
    largest = largestFinite<T>(count);
  const stride = strideOf<W>(),
    end = param + walkedBytes<T, W>(count);
  let total = v128.splat<T>(0);
  for (; param !== end; param += stride, grad += stride, expAvg += stride, expAvgDiff += stride, expAvgSq += stride, negPreGrad += stride) {
    const g = read<T, W>(grad),
      gNext = readNext<T, W>(grad);
    const d = v128.andnot(v128.add<T>(g, read<T, W>(negPreGrad)), isFirst),
      dNext = v128.andnot(v128.add<T>(gNext, readNext<T, W>(negPreGrad)), isFirst);
    const m = lerpAny<T, K>(read<T, W>(expAvg), g, weight1, weights1),
      mNext = lerpAny<T, K>(readNext<T, W>(expAvg), gNext, weight1, weights1);
    const n = lerpAny<T, K>(read<T, W>(expAvgDiff), d, weight2, weights2),
      nNext = lerpAny<T, K>(readNext<T, W>(expAvgDiff), dNext, weight2, weights2);
    const s = v128.add<T>(g, v128.mul<T>(diffWeight, d)),
      sNext = v128.add<T>(gNext, v128.mul<T>(diffWeight, dNext));
    const v = lerpSquareAny<T, K>(read<T, W>(expAvgSq), v128.mul<T>(s, s), weight3, weights3, largest),
      vNext = lerpSquareAny<T, K>(readNext<T, W>(expAvgSq), v128.mul<T>(sNext, sNext), weight3, weights3, largest);
    writePair<T, W>(expAvg, m, mNext);
    writePair<T, W>(expAvgDiff, n, nNext);
    writePair<T, W>(expAvgSq, v, vNext);
    writePair<T, W>(negPreGrad, v128.sub<T>(minusZero, g), v128.sub<T>(minusZero, gNext));
    const u = mixedUpdate<T>(m, n, diffScale, v, stepSize, epsRoot, eps),
      uNext = mixedUpdate<T>(mNext, nNext, diffScale, vNext, stepSize, epsRoot, eps);
    total = v128.add<T>(
      total,
      writeParam<T, W>(param, applyUpdate<T, D>(read<T, W>(param), decay, u), applyUpdate<T, D>(readNext<T, W>(param), decay, uNext)),
    );
  }
  return (hasTail<T, W>(count) && step<T, T, K, D>(param, grad, expAvg, expAvgDiff, expAvgSq, negPreGrad, count, scalars)) || isSuspect<T>(total);
}

// biome-ignore format: operands
function anyDecay<T, K>(
  param: usize, grad: usize, expAvg: usize, expAvgDiff: usize, expAvgSq: usize, negPreGrad: usize, count: usize, scalars: usize,
): bool {
  if (scalar(scalars, 0) !== 0) return step<T, v128, K, Decoupled>(param, grad, expAvg, expAvgDiff, expAvgSq, negPreGrad, count, scalars);
  return step<T, v128, K, NoDecay>(param, grad, expAvg, expAvgDiff, expAvgSq, negPreGrad, count, scalars);
}

// biome-ignore format: operands
function adan<T>(
  param: usize, grad: usize, expAvg: usize, expAvgDiff: usize, expAvgSq: usize, negPreGrad: usize, count: usize, scalars: usize,
): bool {
  if (areLight(scalar(scalars, 1), scalar(scalars, 2)) && scalar(scalars, 3) < HEAVY)
    return anyDecay<T, Light>(param, grad, expAvg, expAvgDiff, expAvgSq, negPreGrad, count, scalars);
  return anyDecay<T, AnyWeight>(param, grad, expAvg, expAvgDiff, expAvgSq, negPreGrad, count, scalars);
}

// biome-ignore format: operands
export function adan_f32(
  param: usize, grad: usize, expAvg: usize, expAvgDiff: usize, expAvgSq: usize, negPreGrad: usize, count: usize, scalars: usize,
): bool {
  return adan<f32>(param, grad, expAvg, expAvgDiff, expAvgSq, negPreGrad, count, scalars);
}

// biome-ignore format: operands
export function adan_f64(
  param: usize, grad: usize, expAvg: usize, expAvgDiff: usize, expAvgSq: usize, negPreGrad: usize, count: usize, scalars: usize,
): bool {
  return adan<f64>(param, grad, expAvg, expAvgDiff, expAvgSq, negPreGrad, count, scalars);
}
