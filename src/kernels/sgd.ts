/** SGD, without and with a momentum buffer (src/optimizers/sgd.ts). Scalars: sgd l2, lr; sgd_momentum l2, lr, bufferFactor, gradFactor, nesterov. */
import {
  Coupled,
  decayLanes,
  hasTail,
  isOn,
  isSuspect,
  lanes,
  NoDecay,
  Off,
  On,
  read,
  readNext,
  scalar,
  strideOf,
  walkedBytes,
  withCoupledDecay,
  writePair,
  writeParam,
} from "./_lanes";

/**
 * g = grad + l2*param; buffer = bufferFactor*buffer + gradFactor*g; param -= lr * (Nesterov ? g + nesterov*buffer : buffer). Buffers
 * is On with a momentum buffer; without one, param -= lr * g.
 */
function step<T, W, D, Buffers, Nesterov>(param: usize, grad: usize, buffer: usize, count: usize, scalars: usize): bool {
  const l2 = decayLanes<T, D>(scalars),
    lr = lanes<T>(scalars, 1),
    bufferFactor = isOn<Buffers>() ? lanes<T>(scalars, 2) : lr,
    gradFactor = isOn<Buffers>() ? lanes<T>(scalars, 3) : lr,
    nesterov = isOn<Nesterov>() ? lanes<T>(scalars, 4) : lr;
  const stride = strideOf<W>(),
    end = param + walkedBytes<T, W>(count);
  let total = v128.splat<T>(0);
  for (; param !== end; param += stride, grad += stride, buffer += stride) {
    const p = read<T, W>(param),
      pNext = readNext<T, W>(param);
    const g = withCoupledDecay<T, D>(read<T, W>(grad), p, l2),
      gNext = withCoupledDecay<T, D>(readNext<T, W>(grad), pNext, l2);
    let u = g,
      uNext = gNext;
    if (isOn<Buffers>()) {
      const b = v128.add<T>(v128.mul<T>(bufferFactor, read<T, W>(buffer)), v128.mul<T>(gradFactor, g)),
        bNext = v128.add<T>(v128.mul<T>(bufferFactor, readNext<T, W>(buffer)), v128.mul<T>(gradFactor, gNext));
      writePair<T, W>(buffer, b, bNext);
      u = isOn<Nesterov>() ? v128.add<T>(g, v128.mul<T>(nesterov, b)) : b;
      uNext = isOn<Nesterov>() ? v128.add<T>(gNext, v128.mul<T>(nesterov, bNext)) : bNext;
    }
    total = v128.add<T>(total, writeParam<T, W>(param, v128.sub<T>(p, v128.mul<T>(lr, u)), v128.sub<T>(pNext, v128.mul<T>(lr, uNext))));
  }
  return (hasTail<T, W>(count) && step<T, T, D, Buffers, Nesterov>(param, grad, buffer, count, scalars)) || isSuspect<T>(total);
}

function anyMomentum<T, D>(param: usize, grad: usize, buffer: usize, count: usize, scalars: usize): bool {
  if (!buffer) return step<T, v128, D, Off, Off>(param, grad, buffer, count, scalars);
  if (scalar(scalars, 4) !== 0) return step<T, v128, D, On, On>(param, grad, buffer, count, scalars);
  return step<T, v128, D, On, Off>(param, grad, buffer, count, scalars);
}

function sgd<T>(param: usize, grad: usize, buffer: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 0) !== 0) return anyMomentum<T, Coupled>(param, grad, buffer, count, scalars);
  return anyMomentum<T, NoDecay>(param, grad, buffer, count, scalars);
}

export function sgd_f32(param: usize, grad: usize, count: usize, scalars: usize): bool {
  return sgd<f32>(param, grad, 0, count, scalars);
}

export function sgd_f64(param: usize, grad: usize, count: usize, scalars: usize): bool {
  return sgd<f64>(param, grad, 0, count, scalars);
}

export function sgd_momentum_f32(param: usize, grad: usize, buffer: usize, count: usize, scalars: usize): bool {
  return sgd<f32>(param, grad, buffer, count, scalars);
}

export function sgd_momentum_f64(param: usize, grad: usize, buffer: usize, count: usize, scalars: usize): bool {
  return sgd<f64>(param, grad, buffer, count, scalars);
}
