/** ADOPT (src/optimizers/adopt.ts). Scalars: l2, decay, weight1, weight2, lr, eps, clip (0 clips nothing), isFirst. */
import {
  AnyWeight,
  applyUpdate,
  areLight,
  Coupled,
  Decoupled,
  decayLanes,
  hasTail,
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
  read,
  readNext,
  scalar,
  spread,
  strideOf,
  walkedBytes,
  withCoupledDecay,
  writePair,
  writeParam,
} from "./_lanes";

/**
 * n = g / max(sqrt(exp_avg_sq), eps), clamped to [-clip, clip] if Clips is On; exp_avg = lerp(exp_avg, n, weight1); param -= decay*param +
 * lr*exp_avg. exp_avg_sq averages g^2 afterwards, so that the gradient does not divide itself.
 */
function step<T, W, K, D, Clips>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  const decay = decayLanes<T, D>(scalars),
    weight1 = scalar(scalars, 2),
    weight2 = scalar(scalars, 3),
    weights1 = lanes<T>(scalars, 2),
    weights2 = lanes<T>(scalars, 3),
    lr = lanes<T>(scalars, 4),
    eps = lanes<T>(scalars, 5),
    clip = lanes<T>(scalars, 6),
    // `v128.neg` of `clip` gave other float64 bits once V8 had optimized the loop.
    lowest = spread<T>(-scalar(scalars, 6)),
    largest = largestFinite<T>(count);
  const stride = strideOf<W>(),
    end = param + walkedBytes<T, W>(count);
  let total = v128.splat<T>(0);
  for (; param !== end; param += stride, grad += stride, expAvg += stride, expAvgSq += stride) {
    const p = read<T, W>(param),
      pNext = readNext<T, W>(param);
    const g = withCoupledDecay<T, D>(read<T, W>(grad), p, decay),
      gNext = withCoupledDecay<T, D>(readNext<T, W>(grad), pNext, decay);
    const v = read<T, W>(expAvgSq),
      vNext = readNext<T, W>(expAvgSq);
    let n = v128.div<T>(g, v128.max<T>(v128.sqrt<T>(v), eps)),
      nNext = v128.div<T>(gNext, v128.max<T>(v128.sqrt<T>(vNext), eps));
    if (isOn<Clips>()) {
      n = v128.pmax<T>(v128.pmin<T>(n, clip), lowest);
      nNext = v128.pmax<T>(v128.pmin<T>(nNext, clip), lowest);
    }
    const m = lerpAny<T, K>(read<T, W>(expAvg), n, weight1, weights1),
      mNext = lerpAny<T, K>(readNext<T, W>(expAvg), nNext, weight1, weights1);
    writePair<T, W>(expAvg, m, mNext);
    writePair<T, W>(
      expAvgSq,
      lerpSquareAny<T, K>(v, v128.mul<T>(g, g), weight2, weights2, largest),
      lerpSquareAny<T, K>(vNext, v128.mul<T>(gNext, gNext), weight2, weights2, largest),
    );
    const u = v128.mul<T>(lr, m),
      uNext = v128.mul<T>(lr, mNext);
    total = v128.add<T>(total, writeParam<T, W>(param, applyUpdate<T, D>(p, decay, u), applyUpdate<T, D>(pNext, decay, uNext)));
  }
  return (hasTail<T, W>(count) && step<T, T, K, D, Clips>(param, grad, expAvg, expAvgSq, count, scalars)) || isSuspect<T>(total);
}

/** The first step: exp_avg_sq = g^2. Nothing else changes. */
function first<T, W, D>(param: usize, grad: usize, expAvgSq: usize, count: usize, scalars: usize): void {
  const decay = decayLanes<T, D>(scalars);
  const stride = strideOf<W>(),
    end = param + walkedBytes<T, W>(count);
  for (; param !== end; param += stride, grad += stride, expAvgSq += stride) {
    const g = withCoupledDecay<T, D>(read<T, W>(grad), read<T, W>(param), decay),
      gNext = withCoupledDecay<T, D>(readNext<T, W>(grad), readNext<T, W>(param), decay);
    writePair<T, W>(expAvgSq, v128.mul<T>(g, g), v128.mul<T>(gNext, gNext));
  }
  if (hasTail<T, W>(count)) first<T, T, D>(param, grad, expAvgSq, count, scalars);
}

function anyStep<T, K, D>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 7) !== 0) {
    first<T, v128, D>(param, grad, expAvgSq, count, scalars);
    return false;
  }
  if (scalar(scalars, 6) !== 0) return step<T, v128, K, D, On>(param, grad, expAvg, expAvgSq, count, scalars);
  return step<T, v128, K, D, Off>(param, grad, expAvg, expAvgSq, count, scalars);
}

function anyDecay<T, K>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 0) !== 0) return anyStep<T, K, Coupled>(param, grad, expAvg, expAvgSq, count, scalars);
  if (scalar(scalars, 1) !== 0) return anyStep<T, K, Decoupled>(param, grad, expAvg, expAvgSq, count, scalars);
  return anyStep<T, K, NoDecay>(param, grad, expAvg, expAvgSq, count, scalars);
}

function adopt<T>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  if (areLight(scalar(scalars, 2), scalar(scalars, 3))) return anyDecay<T, Light>(param, grad, expAvg, expAvgSq, count, scalars);
  return anyDecay<T, AnyWeight>(param, grad, expAvg, expAvgSq, count, scalars);
}

export function adopt_f32(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  return adopt<f32>(param, grad, expAvg, expAvgSq, count, scalars);
}

export function adopt_f64(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  return adopt<f64>(param, grad, expAvg, expAvgSq, count, scalars);
}
