/** Adadelta. One shard; `count` elements. Scalars in the order of src/optimizers/adadelta.ts. */
import { areLight, coupled, Heavy, isOn, Light, largestFinite, lerpSquareAny, Off, On, PAIR, pairedBytes, read, readNext, spread, writePair } from "./_lanes";

/** d = sqrt(acc_delta + eps) / sqrt(square_avg + eps) * g; acc_delta averages d^2; param -= lr * d. Couples says whether l2 is there. */
function step<T, K, Couples>(param: usize, grad: usize, squareAvg: usize, accDelta: usize, count: usize, l2: f64, weight: f64, lr: f64, eps: f64): void {
  const l2s = spread<T>(l2),
    weights = spread<T>(weight),
    rate = spread<T>(lr),
    epss = spread<T>(eps),
    largest = largestFinite<T>(count);
  const paired = pairedBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < paired; i += PAIR) element<T, v128, K, Couples>(param + i, grad + i, squareAvg + i, accDelta + i, l2s, weight, weights, largest, rate, epss);
  for (; i < bytes; i += sizeof<T>()) element<T, T, K, Couples>(param + i, grad + i, squareAvg + i, accDelta + i, l2s, weight, weights, largest, rate, epss);
}

/** A pair of vectors, or one element. */
function element<T, W, K, Couples>(
  param: usize,
  grad: usize,
  squareAvg: usize,
  accDelta: usize,
  l2: v128,
  weight: f64,
  weights: v128,
  largest: v128,
  lr: v128,
  eps: v128,
): void {
  const p = read<T, W>(param),
    pNext = readNext<T, W>(param);
  const g = coupled<T>(read<T, W>(grad), p, l2, isOn<Couples>()),
    gNext = coupled<T>(readNext<T, W>(grad), pNext, l2, isOn<Couples>());
  const s = lerpSquareAny<T, K>(read<T, W>(squareAvg), v128.mul<T>(g, g), weight, weights, largest),
    sNext = lerpSquareAny<T, K>(readNext<T, W>(squareAvg), v128.mul<T>(gNext, gNext), weight, weights, largest);
  const before = read<T, W>(accDelta),
    beforeNext = readNext<T, W>(accDelta);
  const d = delta<T>(before, s, g, eps),
    dNext = delta<T>(beforeNext, sNext, gNext, eps);
  writePair<T, W>(squareAvg, s, sNext);
  writePair<T, W>(
    accDelta,
    lerpSquareAny<T, K>(before, v128.mul<T>(d, d), weight, weights, largest),
    lerpSquareAny<T, K>(beforeNext, v128.mul<T>(dNext, dNext), weight, weights, largest),
  );
  writePair<T, W>(param, v128.sub<T>(p, v128.mul<T>(lr, d)), v128.sub<T>(pNext, v128.mul<T>(lr, dNext)));
}

/** sqrt(before + eps) / sqrt(s + eps) * g. */
function delta<T>(before: v128, s: v128, g: v128, eps: v128): v128 {
  return v128.mul<T>(v128.div<T>(v128.sqrt<T>(v128.add<T>(before, eps)), v128.sqrt<T>(v128.add<T>(s, eps))), g);
}

function adadelta<T>(param: usize, grad: usize, squareAvg: usize, accDelta: usize, count: usize, l2: f64, weight: f64, lr: f64, eps: f64): void {
  const couples = l2 !== 0,
    light = areLight(weight, 0);
  if (light && couples) step<T, Light, On>(param, grad, squareAvg, accDelta, count, l2, weight, lr, eps);
  else if (light) step<T, Light, Off>(param, grad, squareAvg, accDelta, count, l2, weight, lr, eps);
  else if (couples) step<T, Heavy, On>(param, grad, squareAvg, accDelta, count, l2, weight, lr, eps);
  else step<T, Heavy, Off>(param, grad, squareAvg, accDelta, count, l2, weight, lr, eps);
}

export function adadelta_f32(param: usize, grad: usize, squareAvg: usize, accDelta: usize, count: usize, l2: f64, weight: f64, lr: f64, eps: f64): void {
  adadelta<f32>(param, grad, squareAvg, accDelta, count, l2, weight, lr, eps);
}

export function adadelta_f64(param: usize, grad: usize, squareAvg: usize, accDelta: usize, count: usize, l2: f64, weight: f64, lr: f64, eps: f64): void {
  adadelta<f64>(param, grad, squareAvg, accDelta, count, l2, weight, lr, eps);
}
