/** Adadelta (src/optimizers/adadelta.ts). Scalars: l2, weight, lr, eps. */
import {
  areLight,
  Coupled,
  decayLanes,
  Heavy,
  hasTail,
  isSuspect,
  Light,
  lanes,
  largestFinite,
  lerpSquareAny,
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

/** d = sqrt(acc_delta + eps) / sqrt(square_avg + eps) * g; acc_delta is the running average of d^2; param -= lr * d. */
function step<T, W, K, D>(param: usize, grad: usize, squareAvg: usize, accDelta: usize, count: usize, scalars: usize): bool {
  const l2 = decayLanes<T, D>(scalars),
    weight = scalar(scalars, 1),
    weights = lanes<T>(scalars, 1),
    lr = lanes<T>(scalars, 2),
    eps = lanes<T>(scalars, 3),
    largest = largestFinite<T>(count);
  const stride = strideOf<W>(),
    end = param + walkedBytes<T, W>(count);
  let total = v128.splat<T>(0);
  for (; param !== end; param += stride, grad += stride, squareAvg += stride, accDelta += stride) {
    const p = read<T, W>(param),
      pNext = readNext<T, W>(param);
    const g = withCoupledDecay<T, D>(read<T, W>(grad), p, l2),
      gNext = withCoupledDecay<T, D>(readNext<T, W>(grad), pNext, l2);
    const s = lerpSquareAny<T, K>(read<T, W>(squareAvg), v128.mul<T>(g, g), weight, weights, largest),
      sNext = lerpSquareAny<T, K>(readNext<T, W>(squareAvg), v128.mul<T>(gNext, gNext), weight, weights, largest);
    const before = read<T, W>(accDelta),
      beforeNext = readNext<T, W>(accDelta);
    const d = delta<T>(before, s, g, eps),
      dNext = delta<T>(beforeNext, sNext, gNext, eps);
    const after = lerpSquareAny<T, K>(before, v128.mul<T>(d, d), weight, weights, largest),
      afterNext = lerpSquareAny<T, K>(beforeNext, v128.mul<T>(dNext, dNext), weight, weights, largest);
    writePair<T, W>(squareAvg, s, sNext);
    writePair<T, W>(accDelta, after, afterNext);
    total = v128.add<T>(total, writeParam<T, W>(param, v128.sub<T>(p, v128.mul<T>(lr, d)), v128.sub<T>(pNext, v128.mul<T>(lr, dNext))));
  }
  return (hasTail<T, W>(count) && step<T, T, K, D>(param, grad, squareAvg, accDelta, count, scalars)) || isSuspect<T>(total);
}

/** sqrt(before + eps) / sqrt(s + eps) * g. */
function delta<T>(before: v128, s: v128, g: v128, eps: v128): v128 {
  return v128.mul<T>(v128.div<T>(v128.sqrt<T>(v128.add<T>(before, eps)), v128.sqrt<T>(v128.add<T>(s, eps))), g);
}

function anyDecay<T, K>(param: usize, grad: usize, squareAvg: usize, accDelta: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 0) !== 0) return step<T, v128, K, Coupled>(param, grad, squareAvg, accDelta, count, scalars);
  return step<T, v128, K, NoDecay>(param, grad, squareAvg, accDelta, count, scalars);
}

function adadelta<T>(param: usize, grad: usize, squareAvg: usize, accDelta: usize, count: usize, scalars: usize): bool {
  if (areLight(scalar(scalars, 1), 0)) return anyDecay<T, Light>(param, grad, squareAvg, accDelta, count, scalars);
  return anyDecay<T, Heavy>(param, grad, squareAvg, accDelta, count, scalars);
}

export function adadelta_f32(param: usize, grad: usize, squareAvg: usize, accDelta: usize, count: usize, scalars: usize): bool {
  return adadelta<f32>(param, grad, squareAvg, accDelta, count, scalars);
}

export function adadelta_f64(param: usize, grad: usize, squareAvg: usize, accDelta: usize, count: usize, scalars: usize): bool {
  return adadelta<f64>(param, grad, squareAvg, accDelta, count, scalars);
}
