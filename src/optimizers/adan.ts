import { repeatedSquaring } from "../math/power.ts";
import { eps as epsilon, epsRoot, lr, maximize } from "./_adam.ts";
import { defineOptimizer, flag, optional, rate, stateDtype, threeBetas } from "./_define.ts";

/**
 * Adan: Adam with Nesterov momentum, which it estimates from the differences of consecutive gradients, as in the authors' code and timm.
 *
 *   d = g - previous g, 0 at the first step
 *   m <- beta1*m + (1-beta1)*g          n <- beta2*n + (1-beta2)*d          v <- beta3*v + (1-beta3)*(g + w*d)^2
 *   u = (m / (1-beta1^t) + w * n / (1-beta2^t)) / (sqrt(v / (1-beta3^t) + eps_root) + eps)
 *   p <- (p - lr*u) / (1 + lr*weight_decay), or p - lr*weight_decay*p - lr*u with no_prox
 *
 * w is diff_weight, and beta2 by default. optax writes 1 - beta2 there, and eps_root 1e-8; pytorch_optimizer calls no_prox weight_decouple.
 * neg_pre_grad keeps its float32 under every state_dtype, because a difference of rounded gradients would be mostly rounding.
 */
export default defineOptimizer({
  name: "adan",
  title: "Adan",
  revision: 2,
  family: "adan",
  formula:
    "d = g - g_previous; m = lerp(m, g, 1-beta1); n = lerp(n, d, 1-beta2); v = lerp(v, (g + w*d)^2, 1-beta3); u = (m/(1-beta1^t) + w*n/(1-beta2^t)) / (sqrt(v/(1-beta3^t) + eps_root) + eps); p = (p - lr*u) / (1 + lr*weight_decay), with no_prox p -= lr*(weight_decay*p + u)",
  references: [
    "Xie et al., 2022, https://arxiv.org/abs/2208.06677",
    "peers: timm.optim.Adan; pytorch_optimizer.Adan; optax.adan (diff_weight 1 - betas[1], eps_root 1e-8, no_prox true there)",
  ],
  hyperparameters: {
    lr,
    betas: threeBetas([0.98, 0.92, 0.99], "Decay rates of exp_avg, exp_avg_diff and exp_avg_sq"),
    eps: epsilon(1e-8),
    weight_decay: rate(0, "Weight decay; no_prox selects its form"),
    no_prox: flag("Subtract lr*weight_decay times the parameter from it, instead of dividing the new parameter by 1 + lr*weight_decay"),
    diff_weight: optional("Weight of the difference and of exp_avg_diff; null is the second of betas (paper, timm), and optax has 1 minus it"),
    eps_root: epsRoot,
    maximize,
    state_dtype: stateDtype,
  },
  variants: {
    "adan without proximal decay": { weight_decay: 0.02, no_prox: true, eps_root: 1e-6, betas: [0.4, 0.3, 0.2], maximize: true },
    adan: { weight_decay: 0.02 },
  },
  slots: () => ["exp_avg", "exp_avg_diff", "exp_avg_sq", "neg_pre_grad"],
  allSlots: ["exp_avg", "exp_avg_diff", "exp_avg_sq", "neg_pre_grad"],
  moments: { exp_avg: "signed", exp_avg_diff: "signed", exp_avg_sq: "square" },
  lateSlots: [],
  squareSlots: ["exp_avg_sq"],
  stages: ({ betas: [beta1, beta2, beta3], eps, eps_root, weight_decay, no_prox, diff_weight }) => [
    {
      kernel: "adan",
      operands: ["param", "grad", "exp_avg", "exp_avg_diff", "exp_avg_sq", "neg_pre_grad"],
      sums: 0,
      scalars: ({ lr, step, isFirst }) => {
        const [c1, c2, c3] = [beta1, beta2, beta3].map((beta) => 1 - repeatedSquaring(beta, step)) as [number, number, number];
        const weight = diff_weight ?? beta2;
        const root3 = Math.sqrt(c3);
        // (p - lr*u) / (1 + x) = p - (x/(1+x) * p + lr/(1+x) * u), x = lr*weight_decay.
        const shrink = no_prox ? 1 : 1 + lr * weight_decay;
        return [
          (lr * weight_decay) / shrink,
          1 - beta1,
          1 - beta2,
          1 - beta3,
          weight,
          ((lr / shrink) * root3) / c1,
          (weight * c1) / c2,
          eps_root * c3,
          eps * root3,
          isFirst ? 1 : 0,
        ];
      },
    },
  ],
});
