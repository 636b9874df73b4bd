import { repeatedSquaring } from "../math/power.ts";
import { decayScalars, decouples, l2OrDecay, lr, maximize, momentBetas } from "./_adam.ts";
import { defineOptimizer, flag, rate, stateDtype } from "./_define.ts";
import { rectificationOf } from "./_rectification.ts";

/**
 * AdaBelief: Adam divided by the deviation of the gradient from its mean, as in optax and timm.
 *
 *   m <- beta1*m + (1-beta1)*g          s <- beta2*s + (1-beta2)*(g - m)^2 + eps_root
 *   p <- p - lr * (m / (1-beta1^t)) / (sqrt(s / (1-beta2^t)) + eps)
 *
 * eps_root is added to the average at every step, and stays in it. timm and pytorch_optimizer have one eps for both. With rectify the
 * step is rectified as in radam, and eps is added before the bias correction.
 */
export default defineOptimizer({
  name: "adabelief",
  title: "AdaBelief",
  revision: 2,
  family: "adabelief",
  formula: "m = lerp(m, g, 1-beta1); s = lerp(s, (g - m)^2, 1-beta2) + eps_root; p -= lr * m/(1-beta1^t) / (sqrt(s/(1-beta2^t)) + eps)",
  references: [
    "Zhuang et al., 2020, https://arxiv.org/abs/2010.07468",
    "peers: optax.adabelief; timm.optim.AdaBelief (rectify true there); pytorch_optimizer.AdaBelief",
  ],
  hyperparameters: {
    lr,
    betas: momentBetas([0.9, 0.999]),
    eps: rate(1e-16, "Added to the root of exp_avg_var"),
    eps_root: rate(1e-16, "Added to exp_avg_var at every step"),
    weight_decay: l2OrDecay,
    decoupled_weight_decay: decouples(true),
    rectify: flag("Rectify the step as in radam"),
    maximize,
    state_dtype: stateDtype,
  },
  variants: {
    "adabelief, rectified": { rectify: true, betas: [0.4, 0.6], maximize: true },
    "adabelief with coupled decay": { weight_decay: 0.01, decoupled_weight_decay: false, rectify: true },
    adabelief: { weight_decay: 0.01 },
  },
  slots: () => ["exp_avg", "exp_avg_var"],
  allSlots: ["exp_avg", "exp_avg_var"],
  moments: { exp_avg: "signed", exp_avg_var: "square" },
  lateSlots: [],
  squareSlots: ["exp_avg_var"],
  stages: (values) => [
    {
      kernel: "adabelief",
      operands: ["param", "grad", "exp_avg", "exp_avg_var"],
      sums: 0,
      scalars: ({ lr, step }) => {
        const {
          betas: [beta1, beta2],
          eps,
          eps_root,
          rectify,
        } = values;
        const head = [...decayScalars(values, lr), 1 - beta1, 1 - beta2, beta1];
        const c1 = 1 - repeatedSquaring(beta1, step);
        const root2 = Math.sqrt(1 - repeatedSquaring(beta2, step));
        if (!rectify) return [...head, (lr * root2) / c1, eps_root, eps * root2, 1];
        const rectification = rectificationOf(beta2, step);
        if (rectification === undefined) return [...head, lr / c1, eps_root, 0, 0];
        return [...head, (lr * rectification * root2) / c1, eps_root, eps, 1];
      },
    },
  ],
});
