/** Adagrad (src/optimizers/adagrad.ts). Scalars: l2, lr, eps. */
import { adaptiveUpdate } from "./_adam";
import {
  Coupled,
  decayLanes,
  hasTail,
  isSuspect,
  lanes,
  NoDecay,
  read,
  readNext,
  scalar,
  strideOf,
  walkedBytes,
  withCoupledDecay,
  writePair,
  writeParam,
} from "./_lanes";

/** sum += g^2; param -= lr * g / (sqrt(sum) + eps). */
function step<T, W, D>(param: usize, grad: usize, sum: usize, count: usize, scalars: usize): bool {
  const l2 = decayLanes<T, D>(scalars),
    lr = lanes<T>(scalars, 1),
    eps = lanes<T>(scalars, 2);
  const stride = strideOf<W>(),
    end = param + walkedBytes<T, W>(count);
  let total = v128.splat<T>(0);
  for (; param !== end; param += stride, grad += stride, sum += stride) {
    const p = read<T, W>(param),
      pNext = readNext<T, W>(param);
    const g = withCoupledDecay<T, D>(read<T, W>(grad), p, l2),
      gNext = withCoupledDecay<T, D>(readNext<T, W>(grad), pNext, l2);
    const s = v128.add<T>(read<T, W>(sum), v128.mul<T>(g, g)),
      sNext = v128.add<T>(readNext<T, W>(sum), v128.mul<T>(gNext, gNext));
    writePair<T, W>(sum, s, sNext);
    total = v128.add<T>(
      total,
      writeParam<T, W>(param, v128.sub<T>(p, adaptiveUpdate<T>(g, s, lr, eps)), v128.sub<T>(pNext, adaptiveUpdate<T>(gNext, sNext, lr, eps))),
    );
  }
  return (hasTail<T, W>(count) && step<T, T, D>(param, grad, sum, count, scalars)) || isSuspect<T>(total);
}

function adagrad<T>(param: usize, grad: usize, sum: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 0) !== 0) return step<T, v128, Coupled>(param, grad, sum, count, scalars);
  return step<T, v128, NoDecay>(param, grad, sum, count, scalars);
}

export function adagrad_f32(param: usize, grad: usize, sum: usize, count: usize, scalars: usize): bool {
  return adagrad<f32>(param, grad, sum, count, scalars);
}

export function adagrad_f64(param: usize, grad: usize, sum: usize, count: usize, scalars: usize): bool {
  return adagrad<f64>(param, grad, sum, count, scalars);
}
