/** Adam: weight decay is added to the gradient. One shard; `count` elements; maxExpAvgSq is 0 without amsgrad. Scalars in the order of src/optimizers/_adam.ts. */
import { adam } from "./_adam";

export function adam_f32(
  param: usize,
  grad: usize,
  expAvg: usize,
  expAvgSq: usize,
  maxExpAvgSq: usize,
  count: usize,
  l2: f64,
  weight1: f64,
  weight2: f64,
  stepSize: f64,
  eps: f64,
): void {
  adam<f32>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, l2, 0, weight1, weight2, stepSize, eps);
}

export function adam_f64(
  param: usize,
  grad: usize,
  expAvg: usize,
  expAvgSq: usize,
  maxExpAvgSq: usize,
  count: usize,
  l2: f64,
  weight1: f64,
  weight2: f64,
  stepSize: f64,
  eps: f64,
): void {
  adam<f64>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, l2, 0, weight1, weight2, stepSize, eps);
}
