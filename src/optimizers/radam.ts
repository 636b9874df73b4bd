import { repeatedSquaring } from "../math/power.ts";
import { eps, familyState, lr, maximize, momentBetas, momentSlots } from "./_adam.ts";
import { defineOptimizer, flag, rate, stateDtype } from "./_define.ts";
import { rectificationOf } from "./_rectification.ts";

/**
 * RAdam: Adam with a step rectified for the variance of the second moment, as in torch.
 *
 *   rho_inf = 2/(1-beta2) - 1,  rho = rho_inf - 2*t*beta2^t / (1-beta2^t)
 *   rho > 5:  p <- p - lr * m/(1-beta1^t) * sqrt((rho-4)(rho-2)rho_inf / ((rho_inf-4)(rho_inf-2)rho)) * sqrt(1-beta2^t) / (sqrt(v) + eps)
 *   else      p <- p - lr * m/(1-beta1^t)
 *
 * eps is added before the bias correction, unlike in Adam.
 */
export default defineOptimizer({
  name: "radam",
  title: "RAdam",
  revision: 2,
  family: "adam",
  formula: "m, v as in adam; rho = rho_inf - 2t*beta2^t/(1-beta2^t); p -= lr * m/(1-beta1^t) * (rho > 5 ? rect(rho)*sqrt(1-beta2^t)/(sqrt(v) + eps) : 1)",
  references: ["Liu et al., 2020, https://arxiv.org/abs/1908.03265", "peer: torch.optim.RAdam"],
  hyperparameters: {
    lr,
    betas: momentBetas([0.9, 0.999]),
    eps: eps(1e-8),
    weight_decay: rate(0, "Weight decay (L2): weight_decay times the parameter is added to the gradient"),
    decoupled_weight_decay: flag("Decouple the weight decay: subtract lr*weight_decay times the parameter, instead of adding to the gradient"),
    maximize,
    state_dtype: stateDtype,
  },
  variants: {
    radam: { weight_decay: 0.01 },
    "radam, never rectified, decoupled": { betas: [0.9, 0.4], weight_decay: 0.01, decoupled_weight_decay: true, maximize: true },
  },
  slots: () => momentSlots,
  ...familyState,
  stages: ({ betas: [beta1, beta2], eps, weight_decay, decoupled_weight_decay }) => [
    {
      kernel: "radam",
      operands: ["param", "grad", ...momentSlots],
      sums: 0,
      scalars: ({ lr, step }) => {
        const c1 = 1 - repeatedSquaring(beta1, step);
        const power2 = repeatedSquaring(beta2, step);
        const decay = decoupled_weight_decay ? [0, lr * weight_decay] : [weight_decay, 0];
        const rectification = rectificationOf(beta2, step);
        if (rectification === undefined) return [...decay, 1 - beta1, 1 - beta2, lr / c1, 0, 0];
        return [...decay, 1 - beta1, 1 - beta2, (lr * rectification * Math.sqrt(1 - power2)) / c1, 1, eps];
      },
    },
  ],
});
