import { repeatedSquaring } from "../math/power.ts";
import { logarithmRatio, realPower } from "../math/real-power.ts";
import { decayScalars, decouples, eps as epsilon, epsRoot, l2OrDecay, lr, maximize } from "./_adam.ts";
import { defineOptimizer, optional, rate, stateDtype, threeBetas } from "./_define.ts";

/** The warm-up of alpha is linear. That of beta3 moves the half-life of the slow average from that of beta1 to that of beta3. */
const warmedUp = (
  { alpha, t_alpha_beta3: steps, betas: [beta1, , beta3] }: { alpha: number; t_alpha_beta3: number | null; betas: readonly [number, number, number] },
  step: number,
): { readonly alpha: number; readonly beta3: number } => {
  const progress = steps === null ? 1 : Math.min(step / steps, 1);
  if (progress === 1) return { alpha, beta3 };
  if (beta3 <= beta1) return { alpha: progress * alpha, beta3 };
  // beta1^x = beta3^(x*ratio). The exponent's denominator is linear in the step.
  const ratio = beta1 === 0 ? 0 : logarithmRatio(beta3, beta1);
  return { alpha: progress * alpha, beta3: Math.min(realPower(beta3, 1 / ((1 - progress) * ratio + progress)), beta3) };
};

/**
 * AdEMAMix: Adam with a second, slow average of the gradients, which keeps old gradients in use.
 *
 *   m <- beta1*m + (1-beta1)*g          s <- beta3_t*s + (1-beta3_t)*g          v <- beta2*v + (1-beta2)*g^2
 *   p <- p - lr * (m / (1-beta1^t) + alpha_t * s) / (sqrt(v / (1-beta2^t) + eps_root) + eps)
 *
 * With t_alpha_beta3 = T, alpha_t = min(t/T, 1)*alpha, and beta3_t = min(exp(ln(beta1)*ln(beta3) / ((1-t/T)*ln(beta3) + (t/T)*ln(beta1))), beta3).
 * The slow average has no bias correction. It keeps its float32 under every state_dtype, because a change by 1 - beta3 of its distance to
 * the gradient would be lost in the rounding.
 */
export default defineOptimizer({
  name: "ademamix",
  title: "AdEMAMix",
  revision: 2,
  family: "ademamix",
  formula:
    "m = lerp(m, g, 1-beta1); s = lerp(s, g, 1-beta3_t); v = lerp(v, g^2, 1-beta2); p -= lr * (m/(1-beta1^t) + alpha_t*s) / (sqrt(v/(1-beta2^t) + eps_root) + eps); alpha_t and beta3_t grow over the first t_alpha_beta3 steps",
  references: [
    "Pagliardini et al., 2024, https://arxiv.org/abs/2409.03137",
    "peers: optax.contrib.ademamix; pytorch_optimizer.AdEMAMix (decoupled_weight_decay false there)",
  ],
  hyperparameters: {
    lr,
    betas: threeBetas([0.9, 0.999, 0.9999], "Decay rates of exp_avg, exp_avg_sq and exp_avg_slow"),
    alpha: rate(5, "Weight of exp_avg_slow in the numerator"),
    t_alpha_beta3: optional(
      "Number of steps over which alpha grows from 0 and the decay rate of exp_avg_slow from the first of betas; null starts with their full values",
    ),
    eps: epsilon(1e-8),
    weight_decay: l2OrDecay,
    decoupled_weight_decay: decouples(true),
    eps_root: epsRoot,
    maximize,
    state_dtype: stateDtype,
  },
  variants: {
    "ademamix with warm-up and coupled decay": { t_alpha_beta3: 10, weight_decay: 0.01, decoupled_weight_decay: false, eps_root: 1e-6, maximize: true },
    "ademamix without decay": { betas: [0.4, 0.3, 0.9], t_alpha_beta3: 4 },
    ademamix: { weight_decay: 0.01 },
  },
  slots: () => ["exp_avg", "exp_avg_slow", "exp_avg_sq"],
  allSlots: ["exp_avg", "exp_avg_slow", "exp_avg_sq"],
  moments: { exp_avg: "signed", exp_avg_sq: "square" },
  lateSlots: [],
  squareSlots: ["exp_avg_sq"],
  stages: (values) => [
    {
      kernel: "ademamix",
      operands: ["param", "grad", "exp_avg", "exp_avg_slow", "exp_avg_sq"],
      sums: 0,
      scalars: ({ lr, step }) => {
        const {
          betas: [beta1, beta2],
          eps,
          eps_root,
        } = values;
        const { alpha, beta3 } = warmedUp(values, step);
        const [c1, c2] = [1 - repeatedSquaring(beta1, step), 1 - repeatedSquaring(beta2, step)];
        const root2 = Math.sqrt(c2);
        return [...decayScalars(values, lr), 1 - beta1, 1 - beta3, 1 - beta2, (lr * root2) / c1, alpha * c1, eps_root * c2, eps * root2];
      },
    },
  ],
});
