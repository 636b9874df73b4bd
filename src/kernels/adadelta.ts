/** Adadelta. One shard; `count` elements. Scalars in the order of src/optimizers/adadelta.ts. */
import { AnyWeight, areLight, coupled, Light, largestFinite, lerpSquareAny, read, spread, VECTOR, wholeBytes, write } from "./_lanes";

/** d = sqrt(acc_delta + eps) / sqrt(square_avg + eps) * g; acc_delta averages d^2; param -= lr * d. */
function step<T, K>(param: usize, grad: usize, squareAvg: usize, accDelta: usize, count: usize, l2: f64, weight: f64, lr: f64, eps: f64): void {
  const l2s = spread<T>(l2),
    weights = spread<T>(weight),
    rate = spread<T>(lr),
    epss = spread<T>(eps),
    largest = largestFinite<T>(count);
  const couples = l2 !== 0;
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < whole; i += VECTOR) element<T, v128, K>(param + i, grad + i, squareAvg + i, accDelta + i, couples, l2s, weight, weights, largest, rate, epss);
  for (; i < bytes; i += sizeof<T>()) element<T, T, K>(param + i, grad + i, squareAvg + i, accDelta + i, couples, l2s, weight, weights, largest, rate, epss);
}

function element<T, W, K>(
  param: usize,
  grad: usize,
  squareAvg: usize,
  accDelta: usize,
  couples: bool,
  l2: v128,
  weight: f64,
  weights: v128,
  largest: v128,
  lr: v128,
  eps: v128,
): void {
  const p = read<T, W>(param);
  const g = coupled<T>(read<T, W>(grad), p, l2, couples);
  const s = lerpSquareAny<T, K>(read<T, W>(squareAvg), v128.mul<T>(g, g), weight, weights, largest);
  const before = read<T, W>(accDelta);
  const root = v128.div<T>(v128.sqrt<T>(v128.add<T>(before, eps)), v128.sqrt<T>(v128.add<T>(s, eps)));
  const delta = v128.mul<T>(root, g);
  write<T, W>(squareAvg, s);
  write<T, W>(accDelta, lerpSquareAny<T, K>(before, v128.mul<T>(delta, delta), weight, weights, largest));
  write<T, W>(param, v128.sub<T>(p, v128.mul<T>(lr, delta)));
}

export function adadelta_f32(param: usize, grad: usize, squareAvg: usize, accDelta: usize, count: usize, l2: f64, weight: f64, lr: f64, eps: f64): void {
  if (areLight(weight, 0)) step<f32, Light>(param, grad, squareAvg, accDelta, count, l2, weight, lr, eps);
  else step<f32, AnyWeight>(param, grad, squareAvg, accDelta, count, l2, weight, lr, eps);
}

export function adadelta_f64(param: usize, grad: usize, squareAvg: usize, accDelta: usize, count: usize, l2: f64, weight: f64, lr: f64, eps: f64): void {
  if (areLight(weight, 0)) step<f64, Light>(param, grad, squareAvg, accDelta, count, l2, weight, lr, eps);
  else step<f64, AnyWeight>(param, grad, squareAvg, accDelta, count, l2, weight, lr, eps);
}
