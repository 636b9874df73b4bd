/**
 * Implements optimizers as plain loops over Float32Array, computed in float64. AdamW has a second loop, which rounds every operation
 * to float32.
 */

export interface Arrays {
  readonly param: Float32Array;
  readonly grad: Float32Array;
  readonly slot0: Float32Array;
  readonly slot1: Float32Array;
}

export type Loop = (arrays: Arrays) => void;

const LR = 1e-3;
const BETA1 = 0.9;
const BETA2 = 0.999;
const EPS = 1e-8;
const DECAY = 0.01;
const NU = 0.7;
// The bias corrections of the tenth step.
const C1 = 1 - BETA1 ** 10;
const C2 = 1 - BETA2 ** 10;

/** Reads without a bounds check, in a form that the type checker accepts. */
const at = (array: Float32Array, index: number): number => array[index] as number;

const sgd: Loop = ({ param, grad }) => {
  for (let i = 0; i < param.length; i++) param[i] = at(param, i) - LR * at(grad, i);
};

const momentum: Loop = ({ param, grad, slot0 }) => {
  for (let i = 0; i < param.length; i++) {
    const buffer = BETA1 * at(slot0, i) + at(grad, i);
    slot0[i] = buffer;
    param[i] = at(param, i) - LR * buffer;
  }
};

const qhm: Loop = ({ param, grad, slot0 }) => {
  for (let i = 0; i < param.length; i++) {
    const g = at(grad, i);
    const buffer = BETA1 * at(slot0, i) + (1 - BETA1) * g;
    slot0[i] = buffer;
    param[i] = at(param, i) - LR * ((1 - NU) * g + NU * buffer);
  }
};

const adamLike =
  (decay: number, nu: number): Loop =>
  ({ param, grad, slot0, slot1 }) => {
    for (let i = 0; i < param.length; i++) {
      const g = at(grad, i);
      const m = at(slot0, i) + (1 - BETA1) * (g - at(slot0, i));
      const v = at(slot1, i) + (1 - BETA2) * (g * g - at(slot1, i));
      slot0[i] = m;
      slot1[i] = v;
      const up = nu === 1 ? m / C1 : (1 - nu) * g + (nu * m) / C1;
      param[i] = at(param, i) - (decay * at(param, i) + (LR * up) / (Math.sqrt(v / C2) + EPS));
    }
  };

/** Rounds every operation to float32, as hardware that computes in float32 does. */
const adamwRounded: Loop = ({ param, grad, slot0, slot1 }) => {
  const f = Math.fround;
  const weight1 = f(1 - BETA1);
  const weight2 = f(1 - BETA2);
  const decay = f(LR * DECAY);
  const stepSize = f((LR * Math.sqrt(C2)) / C1);
  const eps = f(EPS * Math.sqrt(C2));
  for (let i = 0; i < param.length; i++) {
    const g = at(grad, i);
    const m = f(at(slot0, i) + f(weight1 * f(g - at(slot0, i))));
    const v = f(at(slot1, i) + f(weight2 * f(f(g * g) - at(slot1, i))));
    slot0[i] = m;
    slot1[i] = v;
    param[i] = f(at(param, i) - f(f(decay * at(param, i)) + f(f(stepSize * m) / f(f(Math.sqrt(v)) + eps))));
  }
};

const lamb: Loop = ({ param, grad, slot0, slot1 }) => {
  let paramSquares = 0;
  let updateSquares = 0;
  for (let i = 0; i < param.length; i++) {
    const g = at(grad, i);
    const p = at(param, i);
    const m = at(slot0, i) + (1 - BETA1) * (g - at(slot0, i));
    const v = at(slot1, i) + (1 - BETA2) * (g * g - at(slot1, i));
    slot0[i] = m;
    slot1[i] = v;
    const update = m / C1 / (Math.sqrt(v / C2) + EPS) + DECAY * p;
    grad[i] = update;
    paramSquares += p * p;
    updateSquares += update * update;
  }
  const stepSize = LR * Math.sqrt(paramSquares / updateSquares);
  for (let i = 0; i < param.length; i++) param[i] = at(param, i) - stepSize * at(grad, i);
};

export const loops: Readonly<Record<string, Loop>> = {
  sgd,
  momentum,
  qhm,
  adam: adamLike(0, 1),
  adamw: adamLike(LR * DECAY, 1),
  adamwRounded,
  qhadam: adamLike(0, NU),
  qhadamw: adamLike(LR * DECAY, NU),
  lamb,
};
