import { adamStages, eps, familyState, lr, momentBetas, momentSlots, quasiHyperbolicBlend } from "./_adam.ts";
import { defineOptimizer, pair, rate, stateDtype } from "./_define.ts";

/**
 * QHAdam: Adam's moments, each blended with the current gradient.
 *
 *   g <- g + weight_decay * p,  m and v as in Adam,  mhat = m / (1-beta1^t),  vhat = v / (1-beta2^t)
 *   p <- p - lr * (nu1*mhat + (1-nu1)*g) / (sqrt(nu2*vhat + (1-nu2)*g^2) + eps)
 *
 * The slots contain the uncorrected moments, as in torch; qhoptim and IPRally store mhat and vhat. nus (1, 1) is Adam, bit for bit.
 */
export default defineOptimizer({
  name: "qhadam",
  title: "QHAdam",
  revision: 2,
  family: "adam",
  formula:
    "g += weight_decay*p; m, v as in adam; p -= lr * (nu1*mhat + (1-nu1)*g) / (sqrt(nu2*vhat + (1-nu2)*g^2) + eps), mhat = m/(1-beta1^t), vhat = v/(1-beta2^t)",
  references: ["Ma & Yarats, 2019, https://arxiv.org/abs/1810.06801", "peer: qhoptim.pyt.QHAdam"],
  hyperparameters: {
    lr,
    betas: momentBetas([0.995, 0.999]),
    nus: pair([0.7, 1.0], "Weights of the first and second moment, relative to the current gradient; any finite numbers"),
    eps: eps(1e-8),
    weight_decay: rate(0, "Weight decay (L2): weight_decay times the parameter is added to the gradient"),
    state_dtype: stateDtype,
  },
  variants: {
    qhadam: { weight_decay: 0.01 },
    "qhadam with nu2": { nus: [0.8, 0.9] },
  },
  slots: () => momentSlots,
  ...familyState,
  stages: ({ nus, weight_decay, ...values }) => adamStages({ ...values, l2: weight_decay, blend: quasiHyperbolicBlend(nus) }),
});
