/** QHM (src/optimizers/qhm.ts). Scalars: l2, decay, weight, bufferRate, gradRate. */
import {
  AnyWeight,
  applyUpdate,
  areLight,
  blend,
  Coupled,
  Decoupled,
  decayLanes,
  hasTail,
  isLight,
  isOn,
  isSuspect,
  Light,
  lerp,
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

/** g = grad + l2*param; buffer = lerp(buffer, g, weight); param -= decay*param + bufferRate*buffer + gradRate*g. Blends is On if bufferRate is not 0. */
function step<T, W, K, D, Blends>(param: usize, grad: usize, buffer: usize, count: usize, scalars: usize): bool {
  const rate = scalar(scalars, 4),
    mean = scalar(scalars, 2);
  const decay = decayLanes<T, D>(scalars),
    weight = isLight<K>() ? spread<T>(mean) : f64x2.splat(mean),
    keep = f64x2.splat(1 - mean),
    bufferRate = f64x2.splat(scalar(scalars, 3)),
    gradRate = isOn<Blends>() ? f64x2.splat(rate) : spread<T>(rate);
  const stride = strideOf<W>(),
    end = param + walkedBytes<T, W>(count);
  let total = v128.splat<T>(0);
  for (; param !== end; param += stride, grad += stride, buffer += stride) {
    const p = read<T, W>(param),
      pNext = readNext<T, W>(param);
    const g = withCoupledDecay<T, D>(read<T, W>(grad), p, decay),
      gNext = withCoupledDecay<T, D>(readNext<T, W>(grad), pNext, decay);
    const b = average<T, K>(read<T, W>(buffer), g, weight, keep),
      bNext = average<T, K>(readNext<T, W>(buffer), gNext, weight, keep);
    writePair<T, W>(buffer, b, bNext);
    // Without bufferRate the operations are those of plain SGD, bit for bit.
    const update = isOn<Blends>() ? blend<T>(bufferRate, b, gradRate, g) : v128.mul<T>(gradRate, g),
      updateNext = isOn<Blends>() ? blend<T>(bufferRate, bNext, gradRate, gNext) : v128.mul<T>(gradRate, gNext);
    total = v128.add<T>(total, writeParam<T, W>(param, applyUpdate<T, D>(p, decay, update), applyUpdate<T, D>(pNext, decay, updateNext)));
  }
  return (hasTail<T, W>(count) && step<T, T, K, D, Blends>(param, grad, buffer, count, scalars)) || isSuspect<T>(total);
}

/** `lerp`; for a heavy weight, computed in float64. */
function average<T, K>(buffer: v128, g: v128, weight: v128, keep: v128): v128 {
  return isLight<K>() ? lerp<T>(buffer, g, weight) : blend<T>(keep, buffer, weight, g);
}

function anyBlend<T, K, D>(param: usize, grad: usize, buffer: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 3) !== 0) return step<T, v128, K, D, On>(param, grad, buffer, count, scalars);
  return step<T, v128, K, D, Off>(param, grad, buffer, count, scalars);
}

function anyDecay<T, K>(param: usize, grad: usize, buffer: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 0) !== 0) return anyBlend<T, K, Coupled>(param, grad, buffer, count, scalars);
  if (scalar(scalars, 1) !== 0) return anyBlend<T, K, Decoupled>(param, grad, buffer, count, scalars);
  return anyBlend<T, K, NoDecay>(param, grad, buffer, count, scalars);
}

function qhm<T>(param: usize, grad: usize, buffer: usize, count: usize, scalars: usize): bool {
  if (areLight(scalar(scalars, 2), 0)) return anyDecay<T, Light>(param, grad, buffer, count, scalars);
  return anyDecay<T, AnyWeight>(param, grad, buffer, count, scalars);
}

export function qhm_f32(param: usize, grad: usize, buffer: usize, count: usize, scalars: usize): bool {
  return qhm<f32>(param, grad, buffer, count, scalars);
}

export function qhm_f64(param: usize, grad: usize, buffer: usize, count: usize, scalars: usize): bool {
  return qhm<f64>(param, grad, buffer, count, scalars);
}
