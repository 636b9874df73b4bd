/**
 * The step of Adam's descendants (src/optimizers/_adam.ts has the formulas and the scalars): Adam's with the terms of QHAdam, of
 * Nesterov's moment and of eps_root, for any weights.
 */
import { change } from "./_adam";
import { coupled, descend, isOn, largestFinite, lerpAny, lerpSquareAny, mask, Off, On, PAIR, pairedBytes, read, readNext, spread, writePair } from "./_lanes";

/** param -= decay*param + stepSize * (meanScale*exp_avg + gradScale*grad) / (sqrt(squareScale*v + gradSquareScale*grad^2 + epsRoot) + eps). */
export function quasiHyperbolic<T, K>(
  param: usize,
  grad: usize,
  expAvg: usize,
  expAvgSq: usize,
  maxExpAvgSq: usize,
  count: usize,
  l2: f64,
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
  if (maxExpAvgSq)
    quasiDecayed<T, K, On>(
      param,
      grad,
      expAvg,
      expAvgSq,
      maxExpAvgSq,
      count,
      l2,
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
    quasiDecayed<T, K, Off>(
      param,
      grad,
      expAvg,
      expAvgSq,
      maxExpAvgSq,
      count,
      l2,
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

function quasiDecayed<T, K, Max>(
  param: usize,
  grad: usize,
  expAvg: usize,
  expAvgSq: usize,
  maxExpAvgSq: usize,
  count: usize,
  l2: f64,
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
  if (l2 !== 0)
    quasiStep<T, K, Max, On, Off>(
      param,
      grad,
      expAvg,
      expAvgSq,
      maxExpAvgSq,
      count,
      l2,
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
  else if (decay !== 0)
    quasiStep<T, K, Max, Off, On>(
      param,
      grad,
      expAvg,
      expAvgSq,
      maxExpAvgSq,
      count,
      l2,
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
    quasiStep<T, K, Max, Off, Off>(
      param,
      grad,
      expAvg,
      expAvgSq,
      maxExpAvgSq,
      count,
      l2,
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

/** Max, Couples and Shrinks say whether maxExpAvgSq, l2 and decay are there. */
function quasiStep<T, K, Max, Couples, Shrinks>(
  param: usize,
  grad: usize,
  expAvg: usize,
  expAvgSq: usize,
  maxExpAvgSq: usize,
  count: usize,
  l2: f64,
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
  const l2s = spread<T>(l2),
    decays = spread<T>(decay),
    steps = spread<T>(stepSize),
    epss = spread<T>(eps),
    root = spread<T>(epsRoot);
  const weight1s = spread<T>(weight1);
  const weight2s = spread<T>(weight2),
    largest = largestFinite<T>(count);
  const mean = spread<T>(meanScale),
    now = spread<T>(gradScale),
    square = spread<T>(squareScale),
    nowSquare = spread<T>(gradSquareScale);
  const useGrad = mask(gradScale),
    useGradSquare = mask(gradSquareScale);
  const paired = pairedBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < paired; i += PAIR) {
    quasiElement<T, v128, K, Max, Couples, Shrinks>(
      param + i,
      grad + i,
      expAvg + i,
      expAvgSq + i,
      maxExpAvgSq + i,
      l2s,
      decays,
      weight1,
      weight1s,
      weight2,
      weight2s,
      largest,
      steps,
      mean,
      now,
      useGrad,
      square,
      nowSquare,
      useGradSquare,
      root,
      epss,
    );
  }
  for (; i < bytes; i += sizeof<T>()) {
    quasiElement<T, T, K, Max, Couples, Shrinks>(
      param + i,
      grad + i,
      expAvg + i,
      expAvgSq + i,
      maxExpAvgSq + i,
      l2s,
      decays,
      weight1,
      weight1s,
      weight2,
      weight2s,
      largest,
      steps,
      mean,
      now,
      useGrad,
      square,
      nowSquare,
      useGradSquare,
      root,
      epss,
    );
  }
}

/** A pair of vectors, or one element. */
function quasiElement<T, W, K, Max, Couples, Shrinks>(
  param: usize,
  grad: usize,
  expAvg: usize,
  expAvgSq: usize,
  maxExpAvgSq: usize,
  l2: v128,
  decay: v128,
  weight1: f64,
  weight1s: v128,
  weight2: f64,
  weight2s: v128,
  largest: v128,
  stepSize: v128,
  mean: v128,
  now: v128,
  useGrad: v128,
  square: v128,
  nowSquare: v128,
  useGradSquare: v128,
  epsRoot: v128,
  eps: v128,
): void {
  const p = read<T, W>(param),
    pNext = readNext<T, W>(param);
  const g = coupled<T>(read<T, W>(grad), p, l2, isOn<Couples>()),
    gNext = coupled<T>(readNext<T, W>(grad), pNext, l2, isOn<Couples>());
  const gg = v128.mul<T>(g, g),
    ggNext = v128.mul<T>(gNext, gNext);
  const m = lerpAny<T, K>(read<T, W>(expAvg), g, weight1, weight1s),
    mNext = lerpAny<T, K>(readNext<T, W>(expAvg), gNext, weight1, weight1s);
  let v = lerpSquareAny<T, K>(read<T, W>(expAvgSq), gg, weight2, weight2s, largest),
    vNext = lerpSquareAny<T, K>(readNext<T, W>(expAvgSq), ggNext, weight2, weight2s, largest);
  writePair<T, W>(expAvg, m, mNext);
  writePair<T, W>(expAvgSq, v, vNext);
  if (isOn<Max>()) {
    v = v128.max<T>(read<T, W>(maxExpAvgSq), v);
    vNext = v128.max<T>(readNext<T, W>(maxExpAvgSq), vNext);
    writePair<T, W>(maxExpAvgSq, v, vNext);
  }
  const update = change<T>(mixed<T>(mean, m, now, g, useGrad), v128.add<T>(mixed<T>(square, v, nowSquare, gg, useGradSquare), epsRoot), stepSize, eps),
    updateNext = change<T>(
      mixed<T>(mean, mNext, now, gNext, useGrad),
      v128.add<T>(mixed<T>(square, vNext, nowSquare, ggNext, useGradSquare), epsRoot),
      stepSize,
      eps,
    );
  writePair<T, W>(param, descend<T>(p, decay, isOn<Shrinks>(), update), descend<T>(pNext, decay, isOn<Shrinks>(), updateNext));
}

/** scale * average + sampleScale * sample, the second term dropped whole where `uses` has no bits. */
function mixed<T>(scale: v128, average: v128, sampleScale: v128, sample: v128, uses: v128): v128 {
  return v128.add<T>(v128.mul<T>(scale, average), v128.and(v128.mul<T>(sampleScale, sample), uses));
}
