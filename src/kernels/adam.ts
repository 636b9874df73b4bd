/** Adam and AdamW for weights below 0.5: one division and one root per element (src/optimizers/_adam.ts). Scalars: l2, decay, weight1, weight2, stepSize, eps. */
import { adaptiveUpdate } from "./_adam";
import {
  applyUpdate,
  Coupled,
  Decoupled,
  decayLanes,
  isOn,
  isSuspect,
  lanes,
  largestFinite,
  lerp,
  lerpSquare,
  NoDecay,
  Off,
  On,
  PAIR,
  pairedBytes,
  read,
  readNext,
  scalar,
  withCoupledDecay,
  writePair,
  writeParam,
} from "./_lanes";

/** param -= decay*param + stepSize * exp_avg / (sqrt(v) + eps), where v is exp_avg_sq, or its running maximum with Max. */
function step<T, D, Max>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, maxExpAvgSq: usize, count: usize, scalars: usize): bool {
  const decay = decayLanes<T, D>(scalars),
    weight1 = lanes<T>(scalars, 2),
    weight2 = lanes<T>(scalars, 3),
    stepSize = lanes<T>(scalars, 4),
    eps = lanes<T>(scalars, 5),
    largest = largestFinite<T>(count);
  const paired = pairedBytes<T>(count),
    bytes = count * sizeof<T>();
  let total = v128.splat<T>(0);
  let i: usize = 0;
  for (; i < paired; i += PAIR)
    total = v128.add<T>(
      total,
      element<T, v128, D, Max>(param + i, grad + i, expAvg + i, expAvgSq + i, maxExpAvgSq + i, decay, weight1, weight2, largest, stepSize, eps),
    );
  for (; i < bytes; i += sizeof<T>())
    total = v128.add<T>(
      total,
      element<T, T, D, Max>(param + i, grad + i, expAvg + i, expAvgSq + i, maxExpAvgSq + i, decay, weight1, weight2, largest, stepSize, eps),
    );
  return isSuspect<T>(total);
}

function element<T, W, D, Max>(
  param: usize,
  grad: usize,
  expAvg: usize,
  expAvgSq: usize,
  maxExpAvgSq: usize,
  decay: v128,
  weight1: v128,
  weight2: v128,
  largest: v128,
  stepSize: v128,
  eps: v128,
): v128 {
  const p = read<T, W>(param),
    pNext = readNext<T, W>(param);
  const g = withCoupledDecay<T, D>(read<T, W>(grad), p, decay),
    gNext = withCoupledDecay<T, D>(readNext<T, W>(grad), pNext, decay);
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
  const update = adaptiveUpdate<T>(m, v, stepSize, eps),
    updateNext = adaptiveUpdate<T>(mNext, vNext, stepSize, eps);
  return writeParam<T, W>(param, applyUpdate<T, D>(p, decay, update), applyUpdate<T, D>(pNext, decay, updateNext));
}

function anyMax<T, D>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, maxExpAvgSq: usize, count: usize, scalars: usize): bool {
  if (maxExpAvgSq) return step<T, D, On>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
  return step<T, D, Off>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
}

function adam<T>(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, maxExpAvgSq: usize, count: usize, scalars: usize): bool {
  if (scalar(scalars, 0) !== 0) return anyMax<T, Coupled>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
  if (scalar(scalars, 1) !== 0) return anyMax<T, Decoupled>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
  return anyMax<T, NoDecay>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
}

export function adam_f32(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, maxExpAvgSq: usize, count: usize, scalars: usize): bool {
  return adam<f32>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
}

export function adam_f64(param: usize, grad: usize, expAvg: usize, expAvgSq: usize, maxExpAvgSq: usize, count: usize, scalars: usize): bool {
  return adam<f64>(param, grad, expAvg, expAvgSq, maxExpAvgSq, count, scalars);
}
