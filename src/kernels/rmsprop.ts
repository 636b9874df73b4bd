/** RMSprop, plain or centered, with or without momentum (src/optimizers/rmsprop.ts). The address of an unused gradAvg or buffer is 0. Scalars: l2, weight, lr, momentum, eps, epsRoot. */
import {
  areLight,
  blend,
  Coupled,
  decayLanes,
  Heavy,
  hasTail,
  isOn,
  isSuspect,
  Light,
  lanes,
  largestFinite,
  lerpSquareAny,
  NoDecay,
  narrow,
  Off,
  On,
  read,
  readNext,
  scalar,
  strideOf,
  walkedBytes,
  wideHigh,
  wideLow,
  withCoupledDecay,
  writePair,
  writeParam,
} from "./_lanes";

/** u = g / (sqrt(v + epsRoot) + eps), where v is square_avg, or square_avg - grad_avg^2 with Centered; param -= lr * u. With Buffers, u is buffer = momentum*buffer + u. */
function step<T, W, K, D, Centered, Buffers>(param: usize, grad: usize, squareAvg: usize, gradAvg: usize, buffer: usize, count: usize, scalars: usize): bool {
  const l2 = decayLanes<T, D>(scalars),
    weight = scalar(scalars, 1),
    weights = lanes<T>(scalars, 1),
    lr = lanes<T>(scalars, 2),
    momentum = lanes<T>(scalars, 3),
    eps = lanes<T>(scalars, 4),
    epsRoot = lanes<T>(scalars, 5),
    largest = largestFinite<T>(count);
  const stride = strideOf<W>(),
    end = param + walkedBytes<T, W>(count);
  let total = v128.splat<T>(0);
  for (; param !== end; param += stride, grad += stride, squareAvg += stride, gradAvg += stride, buffer += stride) {
    const p = read<T, W>(param),
      pNext = readNext<T, W>(param);
    const g = withCoupledDecay<T, D>(read<T, W>(grad), p, l2),
      gNext = withCoupledDecay<T, D>(readNext<T, W>(grad), pNext, l2);
    const s = read<T, W>(squareAvg),
      sNext = readNext<T, W>(squareAvg);
    let v: v128, vNext: v128;
    if (isOn<Centered>()) {
      const alpha64 = f64x2.splat(1 - weight),
        weight64 = f64x2.splat(weight);
      const h = read<T, W>(gradAvg),
        hNext = readNext<T, W>(gradAvg);
      writePair<T, W>(squareAvg, squareMean<T>(s, g, alpha64, weight64), squareMean<T>(sNext, gNext, alpha64, weight64));
      writePair<T, W>(gradAvg, blend<T>(alpha64, h, weight64, g), blend<T>(alpha64, hNext, weight64, gNext));
      v = varianceOf<T>(s, h, g, alpha64, weight64);
      vNext = varianceOf<T>(sNext, hNext, gNext, alpha64, weight64);
    } else {
      v = lerpSquareAny<T, K>(s, v128.mul<T>(g, g), weight, weights, largest);
      vNext = lerpSquareAny<T, K>(sNext, v128.mul<T>(gNext, gNext), weight, weights, largest);
      writePair<T, W>(squareAvg, v, vNext);
    }
    let u = v128.div<T>(g, v128.add<T>(v128.sqrt<T>(v128.add<T>(v, epsRoot)), eps)),
      uNext = v128.div<T>(gNext, v128.add<T>(v128.sqrt<T>(v128.add<T>(vNext, epsRoot)), eps));
    if (isOn<Buffers>()) {
      u = v128.add<T>(v128.mul<T>(momentum, read<T, W>(buffer)), u);
      uNext = v128.add<T>(v128.mul<T>(momentum, readNext<T, W>(buffer)), uNext);
      writePair<T, W>(buffer, u, uNext);
    }
    total = v128.add<T>(total, writeParam<T, W>(param, v128.sub<T>(p, v128.mul<T>(lr, u)), v128.sub<T>(pNext, v128.mul<T>(lr, uNext))));
  }
  return (hasTail<T, W>(count) && step<T, T, K, D, Centered, Buffers>(param, grad, squareAvg, gradAvg, buffer, count, scalars)) || isSuspect<T>(total);
}

/** alpha*average + weight*sample in float64. */
function meanHalf(average: v128, sample: v128, alpha64: v128, weight64: v128): v128 {
  return f64x2.add(f64x2.mul(alpha64, average), f64x2.mul(weight64, sample));
}

/** alpha*s + weight*g^2 in float64, rounded once to T. */
function squareMean<T>(s: v128, g: v128, alpha64: v128, weight64: v128): v128 {
  const low = wideLow<T>(g);
  const left = meanHalf(wideLow<T>(s), f64x2.mul(low, low), alpha64, weight64);
  if (sizeof<T>() === 8) return left;
  const high = wideHigh<T>(g);
  return narrow<T>(left, meanHalf(wideHigh<T>(s), f64x2.mul(high, high), alpha64, weight64));
}

/**
 * The variance: the new mean of squares minus the square of the new mean. Both are float64 values before rounding, because they
 * are close to each other. A negative difference, from rounding, becomes 0; NaN stays NaN.
 */
function varianceOf<T>(s: v128, h: v128, g: v128, alpha64: v128, weight64: v128): v128 {
  const left = varianceHalf(wideLow<T>(s), wideLow<T>(h), wideLow<T>(g), alpha64, weight64);
  if (sizeof<T>() === 8) return left;
  return narrow<T>(left, varianceHalf(wideHigh<T>(s), wideHigh<T>(h), wideHigh<T>(g), alpha64, weight64));
}

function varianceHalf(s: v128, h: v128, g: v128, alpha64: v128, weight64: v128): v128 {
  const mean = meanHalf(h, g, alpha64, weight64);
  return f64x2.pmax(f64x2.sub(meanHalf(s, f64x2.mul(g, g), alpha64, weight64), f64x2.mul(mean, mean)), f64x2.splat(0));
}

function anyBuffer<T, K, D, Centered>(param: usize, grad: usize, squareAvg: usize, gradAvg: usize, buffer: usize, count: usize, scalars: usize): bool {
  if (buffer) return step<T, v128, K, D, Centered, On>(param, grad, squareAvg, gradAvg, buffer, count, scalars);
  return step<T, v128, K, D, Centered, Off>(param, grad, squareAvg, gradAvg, buffer, count, scalars);
}

function anyMean<T, D>(param: usize, grad: usize, squareAvg: usize, gradAvg: usize, buffer: usize, count: usize, scalars: usize): bool {
  if (gradAvg) return anyBuffer<T, Light, D, On>(param, grad, squareAvg, gradAvg, buffer, count, scalars);
  if (areLight(scalar(scalars, 1), 0)) return anyBuffer<T, Light, D, Off>(param, grad, squareAvg, gradAvg, buffer, count, scalars);
  return anyBuffer<T, Heavy, D, Off>(param, grad, squareAvg, gradAvg, buffer, count, scalars);
}

function rmsprop<T>(param: usize, grad: usize, squareAvg: usize, gradAvg: usize, buffer: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 0) !== 0) return anyMean<T, Coupled>(param, grad, squareAvg, gradAvg, buffer, count, scalars);
  return anyMean<T, NoDecay>(param, grad, squareAvg, gradAvg, buffer, count, scalars);
}

export function rmsprop_f32(param: usize, grad: usize, squareAvg: usize, gradAvg: usize, buffer: usize, count: usize, scalars: usize): bool {
  return rmsprop<f32>(param, grad, squareAvg, gradAvg, buffer, count, scalars);
}

export function rmsprop_f64(param: usize, grad: usize, squareAvg: usize, gradAvg: usize, buffer: usize, count: usize, scalars: usize): bool {
  return rmsprop<f64>(param, grad, squareAvg, gradAvg, buffer, count, scalars);
}
