import { decayScalars, decouples, l2OrDecay, maximize } from "./_adam.ts";
import { defineOptimizer, rate, stateDtype } from "./_define.ts";

/**
 * Signum: steps of one size along the sign of a running mean of gradients. With momentum 0 it is signSGD.
 *
 *   buf <- momentum*buf + (1-momentum)*g
 *   p <- p - lr*sign(buf),  sign(0) = 0
 *
 * If the mean is nearly zero, rounding decides its sign, which changes the parameter by 2*lr.
 */
export default defineOptimizer({
  name: "signum",
  title: "Signum",
  revision: 2,
  family: "signum",
  formula: "buf = lerp(buf, g, 1-momentum); p -= lr*sign(buf)",
  references: ["Bernstein et al., 2018, https://arxiv.org/abs/1802.04434", "peers: pytorch_optimizer.SignSGD; optax.signum"],
  hyperparameters: {
    lr: rate(1e-3, "Learning rate; with a schedule, its base rate"),
    momentum: { ...rate(0.9, "Decay rate of momentum_buffer"), maximum: 1 },
    weight_decay: l2OrDecay,
    decoupled_weight_decay: decouples(true),
    maximize,
    state_dtype: stateDtype,
  },
  variants: {
    "signum with coupled decay": { momentum: 0.4, weight_decay: 0.1, decoupled_weight_decay: false, maximize: true },
    signum: { weight_decay: 0.1 },
  },
  slots: () => ["momentum_buffer"],
  allSlots: ["momentum_buffer"],
  moments: { momentum_buffer: "signed" },
  lateSlots: [],
  hasNoStepInTorch: true,
  stages: (values) => [
    {
      kernel: "signum",
      operands: ["param", "grad", "momentum_buffer"],
      sums: 0,
      scalars: ({ lr }) => [...decayScalars(values, lr), 1 - values.momentum, lr],
    },
  ],
});
