/** QHAdamW: decoupled weight decay. One shard; `count` elements; maxExpAvgSq is 0 without amsgrad. Scalars in the order of src/optimizers/_adam.ts. */

import { AnyWeight, areLight, Light } from "./_lanes";
import { quasiHyperbolic } from "./_quasi";

export function qhadamw_f32(
  param: usize,
  grad: usize,
  expAvg: usize,
  expAvgSq: usize,
  maxExpAvgSq: usize,
  count: usize,
  decay: f64,
  weight1: f64,
  weight2: f64,
  stepSize: f64,
  meanScale: f64,
  gradScale: f64,
  squareScale: f64,
  gradSquareScale: f64,
  epsRoot: f64,
  eps: f64,
): void {
  if (areLight(weight1, weight2))
    quasiHyperbolic<f32, Light>(
      param,
      grad,
      expAvg,
      expAvgSq,
      maxExpAvgSq,
      count,
      0,
      decay,
      weight1,
      weight2,
      stepSize,
      meanScale,
      gradScale,
      squareScale,
      gradSquareScale,
      epsRoot,
      eps,
    );
  else
    quasiHyperbolic<f32, AnyWeight>(
      param,
      grad,
      expAvg,
      expAvgSq,
      maxExpAvgSq,
      count,
      0,
      decay,
      weight1,
      weight2,
      stepSize,
      meanScale,
      gradScale,
      squareScale,
      gradSquareScale,
      epsRoot,
      eps,
    );
}

export function qhadamw_f64(
  param: usize,
  grad: usize,
  expAvg: usize,
  expAvgSq: usize,
  maxExpAvgSq: usize,
  count: usize,
  decay: f64,
  weight1: f64,
  weight2: f64,
  stepSize: f64,
  meanScale: f64,
  gradScale: f64,
  squareScale: f64,
  gradSquareScale: f64,
  epsRoot: f64,
  eps: f64,
): void {
  if (areLight(weight1, weight2))
    quasiHyperbolic<f64, Light>(
      param,
      grad,
      expAvg,
      expAvgSq,
      maxExpAvgSq,
      count,
      0,
      decay,
      weight1,
      weight2,
      stepSize,
      meanScale,
      gradScale,
      squareScale,
      gradSquareScale,
      epsRoot,
      eps,
    );
  else
    quasiHyperbolic<f64, AnyWeight>(
      param,
      grad,
      expAvg,
      expAvgSq,
      maxExpAvgSq,
      count,
      0,
      decay,
      weight1,
      weight2,
      stepSize,
      meanScale,
      gradScale,
      squareScale,
      gradSquareScale,
      epsRoot,
      eps,
    );
}
