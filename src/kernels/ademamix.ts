/** AdEMAMix (src/optimizers/ademamix.ts). Scalars: l2, decay, weight1, slowWeight, weight2, stepSize, slowScale, epsRoot, eps. */
import { mixedUpdate } from "./_adam";
import {
  AnyWeight,
  applyUpdate,
  areLight,
  Coupled,
  Decoupled,
  decayLanes,
  HEAVY,
  hasTail,
  isSuspect,
  Light,
  lanes,
  largestFinite,
  lerpAny,
  lerpSquareAny,
  NoDecay,
  read,
  readNext,
  scalar,
  strideOf,
  walkedBytes,
  withCoupledDecay,
  writePair,
  writeParam,
} from "./_lanes";

/** The moments as in Adam; slow = lerp(slow, g, slowWeight); param -= decay*param + stepSize * (expAvg + slowScale*slow) / (sqrt(expAvgSq + epsRoot) + eps). */
function step<T, W, K, D>(param: usize, grad: usize, expAvg: usize, slow: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  const decay = decayLanes<T, D>(scalars),
    weight1 = scalar(scalars, 2),
    slowWeight = scalar(scalars, 3),
    weight2 = scalar(scalars, 4),
    weights1 = lanes<T>(scalars, 2),
    slowWeights = lanes<T>(scalars, 3),
    weights2 = lanes<T>(scalars, 4),
    stepSize = lanes<T>(scalars, 5),
    slowScale = lanes<T>(scalars, 6),
    epsRoot = lanes<T>(scalars, 7),
    eps = lanes<T>(scalars, 8),
    largest = largestFinite<T>(count);
  const stride = strideOf<W>(),
    end = param + walkedBytes<T, W>(count);
  let total = v128.splat<T>(0);
  for (; param !== end; param += stride, grad += stride, expAvg += stride, slow += stride, expAvgSq += stride) {
    const p = read<T, W>(param),
      pNext = readNext<T, W>(param);
    const g = withCoupledDecay<T, D>(read<T, W>(grad), p, decay),
      gNext = withCoupledDecay<T, D>(readNext<T, W>(grad), pNext, decay);
    const m = lerpAny<T, K>(read<T, W>(expAvg), g, weight1, weights1),
      mNext = lerpAny<T, K>(readNext<T, W>(expAvg), gNext, weight1, weights1);
    const s = lerpAny<T, K>(read<T, W>(slow), g, slowWeight, slowWeights),
      sNext = lerpAny<T, K>(readNext<T, W>(slow), gNext, slowWeight, slowWeights);
    const v = lerpSquareAny<T, K>(read<T, W>(expAvgSq), v128.mul<T>(g, g), weight2, weights2, largest),
      vNext = lerpSquareAny<T, K>(readNext<T, W>(expAvgSq), v128.mul<T>(gNext, gNext), weight2, weights2, largest);
    writePair<T, W>(expAvg, m, mNext);
    writePair<T, W>(slow, s, sNext);
    writePair<T, W>(expAvgSq, v, vNext);
    const u = mixedUpdate<T>(m, s, slowScale, v, stepSize, epsRoot, eps),
      uNext = mixedUpdate<T>(mNext, sNext, slowScale, vNext, stepSize, epsRoot, eps);
    total = v128.add<T>(total, writeParam<T, W>(param, applyUpdate<T, D>(p, decay, u), applyUpdate<T, D>(pNext, decay, uNext)));
  }
  return (hasTail<T, W>(count) && step<T, T, K, D>(param, grad, expAvg, slow, expAvgSq, count, scalars)) || isSuspect<T>(total);
}

function anyDecay<T, K>(param: usize, grad: usize, expAvg: usize, slow: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 0) !== 0) return step<T, v128, K, Coupled>(param, grad, expAvg, slow, expAvgSq, count, scalars);
  if (scalar(scalars, 1) !== 0) return step<T, v128, K, Decoupled>(param, grad, expAvg, slow, expAvgSq, count, scalars);
  return step<T, v128, K, NoDecay>(param, grad, expAvg, slow, expAvgSq, count, scalars);
}

function ademamix<T>(param: usize, grad: usize, expAvg: usize, slow: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  if (areLight(scalar(scalars, 2), scalar(scalars, 3)) && scalar(scalars, 4) < HEAVY)
    return anyDecay<T, Light>(param, grad, expAvg, slow, expAvgSq, count, scalars);
  return anyDecay<T, AnyWeight>(param, grad, expAvg, slow, expAvgSq, count, scalars);
}

export function ademamix_f32(param: usize, grad: usize, expAvg: usize, slow: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  return ademamix<f32>(param, grad, expAvg, slow, expAvgSq, count, scalars);
}

export function ademamix_f64(param: usize, grad: usize, expAvg: usize, slow: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  return ademamix<f64>(param, grad, expAvg, slow, expAvgSq, count, scalars);
}
