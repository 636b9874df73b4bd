/** Adagrad. One shard; `count` elements. Scalars in the order of src/optimizers/adagrad.ts. */
import { change } from "./_adam";
import { coupled, isOn, Off, On, PAIR, pairedBytes, read, readNext, spread, writePair } from "./_lanes";

/** sum += g^2; param -= lr * g / (sqrt(sum) + eps). Couples says whether l2 is there. */
function step<T, Couples>(param: usize, grad: usize, sum: usize, count: usize, l2: f64, lr: f64, eps: f64): void {
  const l2s = spread<T>(l2),
    rate = spread<T>(lr),
    epss = spread<T>(eps);
  const paired = pairedBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < paired; i += PAIR) element<T, v128, Couples>(param + i, grad + i, sum + i, l2s, rate, epss);
  for (; i < bytes; i += sizeof<T>()) element<T, T, Couples>(param + i, grad + i, sum + i, l2s, rate, epss);
}

/** A pair of vectors, or one element. */
function element<T, W, Couples>(param: usize, grad: usize, sum: usize, l2: v128, lr: v128, eps: v128): void {
  const p = read<T, W>(param),
    pNext = readNext<T, W>(param);
  const g = coupled<T>(read<T, W>(grad), p, l2, isOn<Couples>()),
    gNext = coupled<T>(readNext<T, W>(grad), pNext, l2, isOn<Couples>());
  const s = v128.add<T>(read<T, W>(sum), v128.mul<T>(g, g)),
    sNext = v128.add<T>(readNext<T, W>(sum), v128.mul<T>(gNext, gNext));
  writePair<T, W>(sum, s, sNext);
  writePair<T, W>(param, v128.sub<T>(p, change<T>(g, s, lr, eps)), v128.sub<T>(pNext, change<T>(gNext, sNext, lr, eps)));
}

function adagrad<T>(param: usize, grad: usize, sum: usize, count: usize, l2: f64, lr: f64, eps: f64): void {
  if (l2 !== 0) step<T, On>(param, grad, sum, count, l2, lr, eps);
  else step<T, Off>(param, grad, sum, count, l2, lr, eps);
}

export function adagrad_f32(param: usize, grad: usize, sum: usize, count: usize, l2: f64, lr: f64, eps: f64): void {
  adagrad<f32>(param, grad, sum, count, l2, lr, eps);
}

export function adagrad_f64(param: usize, grad: usize, sum: usize, count: usize, l2: f64, lr: f64, eps: f64): void {
  adagrad<f64>(param, grad, sum, count, l2, lr, eps);
}
