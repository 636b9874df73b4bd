/** SGD, without and with a momentum buffer. One shard; `count` elements. Scalars in the order of src/optimizers/sgd.ts. */
import { coupled, read, spread, VECTOR, wholeBytes, write } from "./_lanes";

/** param -= lr * (grad + l2*param). */
function plain<T>(param: usize, grad: usize, count: usize, l2: f64, lr: f64): void {
  const l2s = spread<T>(l2),
    rate = spread<T>(lr),
    couples = l2 !== 0;
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < whole; i += VECTOR) plainElement<T, v128>(param + i, grad + i, couples, l2s, rate);
  for (; i < bytes; i += sizeof<T>()) plainElement<T, T>(param + i, grad + i, couples, l2s, rate);
}

function plainElement<T, W>(param: usize, grad: usize, couples: bool, l2: v128, lr: v128): void {
  const p = read<T, W>(param);
  const direction = coupled<T>(read<T, W>(grad), p, l2, couples);
  write<T, W>(param, v128.sub<T>(p, v128.mul<T>(lr, direction)));
}

/** buffer = keep*buffer + fresh*(grad + l2*param); param -= lr * (nesterov ? grad + l2*param + ahead*buffer : buffer). */
function momentum<T>(param: usize, grad: usize, buffer: usize, count: usize, l2: f64, lr: f64, keep: f64, fresh: f64, ahead: f64): void {
  const l2s = spread<T>(l2),
    rate = spread<T>(lr),
    keeps = spread<T>(keep),
    freshs = spread<T>(fresh),
    aheads = spread<T>(ahead);
  const couples = l2 !== 0,
    nesterov = ahead !== 0;
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < whole; i += VECTOR) momentumElement<T, v128>(param + i, grad + i, buffer + i, couples, nesterov, l2s, rate, keeps, freshs, aheads);
  for (; i < bytes; i += sizeof<T>()) momentumElement<T, T>(param + i, grad + i, buffer + i, couples, nesterov, l2s, rate, keeps, freshs, aheads);
}

function momentumElement<T, W>(
  param: usize,
  grad: usize,
  buffer: usize,
  couples: bool,
  nesterov: bool,
  l2: v128,
  lr: v128,
  keep: v128,
  fresh: v128,
  ahead: v128,
): void {
  const p = read<T, W>(param);
  const g = coupled<T>(read<T, W>(grad), p, l2, couples);
  const b = v128.add<T>(v128.mul<T>(keep, read<T, W>(buffer)), v128.mul<T>(fresh, g));
  write<T, W>(buffer, b);
  const direction = nesterov ? v128.add<T>(g, v128.mul<T>(ahead, b)) : b;
  write<T, W>(param, v128.sub<T>(p, v128.mul<T>(lr, direction)));
}

export function sgd_f32(param: usize, grad: usize, count: usize, l2: f64, lr: f64): void {
  plain<f32>(param, grad, count, l2, lr);
}

export function sgd_f64(param: usize, grad: usize, count: usize, l2: f64, lr: f64): void {
  plain<f64>(param, grad, count, l2, lr);
}

export function sgd_momentum_f32(param: usize, grad: usize, buffer: usize, count: usize, l2: f64, lr: f64, keep: f64, fresh: f64, ahead: f64): void {
  momentum<f32>(param, grad, buffer, count, l2, lr, keep, fresh, ahead);
}

export function sgd_momentum_f64(param: usize, grad: usize, buffer: usize, count: usize, l2: f64, lr: f64, keep: f64, fresh: f64, ahead: f64): void {
  momentum<f64>(param, grad, buffer, count, l2, lr, keep, fresh, ahead);
}
