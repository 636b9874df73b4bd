/** QHM. One shard; `count` elements. Scalars in the order of src/optimizers/qhm.ts. */
import {
  AnyWeight,
  areLight,
  blend,
  coupled,
  descend,
  isLight,
  isOn,
  Light,
  lerp,
  Off,
  On,
  PAIR,
  pairedBytes,
  read,
  readNext,
  spread,
  writePair,
} from "./_lanes";

/**
 * buffer = lerp(buffer, g, weight); param -= decay*param + bufferRate*buffer + gradRate*g, g = grad + l2*param. Couples, Shrinks
 * and Blends say whether l2, decay and bufferRate are there, the first two never together.
 */
function step<T, K, Couples, Shrinks, Blends>(
  param: usize,
  grad: usize,
  buffer: usize,
  count: usize,
  l2: f64,
  decay: f64,
  weight: f64,
  bufferRate: f64,
  gradRate: f64,
): void {
  const l2s = spread<T>(l2),
    decays = spread<T>(decay),
    weights = isLight<K>() ? spread<T>(weight) : f64x2.splat(weight),
    keeps = f64x2.splat(1 - weight);
  const bufferRates = f64x2.splat(bufferRate),
    gradRates = isOn<Blends>() ? f64x2.splat(gradRate) : spread<T>(gradRate);
  const paired = pairedBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < paired; i += PAIR)
    element<T, v128, K, Couples, Shrinks, Blends>(param + i, grad + i, buffer + i, l2s, decays, weights, keeps, bufferRates, gradRates);
  for (; i < bytes; i += sizeof<T>())
    element<T, T, K, Couples, Shrinks, Blends>(param + i, grad + i, buffer + i, l2s, decays, weights, keeps, bufferRates, gradRates);
}

/** A pair of vectors, or one element. */
function element<T, W, K, Couples, Shrinks, Blends>(
  param: usize,
  grad: usize,
  buffer: usize,
  l2: v128,
  decay: v128,
  weight: v128,
  keep: v128,
  bufferRate: v128,
  gradRate: v128,
): void {
  const p = read<T, W>(param),
    pNext = readNext<T, W>(param);
  const g = coupled<T>(read<T, W>(grad), p, l2, isOn<Couples>()),
    gNext = coupled<T>(readNext<T, W>(grad), pNext, l2, isOn<Couples>());
  const b = average<T, K>(read<T, W>(buffer), g, weight, keep),
    bNext = average<T, K>(readNext<T, W>(buffer), gNext, weight, keep);
  writePair<T, W>(buffer, b, bNext);
  // Without the buffer the operations are those of plain SGD, bit for bit.
  const update = isOn<Blends>() ? blend<T>(bufferRate, b, gradRate, g) : v128.mul<T>(gradRate, g),
    updateNext = isOn<Blends>() ? blend<T>(bufferRate, bNext, gradRate, gNext) : v128.mul<T>(gradRate, gNext);
  writePair<T, W>(param, descend<T>(p, decay, isOn<Shrinks>(), update), descend<T>(pNext, decay, isOn<Shrinks>(), updateNext));
}

/** `lerp`, blended in float64 for a weight that is not light. */
function average<T, K>(buffer: v128, g: v128, weight: v128, keep: v128): v128 {
  return isLight<K>() ? lerp<T>(buffer, g, weight) : blend<T>(keep, buffer, weight, g);
}

function decayed<T, K, Blends>(param: usize, grad: usize, buffer: usize, count: usize, l2: f64, decay: f64, weight: f64, bufferRate: f64, gradRate: f64): void {
  if (l2 !== 0) step<T, K, On, Off, Blends>(param, grad, buffer, count, l2, decay, weight, bufferRate, gradRate);
  else if (decay !== 0) step<T, K, Off, On, Blends>(param, grad, buffer, count, l2, decay, weight, bufferRate, gradRate);
  else step<T, K, Off, Off, Blends>(param, grad, buffer, count, l2, decay, weight, bufferRate, gradRate);
}

function qhm<T>(param: usize, grad: usize, buffer: usize, count: usize, l2: f64, decay: f64, weight: f64, bufferRate: f64, gradRate: f64): void {
  const light = areLight(weight, 0),
    blends = bufferRate !== 0;
  if (light && blends) decayed<T, Light, On>(param, grad, buffer, count, l2, decay, weight, bufferRate, gradRate);
  else if (light) decayed<T, Light, Off>(param, grad, buffer, count, l2, decay, weight, bufferRate, gradRate);
  else if (blends) decayed<T, AnyWeight, On>(param, grad, buffer, count, l2, decay, weight, bufferRate, gradRate);
  else decayed<T, AnyWeight, Off>(param, grad, buffer, count, l2, decay, weight, bufferRate, gradRate);
}

export function qhm_f32(param: usize, grad: usize, buffer: usize, count: usize, l2: f64, decay: f64, weight: f64, bufferRate: f64, gradRate: f64): void {
  qhm<f32>(param, grad, buffer, count, l2, decay, weight, bufferRate, gradRate);
}

export function qhm_f64(param: usize, grad: usize, buffer: usize, count: usize, l2: f64, decay: f64, weight: f64, bufferRate: f64, gradRate: f64): void {
  qhm<f64>(param, grad, buffer, count, l2, decay, weight, bufferRate, gradRate);
}
