/** RAdam. One shard; `count` elements. Scalars in the order of src/optimizers/radam.ts. */
import { AnyWeight, areLight, coupled, descend, Light, largestFinite, lerpAny, lerpSquareAny, read, spread, VECTOR, wholeBytes, write } from "./_lanes";

/**
 * exp_avg and exp_avg_sq as in Adam; param -= decay*param + stepSize * exp_avg / (rectified ? sqrt(exp_avg_sq) + eps : 1). Without
 * rectification the squares are left out whole, so that one that has overflowed does no harm.
 */
function step<T, K>(
  param: usize,
  grad: usize,
  expAvg: usize,
  expAvgSq: usize,
  count: usize,
  l2: f64,
  decay: f64,
  weight1: f64,
  weight2: f64,
  stepSize: f64,
  rectified: f64,
  eps: f64,
): void {
  const l2s = spread<T>(l2),
    decays = spread<T>(decay),
    weight1s = spread<T>(weight1),
    weight2s = spread<T>(weight2),
    largest = largestFinite<T>(count),
    steps = spread<T>(stepSize),
    epss = spread<T>(eps);
  const couples = l2 !== 0,
    shrinks = decay !== 0,
    divides = rectified !== 0;
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < whole; i += VECTOR)
    element<T, v128, K>(
      param + i,
      grad + i,
      expAvg + i,
      expAvgSq + i,
      couples,
      shrinks,
      divides,
      l2s,
      decays,
      weight1,
      weight1s,
      weight2,
      weight2s,
      largest,
      steps,
      epss,
    );
  for (; i < bytes; i += sizeof<T>())
    element<T, T, K>(
      param + i,
      grad + i,
      expAvg + i,
      expAvgSq + i,
      couples,
      shrinks,
      divides,
      l2s,
      decays,
      weight1,
      weight1s,
      weight2,
      weight2s,
      largest,
      steps,
      epss,
    );
}

function element<T, W, K>(
  param: usize,
  grad: usize,
  expAvg: usize,
  expAvgSq: usize,
  couples: bool,
  shrinks: bool,
  divides: bool,
  l2: v128,
  decay: v128,
  weight1: f64,
  weight1s: v128,
  weight2: f64,
  weight2s: v128,
  largest: v128,
  stepSize: v128,
  eps: v128,
): void {
  const p = read<T, W>(param);
  const g = coupled<T>(read<T, W>(grad), p, l2, couples);
  const m = lerpAny<T, K>(read<T, W>(expAvg), g, weight1, weight1s);
  const v = lerpSquareAny<T, K>(read<T, W>(expAvgSq), v128.mul<T>(g, g), weight2, weight2s, largest);
  write<T, W>(expAvg, m);
  write<T, W>(expAvgSq, v);
  const direction = divides ? v128.div<T>(m, v128.add<T>(v128.sqrt<T>(v), eps)) : m;
  write<T, W>(param, descend<T>(p, decay, shrinks, v128.mul<T>(stepSize, direction)));
}

export function radam_f32(
  param: usize,
  grad: usize,
  expAvg: usize,
  expAvgSq: usize,
  count: usize,
  l2: f64,
  decay: f64,
  weight1: f64,
  weight2: f64,
  stepSize: f64,
  rectified: f64,
  eps: f64,
): void {
  if (areLight(weight1, weight2)) step<f32, Light>(param, grad, expAvg, expAvgSq, count, l2, decay, weight1, weight2, stepSize, rectified, eps);
  else step<f32, AnyWeight>(param, grad, expAvg, expAvgSq, count, l2, decay, weight1, weight2, stepSize, rectified, eps);
}

export function radam_f64(
  param: usize,
  grad: usize,
  expAvg: usize,
  expAvgSq: usize,
  count: usize,
  l2: f64,
  decay: f64,
  weight1: f64,
  weight2: f64,
  stepSize: f64,
  rectified: f64,
  eps: f64,
): void {
  if (areLight(weight1, weight2)) step<f64, Light>(param, grad, expAvg, expAvgSq, count, l2, decay, weight1, weight2, stepSize, rectified, eps);
  else step<f64, AnyWeight>(param, grad, expAvg, expAvgSq, count, l2, decay, weight1, weight2, stepSize, rectified, eps);
}
