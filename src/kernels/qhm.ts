/** QHM. One shard; `count` elements. Scalars in the order of src/optimizers/qhm.ts. */
import { AnyWeight, blend, coupled, descend, lerpAny, read, spread, VECTOR, wholeBytes, write } from "./_lanes";

/** buffer = lerp(buffer, g, weight); param -= decay*param + bufferRate*buffer + gradRate*g, g = grad + l2*param. */
function quasi<T>(param: usize, grad: usize, buffer: usize, count: usize, l2: f64, decay: f64, weight: f64, bufferRate: f64, gradRate: f64): void {
  const l2s = spread<T>(l2),
    decays = spread<T>(decay),
    weights = spread<T>(weight);
  const bufferRates = f64x2.splat(bufferRate),
    gradRates = f64x2.splat(gradRate),
    plainRates = spread<T>(gradRate);
  const couples = l2 !== 0,
    shrinks = decay !== 0,
    usesBuffer = bufferRate !== 0;
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < whole; i += VECTOR) {
    element<T, v128>(param + i, grad + i, buffer + i, couples, shrinks, usesBuffer, l2s, decays, weight, weights, bufferRates, gradRates, plainRates);
  }
  for (; i < bytes; i += sizeof<T>()) {
    element<T, T>(param + i, grad + i, buffer + i, couples, shrinks, usesBuffer, l2s, decays, weight, weights, bufferRates, gradRates, plainRates);
  }
}

function element<T, W>(
  param: usize,
  grad: usize,
  buffer: usize,
  couples: bool,
  shrinks: bool,
  usesBuffer: bool,
  l2: v128,
  decay: v128,
  weight: f64,
  weights: v128,
  bufferRate: v128,
  gradRate: v128,
  plainRate: v128,
): void {
  const p = read<T, W>(param);
  const g = coupled<T>(read<T, W>(grad), p, l2, couples);
  const b = lerpAny<T, AnyWeight>(read<T, W>(buffer), g, weight, weights);
  write<T, W>(buffer, b);
  // Without the buffer the operations are those of plain SGD, bit for bit.
  const update = usesBuffer ? blend<T>(bufferRate, b, gradRate, g) : v128.mul<T>(plainRate, g);
  write<T, W>(param, descend<T>(p, decay, shrinks, update));
}

export function qhm_f32(param: usize, grad: usize, buffer: usize, count: usize, l2: f64, decay: f64, weight: f64, bufferRate: f64, gradRate: f64): void {
  quasi<f32>(param, grad, buffer, count, l2, decay, weight, bufferRate, gradRate);
}

export function qhm_f64(param: usize, grad: usize, buffer: usize, count: usize, l2: f64, decay: f64, weight: f64, bufferRate: f64, gradRate: f64): void {
  quasi<f64>(param, grad, buffer, count, l2, decay, weight, bufferRate, gradRate);
}
