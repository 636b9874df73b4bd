/** Adamax. One shard; `count` elements. Scalars in the order of src/optimizers/adamax.ts. */
import { AnyWeight, areLight, coupled, Light, lerpAny, read, spread, VECTOR, wholeBytes, write } from "./_lanes";

/** exp_avg as in Adam; exp_inf = max(beta2*exp_inf, |g| + eps); param -= stepSize * exp_avg / exp_inf. */
function step<T, K>(param: usize, grad: usize, expAvg: usize, expInf: usize, count: usize, l2: f64, weight1: f64, beta2: f64, stepSize: f64, eps: f64): void {
  const l2s = spread<T>(l2),
    weight1s = spread<T>(weight1),
    beta2s = spread<T>(beta2),
    steps = spread<T>(stepSize),
    epss = spread<T>(eps);
  const couples = l2 !== 0;
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < whole; i += VECTOR) element<T, v128, K>(param + i, grad + i, expAvg + i, expInf + i, couples, l2s, weight1, weight1s, beta2s, steps, epss);
  for (; i < bytes; i += sizeof<T>()) element<T, T, K>(param + i, grad + i, expAvg + i, expInf + i, couples, l2s, weight1, weight1s, beta2s, steps, epss);
}

function element<T, W, K>(
  param: usize,
  grad: usize,
  expAvg: usize,
  expInf: usize,
  couples: bool,
  l2: v128,
  weight1: f64,
  weight1s: v128,
  beta2: v128,
  stepSize: v128,
  eps: v128,
): void {
  const p = read<T, W>(param);
  const g = coupled<T>(read<T, W>(grad), p, l2, couples);
  const m = lerpAny<T, K>(read<T, W>(expAvg), g, weight1, weight1s);
  const u = v128.max<T>(v128.mul<T>(beta2, read<T, W>(expInf)), v128.add<T>(v128.abs<T>(g), eps));
  write<T, W>(expAvg, m);
  write<T, W>(expInf, u);
  write<T, W>(param, v128.sub<T>(p, v128.mul<T>(stepSize, v128.div<T>(m, u))));
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
  if (areLight(weight1, 0)) step<f32, Light>(param, grad, expAvg, expInf, count, l2, weight1, beta2, stepSize, eps);
  else step<f32, AnyWeight>(param, grad, expAvg, expInf, count, l2, weight1, beta2, stepSize, eps);
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
  if (areLight(weight1, 0)) step<f64, Light>(param, grad, expAvg, expInf, count, l2, weight1, beta2, stepSize, eps);
  else step<f64, AnyWeight>(param, grad, expAvg, expInf, count, l2, weight1, beta2, stepSize, eps);
}
