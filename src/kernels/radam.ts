/** RAdam (src/optimizers/radam.ts). Scalars: l2, decay, weight1, weight2, stepSize, rectified, eps. */
import {
  AnyWeight,
  applyUpdate,
  areLight,
  Coupled,
  Decoupled,
  decayLanes,
  hasTail,
  isLight,
  isOn,
  isSuspect,
  Light,
  lanes,
  largestFinite,
  lerp,
  lerpHeavy,
  lerpSquare,
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
} from "./_lanes";

/**
 * exp_avg and exp_avg_sq as in Adam; param -= decay*param + stepSize * exp_avg / (Rectified ? sqrt(exp_avg_sq) + eps : 1). The step
 * without rectification never reads exp_avg_sq's root, so an overflowed average does no harm.
 */
function step<T, W, K, D, Rectified>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  const decay = decayLanes<T, D>(scalars),
    weight1 = scalar(scalars, 2),
    weight2 = scalar(scalars, 3),
    weights1 = lanes<T>(scalars, 2),
    weights2 = lanes<T>(scalars, 3),
    largest = largestFinite<T>(count),
    stepSize = lanes<T>(scalars, 4),
    eps = lanes<T>(scalars, 6);
  const stride = strideOf<W>(),
    end = param + walkedBytes<T, W>(count);
  let total = v128.splat<T>(0);
  for (; param !== end; param += stride, grad += stride, expAvg += stride, expAvgSq += stride) {
    const p = read<T, W>(param),
      pNext = readNext<T, W>(param);
    const g = withCoupledDecay<T, D>(read<T, W>(grad), p, decay),
      gNext = withCoupledDecay<T, D>(readNext<T, W>(grad), pNext, decay);
    let m = read<T, W>(expAvg),
      mNext = readNext<T, W>(expAvg);
    let v = read<T, W>(expAvgSq),
      vNext = readNext<T, W>(expAvgSq);
    const gg = v128.mul<T>(g, g),
      ggNext = v128.mul<T>(gNext, gNext);
    // One branch for both vectors of a pair: two branches cost a tenth of the step with heavy weights (measured).
    if (isLight<K>() || areLight(weight1, 0)) {
      m = lerp<T>(m, g, weights1);
      mNext = lerp<T>(mNext, gNext, weights1);
    } else {
      m = lerpHeavy<T>(m, g, weight1);
      mNext = lerpHeavy<T>(mNext, gNext, weight1);
    }
    if (isLight<K>() || areLight(weight2, 0)) {
      v = lerpSquare<T>(v, gg, weights2, largest);
      vNext = lerpSquare<T>(vNext, ggNext, weights2, largest);
    } else {
      v = lerpHeavy<T>(v, gg, weight2);
      vNext = lerpHeavy<T>(vNext, ggNext, weight2);
    }
    writePair<T, W>(expAvg, m, mNext);
    writePair<T, W>(expAvgSq, v, vNext);
    if (isOn<Rectified>()) {
      m = v128.div<T>(m, v128.add<T>(v128.sqrt<T>(v), eps));
      mNext = v128.div<T>(mNext, v128.add<T>(v128.sqrt<T>(vNext), eps));
    }
    total = v128.add<T>(
      total,
      writeParam<T, W>(param, applyUpdate<T, D>(p, decay, v128.mul<T>(stepSize, m)), applyUpdate<T, D>(pNext, decay, v128.mul<T>(stepSize, mNext))),
    );
  }
  return (hasTail<T, W>(count) && step<T, T, K, D, Rectified>(param, grad, expAvg, expAvgSq, count, scalars)) || isSuspect<T>(total);
}

function anyRectification<T, K, D>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 5) !== 0) return step<T, v128, K, D, On>(param, grad, expAvg, expAvgSq, count, scalars);
  return step<T, v128, K, D, Off>(param, grad, expAvg, expAvgSq, count, scalars);
}

function anyDecay<T, K>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 0) !== 0) return anyRectification<T, K, Coupled>(param, grad, expAvg, expAvgSq, count, scalars);
  if (scalar(scalars, 1) !== 0) return anyRectification<T, K, Decoupled>(param, grad, expAvg, expAvgSq, count, scalars);
  return anyRectification<T, K, NoDecay>(param, grad, expAvg, expAvgSq, count, scalars);
}

function radam<T>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  if (areLight(scalar(scalars, 2), scalar(scalars, 3))) return anyDecay<T, Light>(param, grad, expAvg, expAvgSq, count, scalars);
  return anyDecay<T, AnyWeight>(param, grad, expAvg, expAvgSq, count, scalars);
}

export function radam_f32(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  return radam<f32>(param, grad, expAvg, expAvgSq, count, scalars);
}

export function radam_f64(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  return radam<f64>(param, grad, expAvg, expAvgSq, count, scalars);
}
