import {
  adamStages,
  amsgrad,
  biasCorrection,
  caution,
  checkDecay,
  checkNesterov,
  decayScale,
  decoupledDecay,
  eps,
  epsRoot,
  familySlots,
  familyState,
  lr,
  maximize,
  momentBetas,
  momentSlots,
  nesterov,
  nesterovBlend,
} from "./_adam.ts";
import { defineOptimizer, rate, stateDtype } from "./_define.ts";

/**
 * AdamW: Adam with decoupled weight decay.
 *
 *   m <- beta1*m + (1-beta1)*g          v <- beta2*v + (1-beta2)*g^2
 *   p <- p - (lr*weight_decay*p + lr * (m / (1-beta1^t)) / (sqrt(v / (1-beta2^t)) + eps))
 *
 * bias_correction as in adam. lr multiplies the decay, as in torch. In the paper only the schedule's factor does (weight_decay_scale "schedule").
 */
export default defineOptimizer({
  name: "adamw",
  title: "AdamW",
  revision: 2,
  family: "adam",
  formula:
    "m = lerp(m, g, 1-beta1); v = lerp(v, g^2, 1-beta2); p -= scale*weight_decay*p + lr * m/(1-beta1^t) / (sqrt(v/(1-beta2^t)) + eps), scale = lr, lr_t/lr or 1 by weight_decay_scale",
  references: [
    "Loshchilov & Hutter, 2019, https://arxiv.org/abs/1711.05101",
    "caution: Liang et al., 2024, https://arxiv.org/abs/2411.16085",
    "peers: torch.optim.AdamW; optax.adamw (eps_root, nesterov); keras.optimizers.AdamW (bias_correction step_size, eps 1e-7, weight_decay 0.004); timm.optim.AdamWLegacy (caution)",
  ],
  hyperparameters: {
    lr,
    betas: momentBetas([0.9, 0.999]),
    eps: eps(1e-8),
    weight_decay: rate(0.01, "Decoupled weight decay: weight_decay times the parameter, scaled by weight_decay_scale, is subtracted from the parameter"),
    weight_decay_scale: decayScale,
    amsgrad,
    maximize,
    eps_root: epsRoot,
    nesterov,
    bias_correction: biasCorrection,
    caution,
    state_dtype: stateDtype,
  },
  variants: {
    adamw: {},
    "adamw without bias correction": { bias_correction: "none", betas: [0.4, 0.3] },
    "adamw with caution": { caution: true },
    "adamw, undecayed scale": { weight_decay_scale: "none", weight_decay: 0.001, amsgrad: true },
  },
  slots: (values) => (values.amsgrad ? familySlots : momentSlots),
  ...familyState,
  wholeTensors: "caution",
  check: (values) => checkDecay(values) ?? checkNesterov(values),
  stages: ({ nesterov, ...values }) =>
    adamStages({ ...values, decay: (context) => decoupledDecay(values, context), blend: nesterov ? nesterovBlend(values.betas[0]) : undefined }),
});
