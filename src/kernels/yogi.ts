/** Yogi (src/optimizers/yogi.ts). Scalars: l2, decay, weight1, weight2, stepSize, epsRoot, eps. */
import { adaptiveUpdate } from "./_adam";
import {
  AnyWeight,
  applyUpdate,
  areLight,
  Coupled,
  constant,
  Decoupled,
  decayLanes,
  hasTail,
  isSuspect,
  Light,
  lanes,
  lerpAny,
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

/** exp_avg as in Adam; exp_avg_sq -= weight2 * sign(exp_avg_sq - g^2) * g^2; param -= decay*param + stepSize * exp_avg / (sqrt(exp_avg_sq + epsRoot) + eps). */
function step<T, W, K, D>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  const decay = decayLanes<T, D>(scalars),
    weight1 = scalar(scalars, 2),
    weights1 = lanes<T>(scalars, 2),
    weights2 = lanes<T>(scalars, 3),
    stepSize = lanes<T>(scalars, 4),
    epsRoot = lanes<T>(scalars, 5),
    eps = lanes<T>(scalars, 6),
    minusZero = constant<T>(<T>-0.0, count);
  const stride = strideOf<W>(),
    end = param + walkedBytes<T, W>(count);
  let total = v128.splat<T>(0);
  for (; param !== end; param += stride, grad += stride, expAvg += stride, expAvgSq += stride) {
    const p = read<T, W>(param),
      pNext = readNext<T, W>(param);
    const g = withCoupledDecay<T, D>(read<T, W>(grad), p, decay),
      gNext = withCoupledDecay<T, D>(readNext<T, W>(grad), pNext, decay);
    const m = lerpAny<T, K>(read<T, W>(expAvg), g, weight1, weights1),
      mNext = lerpAny<T, K>(readNext<T, W>(expAvg), gNext, weight1, weights1);
    const v = nextExpAvgSq<T>(read<T, W>(expAvgSq), v128.mul<T>(g, g), weights2, minusZero),
      vNext = nextExpAvgSq<T>(readNext<T, W>(expAvgSq), v128.mul<T>(gNext, gNext), weights2, minusZero);
    writePair<T, W>(expAvg, m, mNext);
    writePair<T, W>(expAvgSq, v, vNext);
    const u = adaptiveUpdate<T>(m, v128.add<T>(v, epsRoot), stepSize, eps),
      uNext = adaptiveUpdate<T>(mNext, v128.add<T>(vNext, epsRoot), stepSize, eps);
    total = v128.add<T>(total, writeParam<T, W>(param, applyUpdate<T, D>(p, decay, u), applyUpdate<T, D>(pNext, decay, uNext)));
  }
  return (hasTail<T, W>(count) && step<T, T, K, D>(param, grad, expAvg, expAvgSq, count, scalars)) || isSuspect<T>(total);
}

/** v - weight * sign(v - square) * square. Comparisons give the sign, because infinity - infinity is NaN, whose sign depends on the processor. */
function nextExpAvgSq<T>(v: v128, square: v128, weight: v128, minusZero: v128): v128 {
  const change = v128.and(v128.mul<T>(weight, square), v128.ne<T>(v, square));
  return v128.sub<T>(v, v128.xor(change, v128.and(v128.lt<T>(v, square), minusZero)));
}

function anyDecay<T, K>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 0) !== 0) return step<T, v128, K, Coupled>(param, grad, expAvg, expAvgSq, count, scalars);
  if (scalar(scalars, 1) !== 0) return step<T, v128, K, Decoupled>(param, grad, expAvg, expAvgSq, count, scalars);
  return step<T, v128, K, NoDecay>(param, grad, expAvg, expAvgSq, count, scalars);
}

function yogi<T>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  if (areLight(scalar(scalars, 2), 0)) return anyDecay<T, Light>(param, grad, expAvg, expAvgSq, count, scalars);
  return anyDecay<T, AnyWeight>(param, grad, expAvg, expAvgSq, count, scalars);
}

export function yogi_f32(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  return yogi<f32>(param, grad, expAvg, expAvgSq, count, scalars);
}

export function yogi_f64(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  return yogi<f64>(param, grad, expAvg, expAvgSq, count, scalars);
}
