import { choice, defineOptimizer, number, rate, stateDtype } from "./_define.ts";

/**
 * QHM: a weighted mean of plain SGD and momentum. The buffer is a running mean.
 *
 *   g <- g + weight_decay * p (weight_decay_type "grad")
 *   buf <- momentum*buf + (1-momentum)*g
 *   p <- p - lr * (nu*buf + (1-nu)*g);  with weight_decay_type "direct" also - lr*weight_decay*p
 *
 * From the first step on, the buffer differs from SGD's. nu 0 is SGD, bit for bit; nu 1 is SGD with momentum at lr*(1-momentum).
 */
export default defineOptimizer({
  name: "qhm",
  title: "QHM",
  revision: 2,
  family: "qhm",
  formula: "g += weight_decay*p (type grad); buf = lerp(buf, g, 1-momentum); p -= lr*weight_decay*p (type direct) + lr * (nu*buf + (1-nu)*g)",
  references: ["Ma & Yarats, 2019, https://arxiv.org/abs/1810.06801", "peer: qhoptim.pyt.QHM"],
  hyperparameters: {
    lr: rate(undefined, "Learning rate; with a schedule, its base rate. The paper's experiments use 1 with momentum 0.999 and nu 0.7"),
    momentum: rate(undefined, "Decay rate of momentum_buffer"),
    nu: number(undefined, "Weight of the buffer, relative to the current gradient"),
    weight_decay: rate(0, "Weight decay: a multiple of the parameter"),
    weight_decay_type: choice(["grad", "direct"], "grad", "Add the decay to the gradient, or subtract lr times it from the parameter"),
    state_dtype: stateDtype,
  },
  variants: {
    qhm: { lr: 0.5, momentum: 0.9, nu: 0.7, weight_decay: 0.01 },
    "qhm, direct decay": { lr: 0.5, momentum: 0.999, nu: 0.7, weight_decay: 0.01, weight_decay_type: "direct" },
  },
  slots: () => ["momentum_buffer"],
  allSlots: ["momentum_buffer"],
  moments: { momentum_buffer: "signed" },
  lateSlots: [],
  fills: { momentum_buffer: null },
  hasNoStepInTorch: true,
  stages: ({ momentum, nu, weight_decay, weight_decay_type }) => [
    {
      kernel: "qhm",
      operands: ["param", "grad", "momentum_buffer"],
      sums: 0,
      scalars: ({ lr }) => [
        weight_decay_type === "grad" ? weight_decay : 0,
        weight_decay_type === "direct" ? lr * weight_decay : 0,
        1 - momentum,
        lr * nu,
        lr * (1 - nu),
      ],
    },
  ],
});
