/** AdaBelief (src/optimizers/adabelief.ts). Scalars: l2, decay, weight1, weight2, beta1, stepSize, epsRoot, eps, adapts. */
import { adaptiveUpdate } from "./_adam";
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
  strideOf,
  walkedBytes,
  withCoupledDecay,
  writePair,
  writeParam,
} from "./_lanes";

/**
 * exp_avg as in Adam; exp_avg_var = lerp(exp_avg_var, (g - exp_avg)^2, weight2) + epsRoot; param -= decay*param + stepSize * exp_avg,
 * divided by sqrt(exp_avg_var) + eps if Adapts is On. The residual g - exp_avg is computed as beta1 * (g - old exp_avg), which rounds less.
 */
function step<T, W, K, D, Adapts>(param: usize, grad: usize, expAvg: usize, expAvgVar: usize, count: usize, scalars: usize): bool {
  const decay = decayLanes<T, D>(scalars),
    weight1 = scalar(scalars, 2),
    weight2 = scalar(scalars, 3),
    weights1 = lanes<T>(scalars, 2),
    weights2 = lanes<T>(scalars, 3),
    beta1 = lanes<T>(scalars, 4),
    stepSize = lanes<T>(scalars, 5),
    epsRoot = lanes<T>(scalars, 6),
    eps = lanes<T>(scalars, 7),
    largest = largestFinite<T>(count);
  const stride = strideOf<W>(),
    end = param + walkedBytes<T, W>(count);
  let total = v128.splat<T>(0);
  for (; param !== end; param += stride, grad += stride, expAvg += stride, expAvgVar += stride) {
    const p = read<T, W>(param),
      pNext = readNext<T, W>(param);
    const g = withCoupledDecay<T, D>(read<T, W>(grad), p, decay),
      gNext = withCoupledDecay<T, D>(readNext<T, W>(grad), pNext, decay);
    const old = read<T, W>(expAvg),
      oldNext = readNext<T, W>(expAvg);
    const m = lerpAny<T, K>(old, g, weight1, weights1),
      mNext = lerpAny<T, K>(oldNext, gNext, weight1, weights1);
    const r = v128.mul<T>(beta1, v128.sub<T>(g, old)),
      rNext = v128.mul<T>(beta1, v128.sub<T>(gNext, oldNext));
    const s = v128.add<T>(lerpSquareAny<T, K>(read<T, W>(expAvgVar), v128.mul<T>(r, r), weight2, weights2, largest), epsRoot),
      sNext = v128.add<T>(lerpSquareAny<T, K>(readNext<T, W>(expAvgVar), v128.mul<T>(rNext, rNext), weight2, weights2, largest), epsRoot);
    writePair<T, W>(expAvg, m, mNext);
    writePair<T, W>(expAvgVar, s, sNext);
    const u = isOn<Adapts>() ? adaptiveUpdate<T>(m, s, stepSize, eps) : v128.mul<T>(stepSize, m),
      uNext = isOn<Adapts>() ? adaptiveUpdate<T>(mNext, sNext, stepSize, eps) : v128.mul<T>(stepSize, mNext);
    total = v128.add<T>(total, writeParam<T, W>(param, applyUpdate<T, D>(p, decay, u), applyUpdate<T, D>(pNext, decay, uNext)));
  }
  return (hasTail<T, W>(count) && step<T, T, K, D, Adapts>(param, grad, expAvg, expAvgVar, count, scalars)) || isSuspect<T>(total);
}

function anyStep<T, K, D>(param: usize, grad: usize, expAvg: usize, expAvgVar: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 8) !== 0) return step<T, v128, K, D, On>(param, grad, expAvg, expAvgVar, count, scalars);
  return step<T, v128, K, D, Off>(param, grad, expAvg, expAvgVar, count, scalars);
}

function anyDecay<T, K>(param: usize, grad: usize, expAvg: usize, expAvgVar: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 0) !== 0) return anyStep<T, K, Coupled>(param, grad, expAvg, expAvgVar, count, scalars);
  if (scalar(scalars, 1) !== 0) return anyStep<T, K, Decoupled>(param, grad, expAvg, expAvgVar, count, scalars);
  return anyStep<T, K, NoDecay>(param, grad, expAvg, expAvgVar, count, scalars);
}

function adabelief<T>(param: usize, grad: usize, expAvg: usize, expAvgVar: usize, count: usize, scalars: usize): bool {
  if (areLight(scalar(scalars, 2), scalar(scalars, 3))) return anyDecay<T, Light>(param, grad, expAvg, expAvgVar, count, scalars);
  return anyDecay<T, AnyWeight>(param, grad, expAvg, expAvgVar, count, scalars);
}

export function adabelief_f32(param: usize, grad: usize, expAvg: usize, expAvgVar: usize, count: usize, scalars: usize): bool {
  return adabelief<f32>(param, grad, expAvg, expAvgVar, count, scalars);
}

export function adabelief_f64(param: usize, grad: usize, expAvg: usize, expAvgVar: usize, count: usize, scalars: usize): bool {
  return adabelief<f64>(param, grad, expAvg, expAvgVar, count, scalars);
}
