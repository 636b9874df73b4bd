/** Adagrad. One shard; `count` elements. Scalars in the order of src/optimizers/adagrad.ts. */
import { coupled, read, spread, VECTOR, wholeBytes, write } from "./_lanes";

/** sum += g^2; param -= lr * g / (sqrt(sum) + eps). */
function step<T>(param: usize, grad: usize, sum: usize, count: usize, l2: f64, lr: f64, eps: f64): void {
  const l2s = spread<T>(l2),
    rate = spread<T>(lr),
    epss = spread<T>(eps);
  const couples = l2 !== 0;
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < whole; i += VECTOR) element<T, v128>(param + i, grad + i, sum + i, couples, l2s, rate, epss);
  for (; i < bytes; i += sizeof<T>()) element<T, T>(param + i, grad + i, sum + i, couples, l2s, rate, epss);
}

function element<T, W>(param: usize, grad: usize, sum: usize, couples: bool, l2: v128, lr: v128, eps: v128): void {
  const p = read<T, W>(param);
  const g = coupled<T>(read<T, W>(grad), p, l2, couples);
  const s = v128.add<T>(read<T, W>(sum), v128.mul<T>(g, g));
  write<T, W>(sum, s);
  write<T, W>(param, v128.sub<T>(p, v128.mul<T>(lr, v128.div<T>(g, v128.add<T>(v128.sqrt<T>(s), eps)))));
}

export function adagrad_f32(param: usize, grad: usize, sum: usize, count: usize, l2: f64, lr: f64, eps: f64): void {
  step<f32>(param, grad, sum, count, l2, lr, eps);
}

export function adagrad_f64(param: usize, grad: usize, sum: usize, count: usize, l2: f64, lr: f64, eps: f64): void {
  step<f64>(param, grad, sum, count, l2, lr, eps);
}
