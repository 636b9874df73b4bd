import { biasCorrection, biasOf, decayScalars, decouples, epsRoot, l2OrDecay, maximize, momentBetas, momentSlots } from "./_adam.ts";
import { defineOptimizer, rate } from "./_define.ts";

/**
 * Yogi: Adam whose second moment changes by at most (1-beta2)*g^2 in a step, also where the gradients become small.
 *
 *   m <- beta1*m + (1-beta1)*g          v <- v - (1-beta2) * sign(v - g^2) * g^2,  sign(0) = 0
 *   p <- p - lr * (m / (1-beta1^t)) / (sqrt(v / (1-beta2^t) + eps_root) + eps)
 *
 * m and v start at initial_accumulator_value, as in optax. Flower's FedYogi starts at 0 and corrects no bias: there it is 0 and
 * bias_correction is "none". The formulas of bias_correction are those of adam. There is no state_dtype, because a slot in a narrow
 * format starts at 0.
 */
export default defineOptimizer({
  name: "yogi",
  title: "Yogi",
  revision: 1,
  family: "yogi",
  formula: "m = lerp(m, g, 1-beta1); v -= (1-beta2)*sign(v - g^2)*g^2; p -= lr * m/(1-beta1^t) / (sqrt(v/(1-beta2^t) + eps_root) + eps)",
  references: [
    "Zaheer et al., 2018, https://proceedings.neurips.cc/paper/2018/hash/90365351ccc7437a1309dc64e4db32a3-Abstract.html",
    "without bias correction: Reddi et al., 2021, https://arxiv.org/abs/2003.00295",
    "peers: optax.yogi; pytorch_optimizer.Yogi",
  ],
  hyperparameters: {
    lr: rate(1e-2, "Learning rate; with a schedule, its base rate"),
    betas: momentBetas([0.9, 0.999]),
    eps: rate(1e-3, "Added to the root of the second moment"),
    initial_accumulator_value: rate(1e-6, "Initial value of exp_avg and exp_avg_sq"),
    weight_decay: l2OrDecay,
    decoupled_weight_decay: decouples(true),
    bias_correction: biasCorrection,
    eps_root: epsRoot,
    maximize,
  },
  variants: {
    "yogi without bias correction": { bias_correction: "none", initial_accumulator_value: 0, betas: [0.4, 0.3], maximize: true },
    "yogi with coupled decay": { weight_decay: 0.01, decoupled_weight_decay: false, bias_correction: "step_size", eps_root: 1e-6 },
    yogi: { weight_decay: 0.01 },
  },
  slots: () => momentSlots,
  allSlots: momentSlots,
  lateSlots: [],
  squareSlots: ["exp_avg_sq"],
  initial: ({ initial_accumulator_value: value }) => ({ exp_avg: value, exp_avg_sq: value }),
  stages: (values) => [
    {
      kernel: "yogi",
      operands: ["param", "grad", ...momentSlots],
      sums: 0,
      scalars: ({ lr, step }) => {
        const { betas, bias_correction, eps, eps_root } = values;
        const [c1, c2] = biasOf(bias_correction, betas, step);
        const root2 = Math.sqrt(c2);
        const isInMoments = bias_correction === "moments";
        return [
          ...decayScalars(values, lr),
          1 - betas[0],
          1 - betas[1],
          (lr * root2) / c1,
          isInMoments ? eps_root * c2 : eps_root,
          isInMoments ? eps * root2 : eps,
        ];
      },
    },
  ],
});
