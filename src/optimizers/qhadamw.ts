import { adamStages, checkDecay, decayScale, decoupledDecay, eps, familyState, lr, momentBetas, momentSlots, quasiHyperbolicBlend } from "./_adam.ts";
import { defineOptimizer, pair, rate, stateDtype } from "./_define.ts";

/**
 * QHAdamW: QHAdam with decoupled weight decay.
 *
 *   p <- p - (scale*weight_decay*p + lr * (nu1*mhat + (1-nu1)*g) / (sqrt(nu2*vhat + (1-nu2)*g^2) + eps))
 *
 * scale is lr (qhoptim, the default), the schedule's factor, or 1 (IPRally: weight_decay_scale "none"). nus (1, 1) is AdamW, bit for bit.
 */
export default defineOptimizer({
  name: "qhadamw",
  title: "QHAdamW",
  revision: 2,
  family: "adam",
  formula:
    "m, v as in adamw; p -= scale*weight_decay*p + lr * (nu1*mhat + (1-nu1)*g) / (sqrt(nu2*vhat + (1-nu2)*g^2) + eps), scale = lr, lr_t/lr or 1 by weight_decay_scale",
  references: [
    "Ma & Yarats, 2019, https://arxiv.org/abs/1810.06801",
    "Loshchilov & Hutter, 2019, https://arxiv.org/abs/1711.05101",
    'peers: qhoptim.pyt.QHAdamW; iprally/qhadamw-pytorch (weight_decay_scale "none")',
  ],
  hyperparameters: {
    lr,
    betas: momentBetas([0.995, 0.999]),
    nus: pair([0.7, 1.0], "Weights of the first and second moment, relative to the current gradient; any finite numbers"),
    eps: eps(1e-8),
    weight_decay: rate(0, "Decoupled weight decay: weight_decay times the parameter, scaled by weight_decay_scale, is subtracted from the parameter"),
    weight_decay_scale: decayScale,
    state_dtype: stateDtype,
  },
  variants: {
    qhadamw: { weight_decay: 0.01 },
  },
  slots: () => momentSlots,
  ...familyState,
  check: checkDecay,
  stages: ({ nus, ...values }) => adamStages({ ...values, decay: (context) => decoupledDecay(values, context), blend: quasiHyperbolicBlend(nus) }),
});
