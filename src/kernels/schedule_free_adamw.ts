/** Schedule-free AdamW (src/optimizers/schedule_free_adamw.ts). Scalars: decay, weight2, root2, eps, average, gain, lr, isFirst. */
import { adaptiveUpdate } from "./_adam";
import {
  areLight,
  Coupled,
  decayLanes,
  Heavy,
  hasTail,
  isSuspect,
  Light,
  lanes,
  largestFinite,
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
import { moveParam, startAverage } from "./_schedule_free";

/** u = root2*g / (sqrt(v) + eps) + decay*param; param -= average*(param - z) + gain*u; z -= lr*u. */
function step<T, W, K, D>(param: usize, grad: usize, z: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  const decay = decayLanes<T, D>(scalars),
    weight = scalar(scalars, 1),
    weights = lanes<T>(scalars, 1),
    root2 = lanes<T>(scalars, 2),
    eps = lanes<T>(scalars, 3),
    largest = largestFinite<T>(count);
  const average = lanes<T>(scalars, 4),
    gain = lanes<T>(scalars, 5),
    lr = lanes<T>(scalars, 6);
  const stride = strideOf<W>(),
    end = param + walkedBytes<T, W>(count);
  let total = v128.splat<T>(0);
  for (; param !== end; param += stride, grad += stride, z += stride, expAvgSq += stride) {
    const p = read<T, W>(param),
      pNext = readNext<T, W>(param);
    const g = read<T, W>(grad),
      gNext = readNext<T, W>(grad);
    const v = lerpSquareAny<T, K>(read<T, W>(expAvgSq), v128.mul<T>(g, g), weight, weights, largest),
      vNext = lerpSquareAny<T, K>(readNext<T, W>(expAvgSq), v128.mul<T>(gNext, gNext), weight, weights, largest);
    writePair<T, W>(expAvgSq, v, vNext);
    const u = withCoupledDecay<T, D>(adaptiveUpdate<T>(g, v, root2, eps), p, decay),
      uNext = withCoupledDecay<T, D>(adaptiveUpdate<T>(gNext, vNext, root2, eps), pNext, decay);
    const before = read<T, W>(z),
      beforeNext = readNext<T, W>(z);
    writePair<T, W>(z, v128.sub<T>(before, v128.mul<T>(lr, u)), v128.sub<T>(beforeNext, v128.mul<T>(lr, uNext)));
    const moved = moveParam<T>(p, before, u, average, gain),
      movedNext = moveParam<T>(pNext, beforeNext, uNext, average, gain);
    total = v128.add<T>(total, writeParam<T, W>(param, moved, movedNext));
  }
  return (hasTail<T, W>(count) && step<T, T, K, D>(param, grad, z, expAvgSq, count, scalars)) || isSuspect<T>(total);
}

function anyDecay<T, K>(param: usize, grad: usize, z: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 0) !== 0) return step<T, v128, K, Coupled>(param, grad, z, expAvgSq, count, scalars);
  return step<T, v128, K, NoDecay>(param, grad, z, expAvgSq, count, scalars);
}

function scheduleFreeAdamw<T>(param: usize, grad: usize, z: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  startAverage<T>(param, z, count, scalar(scalars, 7));
  if (areLight(scalar(scalars, 1), 0)) return anyDecay<T, Light>(param, grad, z, expAvgSq, count, scalars);
  return anyDecay<T, Heavy>(param, grad, z, expAvgSq, count, scalars);
}

export function schedule_free_adamw_f32(param: usize, grad: usize, z: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  return scheduleFreeAdamw<f32>(param, grad, z, expAvgSq, count, scalars);
}

export function schedule_free_adamw_f64(param: usize, grad: usize, z: usize, expAvgSq: usize, count: usize, scalars: usize): bool {
  return scheduleFreeAdamw<f64>(param, grad, z, expAvgSq, count, scalars);
}
