import {
  adamStages,
  amsgrad,
  biasCorrection,
  caution,
  checkNesterov,
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
 * Adam, with weight decay added to the gradient (L2), as in torch.
 *
 *   g <- g + weight_decay * p
 *   m <- beta1*m + (1-beta1)*g          v <- beta2*v + (1-beta2)*g^2
 *   p <- p - lr * (m / (1-beta1^t)) / (sqrt(v / (1-beta2^t)) + eps)
 *
 * With amsgrad, the running maximum of the uncorrected v replaces v under the root. eps_root and nesterov follow optax.
 *
 *   bias_correction "step_size":  p <- p - lr * sqrt(1-beta2^t) / (1-beta1^t) * m / (sqrt(v) + eps)
 *   bias_correction "none":       p <- p - lr * m / (sqrt(v) + eps)
 */
export default defineOptimizer({
  name: "adam",
  title: "Adam",
  revision: 2,
  family: "adam",
  formula: "g += weight_decay*p; m = lerp(m, g, 1-beta1); v = lerp(v, g^2, 1-beta2); p -= lr * m/(1-beta1^t) / (sqrt(v/(1-beta2^t)) + eps)",
  references: [
    "Kingma & Ba, 2015, https://arxiv.org/abs/1412.6980",
    "amsgrad: Reddi, Kale & Kumar, 2018, https://arxiv.org/abs/1904.09237",
    "without bias correction: Reddi et al., 2021, https://arxiv.org/abs/2003.00295",
    "caution: Liang et al., 2024, https://arxiv.org/abs/2411.16085",
    "peers: torch.optim.Adam; optax.adam (eps_root, nesterov); keras.optimizers.Adam (bias_correction step_size, eps 1e-7); timm.optim.Lamb without trust ratio (bias_correction none)",
  ],
  hyperparameters: {
    lr,
    betas: momentBetas([0.9, 0.999]),
    eps: eps(1e-8),
    weight_decay: rate(0, "Weight decay (L2): weight_decay times the parameter is added to the gradient"),
    amsgrad,
    maximize,
    eps_root: epsRoot,
    nesterov,
    bias_correction: biasCorrection,
    caution,
    state_dtype: stateDtype,
  },
  variants: {
    adam: { weight_decay: 0.01 },
    "adam, corrected in the step size": { bias_correction: "step_size", eps: 1e-3 },
    "adam with caution": { caution: true, weight_decay: 0.01, amsgrad: true },
    "adam with amsgrad": { amsgrad: true, maximize: true },
    "adam with small betas": { betas: [0.4, 0.3] },
    "adam, Nesterov": { nesterov: true, eps_root: 1e-8 },
  },
  slots: (values) => (values.amsgrad ? familySlots : momentSlots),
  ...familyState,
  wholeTensors: "caution",
  check: checkNesterov,
  stages: ({ weight_decay, nesterov, ...values }) => adamStages({ ...values, l2: weight_decay, blend: nesterov ? nesterovBlend(values.betas[0]) : undefined }),
});
