/** RMSprop, plain or centered, with or without momentum. One shard; `count` elements; gradAvg and buffer are 0 where not in use. Scalars in the order of src/optimizers/rmsprop.ts. */
import {
  AnyWeight,
  areLight,
  coupled,
  Light,
  largestFinite,
  lerpAny,
  lerpSquareAny,
  narrow,
  read,
  spread,
  VECTOR,
  wholeBytes,
  wideHigh,
  wideLow,
  write,
} from "./_lanes";

/** u = g / (sqrt(square_avg - grad_avg^2) + eps); buffer = momentum*buffer + u; param -= lr * buffer. */
function step<T, K>(
  param: usize,
  grad: usize,
  squareAvg: usize,
  gradAvg: usize,
  buffer: usize,
  count: usize,
  l2: f64,
  weight: f64,
  lr: f64,
  momentum: f64,
  eps: f64,
): void {
  const l2s = spread<T>(l2),
    weights = spread<T>(weight),
    largest = largestFinite<T>(count),
    rate = spread<T>(lr),
    keeps = spread<T>(momentum),
    epss = spread<T>(eps);
  const couples = l2 !== 0;
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < whole; i += VECTOR)
    element<T, v128, K>(
      param + i,
      grad + i,
      squareAvg + i,
      gradAvg ? gradAvg + i : 0,
      buffer ? buffer + i : 0,
      couples,
      l2s,
      weight,
      weights,
      largest,
      rate,
      keeps,
      epss,
    );
  for (; i < bytes; i += sizeof<T>())
    element<T, T, K>(
      param + i,
      grad + i,
      squareAvg + i,
      gradAvg ? gradAvg + i : 0,
      buffer ? buffer + i : 0,
      couples,
      l2s,
      weight,
      weights,
      largest,
      rate,
      keeps,
      epss,
    );
}

function element<T, W, K>(
  param: usize,
  grad: usize,
  squareAvg: usize,
  gradAvg: usize,
  buffer: usize,
  couples: bool,
  l2: v128,
  weight: f64,
  weights: v128,
  largest: v128,
  lr: v128,
  momentum: v128,
  eps: v128,
): void {
  const p = read<T, W>(param);
  const g = coupled<T>(read<T, W>(grad), p, l2, couples);
  const s = lerpSquareAny<T, K>(read<T, W>(squareAvg), v128.mul<T>(g, g), weight, weights, largest);
  write<T, W>(squareAvg, s);
  let variance = s;
  if (gradAvg) {
    const h = lerpAny<T, K>(read<T, W>(gradAvg), g, weight, weights);
    write<T, W>(gradAvg, h);
    variance = minusSquare<T>(s, h);
  }
  let update = v128.div<T>(g, v128.add<T>(v128.sqrt<T>(variance), eps));
  if (buffer) {
    update = v128.add<T>(v128.mul<T>(momentum, read<T, W>(buffer)), update);
    write<T, W>(buffer, update);
  }
  write<T, W>(param, v128.sub<T>(p, v128.mul<T>(lr, update)));
}

/** s - h*h with one rounding: the two are close to each other. */
function minusSquare<T>(s: v128, h: v128): v128 {
  const low = wideLow<T>(h);
  const left = f64x2.sub(wideLow<T>(s), f64x2.mul(low, low));
  if (sizeof<T>() === 8) return left;
  const high = wideHigh<T>(h);
  return narrow<T>(left, f64x2.sub(wideHigh<T>(s), f64x2.mul(high, high)));
}

export function rmsprop_f32(
  param: usize,
  grad: usize,
  squareAvg: usize,
  gradAvg: usize,
  buffer: usize,
  count: usize,
  l2: f64,
  weight: f64,
  lr: f64,
  momentum: f64,
  eps: f64,
): void {
  if (areLight(weight, 0)) step<f32, Light>(param, grad, squareAvg, gradAvg, buffer, count, l2, weight, lr, momentum, eps);
  else step<f32, AnyWeight>(param, grad, squareAvg, gradAvg, buffer, count, l2, weight, lr, momentum, eps);
}

export function rmsprop_f64(
  param: usize,
  grad: usize,
  squareAvg: usize,
  gradAvg: usize,
  buffer: usize,
  count: usize,
  l2: f64,
  weight: f64,
  lr: f64,
  momentum: f64,
  eps: f64,
): void {
  if (areLight(weight, 0)) step<f64, Light>(param, grad, squareAvg, gradAvg, buffer, count, l2, weight, lr, momentum, eps);
  else step<f64, AnyWeight>(param, grad, squareAvg, gradAvg, buffer, count, l2, weight, lr, momentum, eps);
}
