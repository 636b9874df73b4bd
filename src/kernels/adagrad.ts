/** Adagrad (src/optimizers/adagrad.ts). Scalars: l2, lr, eps. */
import { adaptiveUpdate } from "./_adam";
import { Coupled, decayLanes, isSuspect, lanes, NoDecay, PAIR, pairedBytes, read, readNext, scalar, withCoupledDecay, writePair, writeParam } from "./_lanes";

/** sum += g^2; param -= lr * g / (sqrt(sum) + eps). */
function step<T, D>(param: usize, grad: usize, sum: usize, count: usize, scalars: usize): bool {
  const l2 = decayLanes<T, D>(scalars),
    lr = lanes<T>(scalars, 1),
    eps = lanes<T>(scalars, 2);
  const paired = pairedBytes<T>(count),
    bytes = count * sizeof<T>();
  let total = v128.splat<T>(0);
  let i: usize = 0;
  for (; i < paired; i += PAIR) total = v128.add<T>(total, element<T, v128, D>(param + i, grad + i, sum + i, l2, lr, eps));
  for (; i < bytes; i += sizeof<T>()) total = v128.add<T>(total, element<T, T, D>(param + i, grad + i, sum + i, l2, lr, eps));
  return isSuspect<T>(total);
}

function element<T, W, D>(param: usize, grad: usize, sum: usize, l2: v128, lr: v128, eps: v128): v128 {
  const p = read<T, W>(param),
    pNext = readNext<T, W>(param);
  const g = withCoupledDecay<T, D>(read<T, W>(grad), p, l2),
    gNext = withCoupledDecay<T, D>(readNext<T, W>(grad), pNext, l2);
  const s = v128.add<T>(read<T, W>(sum), v128.mul<T>(g, g)),
    sNext = v128.add<T>(readNext<T, W>(sum), v128.mul<T>(gNext, gNext));
  writePair<T, W>(sum, s, sNext);
  return writeParam<T, W>(param, v128.sub<T>(p, adaptiveUpdate<T>(g, s, lr, eps)), v128.sub<T>(pNext, adaptiveUpdate<T>(gNext, sNext, lr, eps)));
}

function adagrad<T>(param: usize, grad: usize, sum: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 0) !== 0) return step<T, Coupled>(param, grad, sum, count, scalars);
  return step<T, NoDecay>(param, grad, sum, count, scalars);
}

export function adagrad_f32(param: usize, grad: usize, sum: usize, count: usize, scalars: usize): bool {
  return adagrad<f32>(param, grad, sum, count, scalars);
}

export function adagrad_f64(param: usize, grad: usize, sum: usize, count: usize, scalars: usize): bool {
  return adagrad<f64>(param, grad, sum, count, scalars);
}
