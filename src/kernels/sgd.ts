/** SGD, without and with a momentum buffer. One shard; `count` elements. Scalars in the order of src/optimizers/sgd.ts. */
import { coupled, isOn, Off, On, PAIR, pairedBytes, read, readNext, spread, writePair } from "./_lanes";

/** param -= lr * (grad + l2*param). Couples says whether l2 is there. */
function plain<T, Couples>(param: usize, grad: usize, count: usize, l2: f64, lr: f64): void {
  const l2s = spread<T>(l2),
    rate = spread<T>(lr);
  const paired = pairedBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < paired; i += PAIR) plainElement<T, v128, Couples>(param + i, grad + i, l2s, rate);
  for (; i < bytes; i += sizeof<T>()) plainElement<T, T, Couples>(param + i, grad + i, l2s, rate);
}

/** A pair of vectors, or one element. */
function plainElement<T, W, Couples>(param: usize, grad: usize, l2: v128, lr: v128): void {
  const p = read<T, W>(param),
    pNext = readNext<T, W>(param);
  const direction = coupled<T>(read<T, W>(grad), p, l2, isOn<Couples>()),
    directionNext = coupled<T>(readNext<T, W>(grad), pNext, l2, isOn<Couples>());
  writePair<T, W>(param, v128.sub<T>(p, v128.mul<T>(lr, direction)), v128.sub<T>(pNext, v128.mul<T>(lr, directionNext)));
}

/**
 * buffer = keep*buffer + fresh*(grad + l2*param); param -= lr * (nesterov ? grad + l2*param + ahead*buffer : buffer). Couples
 * and Nesterov say whether l2 and ahead are there.
 */
function momentum<T, Couples, Nesterov>(param: usize, grad: usize, buffer: usize, count: usize, l2: f64, lr: f64, keep: f64, fresh: f64, ahead: f64): void {
  const l2s = spread<T>(l2),
    rate = spread<T>(lr),
    keeps = spread<T>(keep),
    freshs = spread<T>(fresh),
    aheads = spread<T>(ahead);
  const paired = pairedBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < paired; i += PAIR) momentumElement<T, v128, Couples, Nesterov>(param + i, grad + i, buffer + i, l2s, rate, keeps, freshs, aheads);
  for (; i < bytes; i += sizeof<T>()) momentumElement<T, T, Couples, Nesterov>(param + i, grad + i, buffer + i, l2s, rate, keeps, freshs, aheads);
}

/** A pair of vectors, or one element. */
function momentumElement<T, W, Couples, Nesterov>(param: usize, grad: usize, buffer: usize, l2: v128, lr: v128, keep: v128, fresh: v128, ahead: v128): void {
  const p = read<T, W>(param),
    pNext = readNext<T, W>(param);
  const g = coupled<T>(read<T, W>(grad), p, l2, isOn<Couples>()),
    gNext = coupled<T>(readNext<T, W>(grad), pNext, l2, isOn<Couples>());
  const b = v128.add<T>(v128.mul<T>(keep, read<T, W>(buffer)), v128.mul<T>(fresh, g)),
    bNext = v128.add<T>(v128.mul<T>(keep, readNext<T, W>(buffer)), v128.mul<T>(fresh, gNext));
  writePair<T, W>(buffer, b, bNext);
  const direction = isOn<Nesterov>() ? v128.add<T>(g, v128.mul<T>(ahead, b)) : b,
    directionNext = isOn<Nesterov>() ? v128.add<T>(gNext, v128.mul<T>(ahead, bNext)) : bNext;
  writePair<T, W>(param, v128.sub<T>(p, v128.mul<T>(lr, direction)), v128.sub<T>(pNext, v128.mul<T>(lr, directionNext)));
}

function anyPlain<T>(param: usize, grad: usize, count: usize, l2: f64, lr: f64): void {
  if (l2 !== 0) plain<T, On>(param, grad, count, l2, lr);
  else plain<T, Off>(param, grad, count, l2, lr);
}

function anyMomentum<T>(param: usize, grad: usize, buffer: usize, count: usize, l2: f64, lr: f64, keep: f64, fresh: f64, ahead: f64): void {
  if (l2 !== 0 && ahead !== 0) momentum<T, On, On>(param, grad, buffer, count, l2, lr, keep, fresh, ahead);
  else if (l2 !== 0) momentum<T, On, Off>(param, grad, buffer, count, l2, lr, keep, fresh, ahead);
  else if (ahead !== 0) momentum<T, Off, On>(param, grad, buffer, count, l2, lr, keep, fresh, ahead);
  else momentum<T, Off, Off>(param, grad, buffer, count, l2, lr, keep, fresh, ahead);
}

export function sgd_f32(param: usize, grad: usize, count: usize, l2: f64, lr: f64): void {
  anyPlain<f32>(param, grad, count, l2, lr);
}

export function sgd_f64(param: usize, grad: usize, count: usize, l2: f64, lr: f64): void {
  anyPlain<f64>(param, grad, count, l2, lr);
}

export function sgd_momentum_f32(param: usize, grad: usize, buffer: usize, count: usize, l2: f64, lr: f64, keep: f64, fresh: f64, ahead: f64): void {
  anyMomentum<f32>(param, grad, buffer, count, l2, lr, keep, fresh, ahead);
}

export function sgd_momentum_f64(param: usize, grad: usize, buffer: usize, count: usize, l2: f64, lr: f64, keep: f64, fresh: f64, ahead: f64): void {
  anyMomentum<f64>(param, grad, buffer, count, l2, lr, keep, fresh, ahead);
}
