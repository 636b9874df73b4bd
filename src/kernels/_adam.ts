/**
 * The step that Adam and its descendants share (src/optimizers/_adam.ts has the formulas and the scalars).
 * `adam` has one division and one root an element and no more; `quasiHyperbolic` adds the terms of QHAdam, of Nesterov's moment and of eps_root, and takes any weights.
 */
import {
  coupled,
  descend,
  isOn,
  largestFinite,
  lerp,
  lerpAny,
  lerpSquare,
  lerpSquareAny,
  mask,
  Off,
  On,
  read,
  spread,
  VECTOR,
  wholeBytes,
  write,
} from "./_lanes";

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
  if (maxExpAvgSq) decayed<T, On>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, l2, decay, weight1, weight2, stepSize, eps);
  else decayed<T, Off>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, l2, decay, weight1, weight2, stepSize, eps);
}

function decayed<T, Max>(
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
  if (l2 !== 0) step<T, Max, On, Off>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, l2, decay, weight1, weight2, stepSize, eps);
  else if (decay !== 0) step<T, Max, Off, On>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, l2, decay, weight1, weight2, stepSize, eps);
  else step<T, Max, Off, Off>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, l2, decay, weight1, weight2, stepSize, eps);
}

/** Max, Couples and Shrinks say whether maxExpAvgSq, l2 and decay are there. */
function step<T, Max, Couples, Shrinks>(
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
    weight2s = spread<T>(weight2),
    largest = largestFinite<T>(count);
  const whole = wholeBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < whole; i += VECTOR) {
    element<T, v128, Max, Couples, Shrinks>(
      param + i,
      grad + i,
      expAvg + i,
      expAvgSq + i,
      maxExpAvgSq + i,
      l2s,
      decays,
      weight1s,
      weight2s,
      largest,
      steps,
      epss,
    );
  }
  for (; i < bytes; i += sizeof<T>()) {
    element<T, T, Max, Couples, Shrinks>(param + i, grad + i, expAvg + i, expAvgSq + i, maxExpAvgSq + i, l2s, decays, weight1s, weight2s, largest, steps, epss);
  }
}

function element<T, W, Max, Couples, Shrinks>(
  param: usize,
  grad: usize,
  expAvg: usize,
  expAvgSq: usize,
  maxExpAvgSq: usize,
  l2: v128,
  decay: v128,
  weight1: v128,
  weight2: v128,
  largest: v128,
  stepSize: v128,
  eps: v128,
): void {
  const p = read<T, W>(param);
  const g = coupled<T>(read<T, W>(grad), p, l2, isOn<Couples>());
  const m = lerp<T>(read<T, W>(expAvg), g, weight1);
  let v = lerpSquare<T>(read<T, W>(expAvgSq), v128.mul<T>(g, g), weight2, largest);
  write<T, W>(expAvg, m);
  write<T, W>(expAvgSq, v);
  if (isOn<Max>()) {
    v = v128.max<T>(read<T, W>(maxExpAvgSq), v);
    write<T, W>(maxExpAvgSq, v);
  }
  const denominator = v128.add<T>(v128.sqrt<T>(v), eps);
  const update = v128.mul<T>(stepSize, v128.div<T>(m, denominator));
  write<T, W>(param, descend<T>(p, decay, isOn<Shrinks>(), update));
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
  const weight2s = spread<T>(weight2),
    largest = largestFinite<T>(count);
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
  const p = read<T, W>(param);
  const g = coupled<T>(read<T, W>(grad), p, l2, couples);
  const gg = v128.mul<T>(g, g);
  const m = lerpAny<T, K>(read<T, W>(expAvg), g, weight1, weight1s);
  let v = lerpSquareAny<T, K>(read<T, W>(expAvgSq), gg, weight2, weight2s, largest);
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
