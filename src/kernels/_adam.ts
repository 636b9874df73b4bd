/** The step of Adam and AdamW: one division and one root an element and no more (src/optimizers/_adam.ts has the formulas and the scalars). */
import { coupled, descend, isOn, largestFinite, lerp, lerpSquare, Off, On, PAIR, pairedBytes, read, readNext, spread, writePair } from "./_lanes";

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
  const paired = pairedBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < paired; i += PAIR) {
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

/** A pair of vectors, or one element. */
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
  const p = read<T, W>(param),
    pNext = readNext<T, W>(param);
  const g = coupled<T>(read<T, W>(grad), p, l2, isOn<Couples>()),
    gNext = coupled<T>(readNext<T, W>(grad), pNext, l2, isOn<Couples>());
  const m = lerp<T>(read<T, W>(expAvg), g, weight1),
    mNext = lerp<T>(readNext<T, W>(expAvg), gNext, weight1);
  let v = lerpSquare<T>(read<T, W>(expAvgSq), v128.mul<T>(g, g), weight2, largest),
    vNext = lerpSquare<T>(readNext<T, W>(expAvgSq), v128.mul<T>(gNext, gNext), weight2, largest);
  writePair<T, W>(expAvg, m, mNext);
  writePair<T, W>(expAvgSq, v, vNext);
  if (isOn<Max>()) {
    v = v128.max<T>(read<T, W>(maxExpAvgSq), v);
    vNext = v128.max<T>(readNext<T, W>(maxExpAvgSq), vNext);
    writePair<T, W>(maxExpAvgSq, v, vNext);
  }
  const update = change<T>(m, v, stepSize, eps),
    updateNext = change<T>(mNext, vNext, stepSize, eps);
  writePair<T, W>(param, descend<T>(p, decay, isOn<Shrinks>(), update), descend<T>(pNext, decay, isOn<Shrinks>(), updateNext));
}

/** stepSize * numerator / (sqrt(squares) + eps). */
export function change<T>(numerator: v128, squares: v128, stepSize: v128, eps: v128): v128 {
  return v128.mul<T>(stepSize, v128.div<T>(numerator, v128.add<T>(v128.sqrt<T>(squares), eps)));
}
