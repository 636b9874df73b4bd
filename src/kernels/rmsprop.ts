/** RMSprop, plain or centered, with or without momentum. One shard; `count` elements; gradAvg and buffer are 0 where not in use. Scalars in the order of src/optimizers/rmsprop.ts. */
import {
  areLight,
  blend,
  coupled,
  Heavy,
  isOn,
  Light,
  largestFinite,
  lerpSquareAny,
  narrow,
  Off,
  On,
  PAIR,
  pairedBytes,
  read,
  readNext,
  spread,
  wideHigh,
  wideLow,
  writePair,
} from "./_lanes";

/**
 * u = g / (sqrt(square_avg - grad_avg^2) + eps); buffer = momentum*buffer + u; param -= lr * buffer. Plain says that there is no
 * grad_avg, and that Buffers and Couples say whether buffer and l2 are there; else all of it is asked in the loop.
 */
function step<T, K, Plain, Buffers, Couples>(
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
  const paired = pairedBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < paired; i += PAIR)
    element<T, v128, K, Plain, Buffers, Couples>(
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
    element<T, T, K, Plain, Buffers, Couples>(
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

/** A pair of vectors, or one element. */
function element<T, W, K, Plain, Buffers, Couples>(
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
  const adds = isOn<Plain>() ? isOn<Couples>() : couples,
    keeps = isOn<Plain>() ? isOn<Buffers>() : buffer !== 0;
  const p = read<T, W>(param),
    pNext = readNext<T, W>(param);
  const g = coupled<T>(read<T, W>(grad), p, l2, adds),
    gNext = coupled<T>(readNext<T, W>(grad), pNext, l2, adds);
  let variance: v128, varianceNext: v128;
  if (!isOn<Plain>() && gradAvg) {
    const keep = f64x2.splat(1 - weight),
      fresh = f64x2.splat(weight);
    const s = read<T, W>(squareAvg),
      sNext = readNext<T, W>(squareAvg);
    const h = read<T, W>(gradAvg),
      hNext = readNext<T, W>(gradAvg);
    writePair<T, W>(squareAvg, squareMean<T>(s, g, keep, fresh), squareMean<T>(sNext, gNext, keep, fresh));
    writePair<T, W>(gradAvg, blend<T>(keep, h, fresh, g), blend<T>(keep, hNext, fresh, gNext));
    variance = varianceOf<T>(s, h, g, keep, fresh);
    varianceNext = varianceOf<T>(sNext, hNext, gNext, keep, fresh);
  } else {
    variance = lerpSquareAny<T, K>(read<T, W>(squareAvg), v128.mul<T>(g, g), weight, weights, largest);
    varianceNext = lerpSquareAny<T, K>(readNext<T, W>(squareAvg), v128.mul<T>(gNext, gNext), weight, weights, largest);
    writePair<T, W>(squareAvg, variance, varianceNext);
  }
  let update = v128.div<T>(g, v128.add<T>(v128.sqrt<T>(variance), eps)),
    updateNext = v128.div<T>(gNext, v128.add<T>(v128.sqrt<T>(varianceNext), eps));
  if (keeps) {
    update = v128.add<T>(v128.mul<T>(momentum, read<T, W>(buffer)), update);
    updateNext = v128.add<T>(v128.mul<T>(momentum, readNext<T, W>(buffer)), updateNext);
    writePair<T, W>(buffer, update, updateNext);
  }
  writePair<T, W>(param, v128.sub<T>(p, v128.mul<T>(lr, update)), v128.sub<T>(pNext, v128.mul<T>(lr, updateNext)));
}

/** keep*average + fresh*sample in float64. */
function meanHalf(average: v128, sample: v128, keep: v128, fresh: v128): v128 {
  return f64x2.add(f64x2.mul(keep, average), f64x2.mul(fresh, sample));
}

/** keep*s + fresh*g^2 in float64, rounded once. */
function squareMean<T>(s: v128, g: v128, keep: v128, fresh: v128): v128 {
  const low = wideLow<T>(g);
  const left = meanHalf(wideLow<T>(s), f64x2.mul(low, low), keep, fresh);
  if (sizeof<T>() === 8) return left;
  const high = wideHigh<T>(g);
  return narrow<T>(left, meanHalf(wideHigh<T>(s), f64x2.mul(high, high), keep, fresh));
}

/**
 * The new mean of squares less the square of the new mean, of averages in float64 that are not rounded yet, because the two are
 * close to each other. Rounding can make it negative; it is 0 then. NaN stays.
 */
function varianceOf<T>(s: v128, h: v128, g: v128, keep: v128, fresh: v128): v128 {
  const left = varianceHalf(wideLow<T>(s), wideLow<T>(h), wideLow<T>(g), keep, fresh);
  if (sizeof<T>() === 8) return left;
  return narrow<T>(left, varianceHalf(wideHigh<T>(s), wideHigh<T>(h), wideHigh<T>(g), keep, fresh));
}

function varianceHalf(s: v128, h: v128, g: v128, keep: v128, fresh: v128): v128 {
  const mean = meanHalf(h, g, keep, fresh);
  return f64x2.pmax(f64x2.sub(meanHalf(s, f64x2.mul(g, g), keep, fresh), f64x2.mul(mean, mean)), f64x2.splat(0));
}

function rmsprop<T>(
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
  const buffers = buffer !== 0,
    couples = l2 !== 0;
  if (!areLight(weight, 0)) step<T, Heavy, Off, Off, Off>(param, grad, squareAvg, gradAvg, buffer, count, l2, weight, lr, momentum, eps);
  else if (gradAvg) step<T, Light, Off, Off, Off>(param, grad, squareAvg, gradAvg, buffer, count, l2, weight, lr, momentum, eps);
  else if (buffers && couples) step<T, Light, On, On, On>(param, grad, squareAvg, gradAvg, buffer, count, l2, weight, lr, momentum, eps);
  else if (buffers) step<T, Light, On, On, Off>(param, grad, squareAvg, gradAvg, buffer, count, l2, weight, lr, momentum, eps);
  else if (couples) step<T, Light, On, Off, On>(param, grad, squareAvg, gradAvg, buffer, count, l2, weight, lr, momentum, eps);
  else step<T, Light, On, Off, Off>(param, grad, squareAvg, gradAvg, buffer, count, l2, weight, lr, momentum, eps);
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
  rmsprop<f32>(param, grad, squareAvg, gradAvg, buffer, count, l2, weight, lr, momentum, eps);
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
  rmsprop<f64>(param, grad, squareAvg, gradAvg, buffer, count, l2, weight, lr, momentum, eps);
}
