import { realPower } from "../math/real-power.ts";
import { decayScalars, decouples, l2OrDecay, lr, maximize, momentBetas, momentSlots } from "./_adam.ts";
import { defineOptimizer, flag, rate, stateDtype } from "./_define.ts";

/**
 * ADOPT: each gradient is divided by the second moment of the earlier ones, and the quotients are averaged.
 *
 *   n = g / max(sqrt(v), eps), clamped to [-(t-1)^clip_exp, (t-1)^clip_exp]
 *   m <- beta1*m + (1-beta1)*n          p <- p - lr*m          v <- beta2*v + (1-beta2)*g^2
 *
 * The first step only sets v to g^2: no parameter moves or decays. clip_exp is 1/4 in the authors' code and in optax, 0.333 in timm;
 * pytorch_optimizer clamps to t^(1/4). optax has no weight decay.
 */
export default defineOptimizer({
  name: "adopt",
  title: "ADOPT",
  revision: 2,
  family: "adopt",
  formula: "n = clamp(g/max(sqrt(v), eps), +-(t-1)^clip_exp); m = lerp(m, n, 1-beta1); p -= lr*m; v = lerp(v, g^2, 1-beta2); first step: v = g^2 alone",
  references: ["Taniguchi et al., 2024, https://arxiv.org/abs/2411.02853", "peers: optax.contrib.adopt; timm.optim.Adopt (clip_exp 0.333)"],
  hyperparameters: {
    lr,
    betas: momentBetas([0.9, 0.9999]),
    eps: rate(1e-6, "Lower bound of the root of exp_avg_sq"),
    use_clipping: flag("Clamp the quotients to the range that clip_exp gives", true),
    clip_exp: rate(0.25, "The quotients of step t are clamped to (t-1)^clip_exp"),
    weight_decay: l2OrDecay,
    decoupled_weight_decay: decouples(false),
    maximize,
    state_dtype: stateDtype,
  },
  variants: {
    "adopt without clipping": { use_clipping: false, betas: [0.4, 0.3], maximize: true },
    "adopt with coupled decay": { weight_decay: 0.01, clip_exp: 0.1 },
    adopt: { weight_decay: 0.01, decoupled_weight_decay: true },
  },
  slots: () => momentSlots,
  allSlots: momentSlots,
  moments: { exp_avg: "signed", exp_avg_sq: "square" },
  lateSlots: [],
  squareSlots: ["exp_avg_sq"],
  stages: (values) => [
    {
      kernel: "adopt",
      operands: ["param", "grad", ...momentSlots],
      sums: 0,
      scalars: ({ lr, step }) => {
        const {
          betas: [beta1, beta2],
          eps,
          use_clipping,
          clip_exp,
        } = values;
        const clip = use_clipping && step > 1 ? Math.min(realPower(step - 1, clip_exp), Number.MAX_VALUE) : 0;
        return [...decayScalars(values, lr), 1 - beta1, 1 - beta2, lr, eps, clip, step === 1 ? 1 : 0];
      },
    },
  ],
});
