/** QHM. One shard; `count` elements. Scalars in the order of src/optimizers/qhm.ts. */
import { coupled, descend, eitherFactor, eitherStart, lerpEither, read, spread, VECTOR, wholeBytes, write } from "./_lanes";

/** buffer = lerp(buffer, g, weight); param -= decay*param + bufferRate*buffer + gradRate*g, g = grad + l2*param. */
function quasi<T>(param: usize, grad: usize, buffer: usize, count: usize, l2: f64, decay: f64, weight: f64, bufferRate: f64, gradRate: f64): void {
  const l2s = spread<T>(l2),
    decays = spread<T>(decay),
    factor = spread<T>(eitherFactor(weight)),
    start = eitherStart(weight);
  const bufferRates = spread<T>(bufferRate),
    gradRates = spread<T>(gradRate);
  const couples = l2 !== 0,
    shrinks = decay !== 0,
    usesBuffer = bufferRate !== 0;
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < whole; i += VECTOR) {
    element<T, v128>(param + i, grad + i, buffer + i, couples, shrinks, usesBuffer, l2s, decays, factor, start, bufferRates, gradRates);
  }
  for (; i < bytes; i += sizeof<T>()) {
    element<T, T>(param + i, grad + i, buffer + i, couples, shrinks, usesBuffer, l2s, decays, factor, start, bufferRates, gradRates);
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
  factor: v128,
  start: v128,
  bufferRate: v128,
  gradRate: v128,
): void {
  const p = read<T, W>(param);
  const g = coupled<T>(read<T, W>(grad), p, l2, couples);
  const b = lerpEither<T>(read<T, W>(buffer), g, factor, start);
  write<T, W>(buffer, b);
  let update = v128.mul<T>(gradRate, g);
  if (usesBuffer) update = v128.add<T>(v128.mul<T>(bufferRate, b), update);
  write<T, W>(param, descend<T>(p, decay, shrinks, update));
}

export function qhm_f32(param: usize, grad: usize, buffer: usize, count: usize, l2: f64, decay: f64, weight: f64, bufferRate: f64, gradRate: f64): void {
  quasi<f32>(param, grad, buffer, count, l2, decay, weight, bufferRate, gradRate);
}

export function qhm_f64(param: usize, grad: usize, buffer: usize, count: usize, l2: f64, decay: f64, weight: f64, bufferRate: f64, gradRate: f64): void {
  quasi<f64>(param, grad, buffer, count, l2, decay, weight, bufferRate, gradRate);
}
