/** ASGD (src/optimizers/asgd.ts). Scalars: l2, decay, eta, mu. */
import {
  AnyWeight,
  areLight,
  Coupled,
  hasTail,
  isSuspect,
  Light,
  lanes,
  lerpAny,
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

/** param -= decay*param + eta*g; ax = lerp(ax, param, mu). `decay` is lambd * eta. */
function step<T, W, K, D>(param: usize, grad: usize, ax: usize, count: usize, scalars: usize): bool {
  const l2 = lanes<T>(scalars, 0),
    decay = lanes<T>(scalars, 1),
    eta = lanes<T>(scalars, 2),
    mu = scalar(scalars, 3),
    mus = lanes<T>(scalars, 3);
  const stride = strideOf<W>(),
    end = param + walkedBytes<T, W>(count);
  let total = v128.splat<T>(0);
  for (; param !== end; param += stride, grad += stride, ax += stride) {
    const p = read<T, W>(param),
      pNext = readNext<T, W>(param);
    const g = withCoupledDecay<T, D>(read<T, W>(grad), p, l2),
      gNext = withCoupledDecay<T, D>(readNext<T, W>(grad), pNext, l2);
    const q = v128.sub<T>(p, v128.add<T>(v128.mul<T>(decay, p), v128.mul<T>(eta, g))),
      qNext = v128.sub<T>(pNext, v128.add<T>(v128.mul<T>(decay, pNext), v128.mul<T>(eta, gNext)));
    writePair<T, W>(ax, lerpAny<T, K>(read<T, W>(ax), q, mu, mus), lerpAny<T, K>(readNext<T, W>(ax), qNext, mu, mus));
    total = v128.add<T>(total, writeParam<T, W>(param, q, qNext));
  }
  return (hasTail<T, W>(count) && step<T, T, K, D>(param, grad, ax, count, scalars)) || isSuspect<T>(total);
}

function anyDecay<T, K>(param: usize, grad: usize, ax: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 0) !== 0) return step<T, v128, K, Coupled>(param, grad, ax, count, scalars);
  return step<T, v128, K, NoDecay>(param, grad, ax, count, scalars);
}

function asgd<T>(param: usize, grad: usize, ax: usize, count: usize, scalars: usize): bool {
  if (areLight(scalar(scalars, 3), 0)) return anyDecay<T, Light>(param, grad, ax, count, scalars);
  return anyDecay<T, AnyWeight>(param, grad, ax, count, scalars);
}

export function asgd_f32(param: usize, grad: usize, ax: usize, count: usize, scalars: usize): bool {
  return asgd<f32>(param, grad, ax, count, scalars);
}

export function asgd_f64(param: usize, grad: usize, ax: usize, count: usize, scalars: usize): bool {
  return asgd<f64>(param, grad, ax, count, scalars);
}
