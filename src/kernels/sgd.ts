/** SGD, without and with a momentum buffer (src/optimizers/sgd.ts). Scalars: sgd l2, lr; sgd_momentum l2, lr, bufferFactor, gradFactor, nesterov. */
import {
  Coupled,
  decayLanes,
  isOn,
  isSuspect,
  lanes,
  NoDecay,
  Off,
  On,
  PAIR,
  pairedBytes,
  read,
  readNext,
  scalar,
  withCoupledDecay,
  writePair,
  writeParam,
} from "./_lanes";

/** param -= lr * (grad + l2*param). */
function plain<T, D>(param: usize, grad: usize, count: usize, scalars: usize): bool {
  const l2 = decayLanes<T, D>(scalars),
    lr = lanes<T>(scalars, 1);
  const paired = pairedBytes<T>(count),
    bytes = count * sizeof<T>();
  let total = v128.splat<T>(0);
  let i: usize = 0;
  for (; i < paired; i += PAIR) total = v128.add<T>(total, plainElement<T, v128, D>(param + i, grad + i, l2, lr));
  for (; i < bytes; i += sizeof<T>()) total = v128.add<T>(total, plainElement<T, T, D>(param + i, grad + i, l2, lr));
  return isSuspect<T>(total);
}

function plainElement<T, W, D>(param: usize, grad: usize, l2: v128, lr: v128): v128 {
  const p = read<T, W>(param),
    pNext = readNext<T, W>(param);
  const g = withCoupledDecay<T, D>(read<T, W>(grad), p, l2),
    gNext = withCoupledDecay<T, D>(readNext<T, W>(grad), pNext, l2);
  return writeParam<T, W>(param, v128.sub<T>(p, v128.mul<T>(lr, g)), v128.sub<T>(pNext, v128.mul<T>(lr, gNext)));
}

/** g = grad + l2*param; buffer = bufferFactor*buffer + gradFactor*g; param -= lr * (Nesterov ? g + nesterov*buffer : buffer). */
function momentum<T, D, Nesterov>(param: usize, grad: usize, buffer: usize, count: usize, scalars: usize): bool {
  const l2 = decayLanes<T, D>(scalars),
    lr = lanes<T>(scalars, 1),
    bufferFactor = lanes<T>(scalars, 2),
    gradFactor = lanes<T>(scalars, 3),
    nesterov = lanes<T>(scalars, 4);
  const paired = pairedBytes<T>(count),
    bytes = count * sizeof<T>();
  let total = v128.splat<T>(0);
  let i: usize = 0;
  for (; i < paired; i += PAIR)
    total = v128.add<T>(total, momentumElement<T, v128, D, Nesterov>(param + i, grad + i, buffer + i, l2, lr, bufferFactor, gradFactor, nesterov));
  for (; i < bytes; i += sizeof<T>())
    total = v128.add<T>(total, momentumElement<T, T, D, Nesterov>(param + i, grad + i, buffer + i, l2, lr, bufferFactor, gradFactor, nesterov));
  return isSuspect<T>(total);
}

function momentumElement<T, W, D, Nesterov>(
  param: usize,
  grad: usize,
  buffer: usize,
  l2: v128,
  lr: v128,
  bufferFactor: v128,
  gradFactor: v128,
  nesterov: v128,
): v128 {
  const p = read<T, W>(param),
    pNext = readNext<T, W>(param);
  const g = withCoupledDecay<T, D>(read<T, W>(grad), p, l2),
    gNext = withCoupledDecay<T, D>(readNext<T, W>(grad), pNext, l2);
  const b = v128.add<T>(v128.mul<T>(bufferFactor, read<T, W>(buffer)), v128.mul<T>(gradFactor, g)),
    bNext = v128.add<T>(v128.mul<T>(bufferFactor, readNext<T, W>(buffer)), v128.mul<T>(gradFactor, gNext));
  writePair<T, W>(buffer, b, bNext);
  const u = isOn<Nesterov>() ? v128.add<T>(g, v128.mul<T>(nesterov, b)) : b,
    uNext = isOn<Nesterov>() ? v128.add<T>(gNext, v128.mul<T>(nesterov, bNext)) : bNext;
  return writeParam<T, W>(param, v128.sub<T>(p, v128.mul<T>(lr, u)), v128.sub<T>(pNext, v128.mul<T>(lr, uNext)));
}

function anyMomentum<T, D>(param: usize, grad: usize, buffer: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 4) !== 0) return momentum<T, D, On>(param, grad, buffer, count, scalars);
  return momentum<T, D, Off>(param, grad, buffer, count, scalars);
}

export function sgd_f32(param: usize, grad: usize, count: usize, scalars: usize): bool {
  return scalar(scalars, 0) !== 0 ? plain<f32, Coupled>(param, grad, count, scalars) : plain<f32, NoDecay>(param, grad, count, scalars);
}

export function sgd_f64(param: usize, grad: usize, count: usize, scalars: usize): bool {
  return scalar(scalars, 0) !== 0 ? plain<f64, Coupled>(param, grad, count, scalars) : plain<f64, NoDecay>(param, grad, count, scalars);
}

export function sgd_momentum_f32(param: usize, grad: usize, buffer: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 0) !== 0) return anyMomentum<f32, Coupled>(param, grad, buffer, count, scalars);
  return anyMomentum<f32, NoDecay>(param, grad, buffer, count, scalars);
}

export function sgd_momentum_f64(param: usize, grad: usize, buffer: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 0) !== 0) return anyMomentum<f64, Coupled>(param, grad, buffer, count, scalars);
  return anyMomentum<f64, NoDecay>(param, grad, buffer, count, scalars);
}
