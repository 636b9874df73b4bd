/**
 * The step that Adam and its descendants share (src/optimizers/_adam.ts has the formulas and the scalars).
 * `adam` has one division and one root an element and no more; `quasiHyperbolic` adds the terms of QHAdam, of Nesterov's moment and of eps_root, and takes any weights.
 */
import { coupled, descend, lerp, lerpAny, lerpSquare, lerpSquareAny, mask, read, spread, VECTOR, wholeBytes, write } from "./_lanes";

/** For weights below 0.5: param -= decay*param + stepSize * exp_avg / (sqrt(v) + eps), v = exp_avg_sq or, where maxExpAvgSq is not 0, its running maximum. */
export function adam<T>(
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
  eps: f64,
): void {
  const l2s = spread<T>(l2),
    decays = spread<T>(decay),
    steps = spread<T>(stepSize),
    epss = spread<T>(eps);
  const weight1s = spread<T>(weight1),
    weight2s = spread<T>(weight2);
  const couples = l2 !== 0,
    shrinks = decay !== 0;
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < whole; i += VECTOR) {
    element<T, v128>(
      param + i,
      grad + i,
      expAvg + i,
      expAvgSq + i,
      maxExpAvgSq ? maxExpAvgSq + i : 0,
      couples,
      shrinks,
      l2s,
      decays,
      weight1s,
      weight2s,
      steps,
      epss,
    );
  }
  for (; i < bytes; i += sizeof<T>()) {
    element<T, T>(
      param + i,
      grad + i,
      expAvg + i,
      expAvgSq + i,
      maxExpAvgSq ? maxExpAvgSq + i : 0,
      couples,
      shrinks,
      l2s,
      decays,
      weight1s,
      weight2s,
      steps,
      epss,
    );
  }
}

function element<T, W>(
  param: usize,
  grad: usize,
  expAvg: usize,
  expAvgSq: usize,
  maxExpAvgSq: usize,
  couples: bool,
  shrinks: bool,
  l2: v128,
  decay: v128,
  weight1: v128,
  weight2: v128,
  stepSize: v128,
  eps: v128,
): void {
  const p = read<T, W>(param);
  const g = coupled<T>(read<T, W>(grad), p, l2, couples);
  const m = lerp<T>(read<T, W>(expAvg), g, weight1);
  let v = lerpSquare<T>(read<T, W>(expAvgSq), v128.mul<T>(g, g), weight2);
  write<T, W>(expAvg, m);
  write<T, W>(expAvgSq, v);
  if (maxExpAvgSq) {
    v = v128.max<T>(read<T, W>(maxExpAvgSq), v);
    write<T, W>(maxExpAvgSq, v);
  }
  const denominator = v128.add<T>(v128.sqrt<T>(v), eps);
  const update = v128.mul<T>(stepSize, v128.div<T>(m, denominator));
  write<T, W>(param, descend<T>(p, decay, shrinks, update));
}

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
  const l2s = spread<T>(l2),
    decays = spread<T>(decay),
    steps = spread<T>(stepSize),
    epss = spread<T>(eps),
    root = spread<T>(epsRoot);
  const weight1s = spread<T>(weight1);
  const weight2s = spread<T>(weight2);
  const mean = spread<T>(meanScale),
    now = spread<T>(gradScale),
    square = spread<T>(squareScale),
    nowSquare = spread<T>(gradSquareScale);
  const useGrad = mask(gradScale),
    useGradSquare = mask(gradSquareScale);
  const couples = l2 !== 0,
    shrinks = decay !== 0;
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < whole; i += VECTOR) {
    quasiElement<T, v128, K>(
      param + i,
      grad + i,
      expAvg + i,
      expAvgSq + i,
      maxExpAvgSq ? maxExpAvgSq + i : 0,
      couples,
      shrinks,
      l2s,
      decays,
      weight1,
      weight1s,
      weight2,
      weight2s,
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
    quasiElement<T, T, K>(
      param + i,
      grad + i,
      expAvg + i,
      expAvgSq + i,
      maxExpAvgSq ? maxExpAvgSq + i : 0,
      couples,
      shrinks,
      l2s,
      decays,
      weight1,
      weight1s,
      weight2,
      weight2s,
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

function quasiElement<T, W, K>(
  param: usize,
  grad: usize,
  expAvg: usize,
  expAvgSq: usize,
  maxExpAvgSq: usize,
  couples: bool,
  shrinks: bool,
  l2: v128,
  decay: v128,
  weight1: f64,
  weight1s: v128,
  weight2: f64,
  weight2s: v128,
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
  const p = read<T, W>(param);
  const g = coupled<T>(read<T, W>(grad), p, l2, couples);
  const gg = v128.mul<T>(g, g);
  const m = lerpAny<T, K>(read<T, W>(expAvg), g, weight1, weight1s);
  let v = lerpSquareAny<T, K>(read<T, W>(expAvgSq), gg, weight2, weight2s);
  write<T, W>(expAvg, m);
  write<T, W>(expAvgSq, v);
  if (maxExpAvgSq) {
    v = v128.max<T>(read<T, W>(maxExpAvgSq), v);
    write<T, W>(maxExpAvgSq, v);
  }
  const numerator = v128.add<T>(v128.mul<T>(mean, m), v128.and(v128.mul<T>(now, g), useGrad));
  const squares = v128.add<T>(v128.mul<T>(square, v), v128.and(v128.mul<T>(nowSquare, gg), useGradSquare));
  const denominator = v128.add<T>(v128.sqrt<T>(v128.add<T>(squares, epsRoot)), eps);
  const update = v128.mul<T>(stepSize, v128.div<T>(numerator, denominator));
  write<T, W>(param, descend<T>(p, decay, shrinks, update));
}
