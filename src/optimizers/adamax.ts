import { repeatedSquaring } from "../math/power.ts";
import { maximize, momentBetas } from "./_adam.ts";
import { defineOptimizer, rate, stateDtype } from "./_define.ts";

/**
 * Adamax: Adam with the infinity norm in place of the second moment, as in torch.
 *
 *   m <- beta1*m + (1-beta1)*g          u <- max(beta2*u, |g| + eps)
 *   p <- p - lr / (1-beta1^t) * m / u
 */
export default defineOptimizer({
  name: "adamax",
  title: "Adamax",
  revision: 2,
  family: "adamax",
  formula: "g += weight_decay*p; m = lerp(m, g, 1-beta1); u = max(beta2*u, |g| + eps); p -= lr/(1-beta1^t) * m/u",
  references: ["Kingma & Ba, 2015, section 7.1, https://arxiv.org/abs/1412.6980", "peer: torch.optim.Adamax"],
  hyperparameters: {
    lr: rate(2e-3, "Learning rate; with a schedule, its base rate"),
    betas: momentBetas([0.9, 0.999]),
    eps: rate(1e-8, "Added to the size of each gradient"),
    weight_decay: rate(0, "Weight decay (L2): weight_decay times the parameter is added to the gradient"),
    maximize,
    state_dtype: stateDtype,
  },
  variants: {
    adamax: { weight_decay: 0.01 },
    "adamax with small betas": { betas: [0.4, 0.3], maximize: true },
  },
  slots: () => ["exp_avg", "exp_inf"],
  allSlots: ["exp_avg", "exp_inf"],
  moments: { exp_avg: "signed", exp_inf: "square" },
  lateSlots: [],
  stages: ({ betas: [beta1, beta2], eps, weight_decay }) => [
    {
      kernel: "adamax",
      operands: ["param", "grad", "exp_avg", "exp_inf"],
      sums: 0,
      scalars: ({ lr, step }) => [weight_decay, 1 - beta1, beta2, lr / (1 - repeatedSquaring(beta1, step)), eps],
    },
  ],
});
