/** Signum (src/optimizers/signum.ts). Scalars: l2, decay, weight, lr. */
import {
  AnyWeight,
  applyUpdate,
  areLight,
  Coupled,
  constant,
  Decoupled,
  decayLanes,
  hasTail,
  isSuspect,
  Light,
  lanes,
  lerpAny,
  NoDecay,
  read,
  readNext,
  scalar,
  sign,
  strideOf,
  walkedBytes,
  withCoupledDecay,
  writePair,
  writeParam,
} from "./_lanes";

/** buffer = lerp(buffer, g, weight); param -= decay*param + lr*sign(buffer). */
function step<T, W, K, D>(param: usize, grad: usize, buffer: usize, count: usize, scalars: usize): bool {
  const decay = decayLanes<T, D>(scalars),
    weight = scalar(scalars, 2),
    weights = lanes<T>(scalars, 2),
    lr = lanes<T>(scalars, 3),
    one = constant<T>(<T>1, count);
  const stride = strideOf<W>(),
    end = param + walkedBytes<T, W>(count);
  let total = v128.splat<T>(0);
  for (; param !== end; param += stride, grad += stride, buffer += stride) {
    const p = read<T, W>(param),
      pNext = readNext<T, W>(param);
    const g = withCoupledDecay<T, D>(read<T, W>(grad), p, decay),
      gNext = withCoupledDecay<T, D>(readNext<T, W>(grad), pNext, decay);
    const b = lerpAny<T, K>(read<T, W>(buffer), g, weight, weights),
      bNext = lerpAny<T, K>(readNext<T, W>(buffer), gNext, weight, weights);
    writePair<T, W>(buffer, b, bNext);
    const u = v128.mul<T>(lr, sign<T>(b, one)),
      uNext = v128.mul<T>(lr, sign<T>(bNext, one));
    total = v128.add<T>(total, writeParam<T, W>(param, applyUpdate<T, D>(p, decay, u), applyUpdate<T, D>(pNext, decay, uNext)));
  }
  return (hasTail<T, W>(count) && step<T, T, K, D>(param, grad, buffer, count, scalars)) || isSuspect<T>(total);
}

function anyDecay<T, K>(param: usize, grad: usize, buffer: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 0) !== 0) return step<T, v128, K, Coupled>(param, grad, buffer, count, scalars);
  if (scalar(scalars, 1) !== 0) return step<T, v128, K, Decoupled>(param, grad, buffer, count, scalars);
  return step<T, v128, K, NoDecay>(param, grad, buffer, count, scalars);
}

function signum<T>(param: usize, grad: usize, buffer: usize, count: usize, scalars: usize): bool {
  if (areLight(scalar(scalars, 2), 0)) return anyDecay<T, Light>(param, grad, buffer, count, scalars);
  return anyDecay<T, AnyWeight>(param, grad, buffer, count, scalars);
}

export function signum_f32(param: usize, grad: usize, buffer: usize, count: usize, scalars: usize): bool {
  return signum<f32>(param, grad, buffer, count, scalars);
}

export function signum_f64(param: usize, grad: usize, buffer: usize, count: usize, scalars: usize): bool {
  return signum<f64>(param, grad, buffer, count, scalars);
}
