/** Schedule-free SGD (src/optimizers/schedule_free_sgd.ts). Scalars: l2, average, gain, lr, isFirst. */
import {
  Coupled,
  decayLanes,
  hasTail,
  isSuspect,
  lanes,
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

/** param -= average*(param - z) + gain*g; z -= lr*g. */
function step<T, W, D>(param: usize, grad: usize, z: usize, count: usize, scalars: usize): bool {
  const l2 = decayLanes<T, D>(scalars),
    average = lanes<T>(scalars, 1),
    gain = lanes<T>(scalars, 2),
    lr = lanes<T>(scalars, 3);
  const stride = strideOf<W>(),
    end = param + walkedBytes<T, W>(count);
  let total = v128.splat<T>(0);
  for (; param !== end; param += stride, grad += stride, z += stride) {
    const p = read<T, W>(param),
      pNext = readNext<T, W>(param);
    const g = withCoupledDecay<T, D>(read<T, W>(grad), p, l2),
      gNext = withCoupledDecay<T, D>(readNext<T, W>(grad), pNext, l2);
    const before = read<T, W>(z),
      beforeNext = readNext<T, W>(z);
    writePair<T, W>(z, v128.sub<T>(before, v128.mul<T>(lr, g)), v128.sub<T>(beforeNext, v128.mul<T>(lr, gNext)));
    const moved = moveParam<T>(p, before, g, average, gain),
      movedNext = moveParam<T>(pNext, beforeNext, gNext, average, gain);
    total = v128.add<T>(total, writeParam<T, W>(param, moved, movedNext));
  }
  return (hasTail<T, W>(count) && step<T, T, D>(param, grad, z, count, scalars)) || isSuspect<T>(total);
}

function scheduleFreeSgd<T>(param: usize, grad: usize, z: usize, count: usize, scalars: usize): bool {
  startAverage<T>(param, z, count, scalar(scalars, 4));
  if (scalar(scalars, 0) !== 0) return step<T, v128, Coupled>(param, grad, z, count, scalars);
  return step<T, v128, NoDecay>(param, grad, z, count, scalars);
}

export function schedule_free_sgd_f32(param: usize, grad: usize, z: usize, count: usize, scalars: usize): bool {
  return scheduleFreeSgd<f32>(param, grad, z, count, scalars);
}

export function schedule_free_sgd_f64(param: usize, grad: usize, z: usize, count: usize, scalars: usize): bool {
  return scheduleFreeSgd<f64>(param, grad, z, count, scalars);
}

/** param += weight * (z - param), the average x of either schedule-free optimizer. Scalars: weight. */
function averageOf<T, W>(param: usize, z: usize, count: usize, scalars: usize): bool {
  const weight = lanes<T>(scalars, 0);
  const stride = strideOf<W>(),
    end = param + walkedBytes<T, W>(count);
  let total = v128.splat<T>(0);
  for (; param !== end; param += stride, z += stride) {
    const p = read<T, W>(param),
      pNext = readNext<T, W>(param);
    const x = v128.add<T>(p, v128.mul<T>(weight, v128.sub<T>(read<T, W>(z), p))),
      xNext = v128.add<T>(pNext, v128.mul<T>(weight, v128.sub<T>(readNext<T, W>(z), pNext)));
    total = v128.add<T>(total, writeParam<T, W>(param, x, xNext));
  }
  return (hasTail<T, W>(count) && averageOf<T, T>(param, z, count, scalars)) || isSuspect<T>(total);
}

export function schedule_free_average_f32(param: usize, z: usize, count: usize, scalars: usize): bool {
  return averageOf<f32, v128>(param, z, count, scalars);
}

export function schedule_free_average_f64(param: usize, z: usize, count: usize, scalars: usize): bool {
  return averageOf<f64, v128>(param, z, count, scalars);
}
