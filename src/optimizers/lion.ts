import { agreement, caution, maximize, momentBetas } from "./_adam.ts";
import { defineOptimizer, rate, stateDtype } from "./_define.ts";

/**
 * Lion: steps of size lr along the sign of a blend of momentum and gradient, with decoupled weight decay.
 *
 *   u = sign(beta1*m + (1-beta1)*g),  sign(0) = 0
 *   p <- p - (lr*weight_decay*p + lr*u)
 *   m <- beta2*m + (1-beta2)*g
 *
 * If the blend is nearly zero, rounding decides its sign, which changes the parameter by 2*lr.
 */
export default defineOptimizer({
  name: "lion",
  title: "Lion",
  revision: 2,
  family: "lion",
  formula: "u = sign(lerp(m, g, 1-beta1)); p -= lr*weight_decay*p + lr*u; m = lerp(m, g, 1-beta2)",
  references: [
    "Chen et al., 2023, https://arxiv.org/abs/2302.06675",
    "caution: Liang et al., 2024, https://arxiv.org/abs/2411.16085",
    "peers: timm.optim.Lion; optax.lion (weight_decay 1e-3 there)",
  ],
  hyperparameters: {
    lr: rate(1e-4, "Learning rate; with a schedule, its base rate"),
    betas: momentBetas([0.9, 0.99]),
    weight_decay: rate(0, "Decoupled weight decay: lr times weight_decay times the parameter is subtracted from the parameter"),
    maximize,
    caution,
    state_dtype: stateDtype,
  },
  variants: {
    lion: { weight_decay: 0.1 },
    "lion with caution": { caution: true, weight_decay: 0.1 },
    "lion with small betas": { betas: [0.4, 0.3], maximize: true },
  },
  slots: () => ["exp_avg"],
  allSlots: ["exp_avg"],
  moments: { exp_avg: "signed" },
  lateSlots: [],
  hasNoStepInTorch: true,
  wholeTensors: "caution",
  stages: ({ betas: [beta1, beta2], weight_decay, caution }) =>
    caution
      ? [
          { kernel: "lion_cautious", operands: ["grad", "exp_avg", "sums"], sums: 1, scalars: () => [1 - beta1, 1 - beta2] },
          {
            kernel: "lamb_apply",
            operands: ["param", "grad"],
            sums: 0,
            scalars: (context) => [context.lr * weight_decay, context.lr / agreement(context)],
          },
        ]
      : [{ kernel: "lion", operands: ["param", "grad", "exp_avg"], sums: 0, scalars: ({ lr }) => [lr * weight_decay, 1 - beta1, 1 - beta2, lr] }],
});
