/** Adamax. One shard; `count` elements. Scalars in the order of src/optimizers/adamax.ts. */
import { AnyWeight, areLight, coupled, isOn, Light, lerpAny, Off, On, PAIR, pairedBytes, read, readNext, spread, writePair } from "./_lanes";

/** exp_avg as in Adam; exp_inf = max(beta2*exp_inf, |g| + eps); param -= stepSize * exp_avg / exp_inf. Couples says whether l2 is there. */
function step<T, K, Couples>(
  param: usize,
  grad: usize,
  expAvg: usize,
  expInf: usize,
  count: usize,
  l2: f64,
  weight1: f64,
  beta2: f64,
  stepSize: f64,
  eps: f64,
): void {
  const l2s = spread<T>(l2),
    weight1s = spread<T>(weight1),
    beta2s = spread<T>(beta2),
    steps = spread<T>(stepSize),
    epss = spread<T>(eps);
  const paired = pairedBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < paired; i += PAIR) element<T, v128, K, Couples>(param + i, grad + i, expAvg + i, expInf + i, l2s, weight1, weight1s, beta2s, steps, epss);
  for (; i < bytes; i += sizeof<T>()) element<T, T, K, Couples>(param + i, grad + i, expAvg + i, expInf + i, l2s, weight1, weight1s, beta2s, steps, epss);
}

/** A pair of vectors, or one element. */
function element<T, W, K, Couples>(
  param: usize,
  grad: usize,
  expAvg: usize,
  expInf: usize,
  l2: v128,
  weight1: f64,
  weight1s: v128,
  beta2: v128,
  stepSize: v128,
  eps: v128,
): void {
  const p = read<T, W>(param),
    pNext = readNext<T, W>(param);
  const g = coupled<T>(read<T, W>(grad), p, l2, isOn<Couples>()),
    gNext = coupled<T>(readNext<T, W>(grad), pNext, l2, isOn<Couples>());
  const m = lerpAny<T, K>(read<T, W>(expAvg), g, weight1, weight1s),
    mNext = lerpAny<T, K>(readNext<T, W>(expAvg), gNext, weight1, weight1s);
  const u = larger<T>(read<T, W>(expInf), g, beta2, eps),
    uNext = larger<T>(readNext<T, W>(expInf), gNext, beta2, eps);
  writePair<T, W>(expAvg, m, mNext);
  writePair<T, W>(expInf, u, uNext);
  writePair<T, W>(param, v128.sub<T>(p, v128.mul<T>(stepSize, v128.div<T>(m, u))), v128.sub<T>(pNext, v128.mul<T>(stepSize, v128.div<T>(mNext, uNext))));
}

/** max(beta2*exp_inf, |g| + eps). */
function larger<T>(expInf: v128, g: v128, beta2: v128, eps: v128): v128 {
  return v128.max<T>(v128.mul<T>(beta2, expInf), v128.add<T>(v128.abs<T>(g), eps));
}

function adamax<T>(param: usize, grad: usize, expAvg: usize, expInf: usize, count: usize, l2: f64, weight1: f64, beta2: f64, stepSize: f64, eps: f64): void {
  const couples = l2 !== 0,
    light = areLight(weight1, 0);
  if (light && couples) step<T, Light, On>(param, grad, expAvg, expInf, count, l2, weight1, beta2, stepSize, eps);
  else if (light) step<T, Light, Off>(param, grad, expAvg, expInf, count, l2, weight1, beta2, stepSize, eps);
  else if (couples) step<T, AnyWeight, On>(param, grad, expAvg, expInf, count, l2, weight1, beta2, stepSize, eps);
  else step<T, AnyWeight, Off>(param, grad, expAvg, expInf, count, l2, weight1, beta2, stepSize, eps);
}

export function adamax_f32(
  param: usize,
  grad: usize,
  expAvg: usize,
  expInf: usize,
  count: usize,
  l2: f64,
  weight1: f64,
  beta2: f64,
  stepSize: f64,
  eps: f64,
): void {
  adamax<f32>(param, grad, expAvg, expInf, count, l2, weight1, beta2, stepSize, eps);
}

export function adamax_f64(
  param: usize,
  grad: usize,
  expAvg: usize,
  expInf: usize,
  count: usize,
  l2: f64,
  weight1: f64,
  beta2: f64,
  stepSize: f64,
  eps: f64,
): void {
  adamax<f64>(param, grad, expAvg, expInf, count, l2, weight1, beta2, stepSize, eps);
}
