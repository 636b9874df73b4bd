/** RAdam. One shard; `count` elements. Scalars in the order of src/optimizers/radam.ts. */
import {
  AnyWeight,
  areLight,
  coupled,
  descend,
  isLight,
  isOn,
  Light,
  largestFinite,
  lerp,
  lerpHeavy,
  lerpSquare,
  Off,
  On,
  PAIR,
  pairedBytes,
  read,
  readNext,
  spread,
  writePair,
} from "./_lanes";

/**
 * exp_avg and exp_avg_sq as in Adam; param -= decay*param + stepSize * exp_avg / (rectified ? sqrt(exp_avg_sq) + eps : 1). Without
 * rectification the squares are left out whole, so that one that has overflowed does no harm. For light weights Couples, Shrinks and
 * Divides say whether l2, decay (never both) and rectification are there; for others it is asked in the loop.
 */
function step<T, K, Couples, Shrinks, Divides>(
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
  const paired = pairedBytes<T>(count),
    bytes = count * sizeof<T>();
  let i: usize = 0;
  for (; i < paired; i += PAIR)
    element<T, v128, K, Couples, Shrinks, Divides>(
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
    element<T, T, K, Couples, Shrinks, Divides>(
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

/** A pair of vectors, or one element. */
function element<T, W, K, Couples, Shrinks, Divides>(
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
  const adds = isLight<K>() ? isOn<Couples>() : couples,
    takes = isLight<K>() ? isOn<Shrinks>() : shrinks;
  const p = read<T, W>(param),
    pNext = readNext<T, W>(param);
  const g = coupled<T>(read<T, W>(grad), p, l2, adds),
    gNext = coupled<T>(readNext<T, W>(grad), pNext, l2, adds);
  let m = read<T, W>(expAvg),
    mNext = readNext<T, W>(expAvg);
  let v = read<T, W>(expAvgSq),
    vNext = readNext<T, W>(expAvgSq);
  const gg = v128.mul<T>(g, g),
    ggNext = v128.mul<T>(gNext, gNext);
  // One branch for both of a pair: two take a tenth of the step for weights that are not light (measured).
  if (isLight<K>() || areLight(weight1, 0)) {
    m = lerp<T>(m, g, weight1s);
    mNext = lerp<T>(mNext, gNext, weight1s);
  } else {
    m = lerpHeavy<T>(m, g, weight1);
    mNext = lerpHeavy<T>(mNext, gNext, weight1);
  }
  if (isLight<K>() || areLight(weight2, 0)) {
    v = lerpSquare<T>(v, gg, weight2s, largest);
    vNext = lerpSquare<T>(vNext, ggNext, weight2s, largest);
  } else {
    v = lerpHeavy<T>(v, gg, weight2);
    vNext = lerpHeavy<T>(vNext, ggNext, weight2);
  }
  writePair<T, W>(expAvg, m, mNext);
  writePair<T, W>(expAvgSq, v, vNext);
  let direction = m,
    directionNext = mNext;
  if (isLight<K>() ? isOn<Divides>() : divides) {
    direction = v128.div<T>(m, v128.add<T>(v128.sqrt<T>(v), eps));
    directionNext = v128.div<T>(mNext, v128.add<T>(v128.sqrt<T>(vNext), eps));
  }
  writePair<T, W>(param, descend<T>(p, decay, takes, v128.mul<T>(stepSize, direction)), descend<T>(pNext, decay, takes, v128.mul<T>(stepSize, directionNext)));
}

function decayed<T, Divides>(
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
  if (l2 !== 0) step<T, Light, On, Off, Divides>(param, grad, expAvg, expAvgSq, count, l2, decay, weight1, weight2, stepSize, rectified, eps);
  else if (decay !== 0) step<T, Light, Off, On, Divides>(param, grad, expAvg, expAvgSq, count, l2, decay, weight1, weight2, stepSize, rectified, eps);
  else step<T, Light, Off, Off, Divides>(param, grad, expAvg, expAvgSq, count, l2, decay, weight1, weight2, stepSize, rectified, eps);
}

function radam<T>(
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
  if (!areLight(weight1, weight2))
    step<T, AnyWeight, Off, Off, Off>(param, grad, expAvg, expAvgSq, count, l2, decay, weight1, weight2, stepSize, rectified, eps);
  else if (rectified !== 0) decayed<T, On>(param, grad, expAvg, expAvgSq, count, l2, decay, weight1, weight2, stepSize, rectified, eps);
  else decayed<T, Off>(param, grad, expAvg, expAvgSq, count, l2, decay, weight1, weight2, stepSize, rectified, eps);
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
  radam<f32>(param, grad, expAvg, expAvgSq, count, l2, decay, weight1, weight2, stepSize, rectified, eps);
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
  radam<f64>(param, grad, expAvg, expAvgSq, count, l2, decay, weight1, weight2, stepSize, rectified, eps);
}
