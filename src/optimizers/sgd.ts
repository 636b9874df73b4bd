import { defineOptimizer, flag, number, rate, stateDtype } from "./_define.ts";

/**
 * SGD with momentum, dampening and Nesterov's form, as in torch.
 *
 *   g <- g + weight_decay * p
 *   buf <- momentum*buf + (1-dampening)*g;  at the first step buf <- g, without dampening
 *   p <- p - lr * (nesterov ? g + momentum*buf : buf)
 *
 * Without momentum there is no buffer, and p <- p - lr * g.
 */
export default defineOptimizer({
  name: "sgd",
  title: "SGD",
  revision: 2,
  family: "sgd",
  formula: "g += weight_decay*p; buf = momentum*buf + (1-dampening)*g (first step: buf = g); p -= lr * (nesterov ? g + momentum*buf : momentum ? buf : g)",
  references: ["Sutskever, Martens, Dahl & Hinton, 2013, https://proceedings.mlr.press/v28/sutskever13.html", "peer: torch.optim.SGD"],
  hyperparameters: {
    lr: rate(1e-3, "Learning rate; with a schedule, its base rate"),
    momentum: rate(0, "Decay rate of momentum_buffer; 0 keeps no buffer"),
    dampening: number(0, "Fraction of each new gradient that is not added to the buffer"),
    weight_decay: rate(0, "Weight decay (L2): weight_decay times the parameter is added to the gradient"),
    nesterov: flag("Nesterov momentum: step along the gradient plus momentum times the buffer"),
    maximize: flag("Go up the gradient instead of down"),
    state_dtype: stateDtype,
  },
  variants: {
    sgd: { lr: 0.1 },
    "sgd with momentum and dampening": { lr: 0.1, momentum: 0.9, dampening: 0.1, weight_decay: 0.01 },
    "sgd with Nesterov, maximizing": { lr: 0.1, momentum: 0.9, nesterov: true, maximize: true },
  },
  slots: ({ momentum }) => (momentum === 0 ? [] : ["momentum_buffer"]),
  allSlots: ["momentum_buffer"],
  moments: { momentum_buffer: "signed" },
  lateSlots: ["momentum_buffer"],
  fills: { momentum_buffer: null },
  hasNoStepInTorch: true,
  check: ({ nesterov, momentum, dampening }) => {
    if (!nesterov) return undefined;
    if (momentum === 0) return { field: "nesterov", expected: "false where momentum is 0", found: "true" };
    if (dampening !== 0) return { field: "nesterov", expected: "false where dampening is not 0", found: "true" };
    return undefined;
  },
  stages: ({ momentum, dampening, weight_decay, nesterov }) =>
    momentum === 0
      ? [{ kernel: "sgd", operands: ["param", "grad"], sums: 0, scalars: ({ lr }) => [weight_decay, lr] }]
      : [
          {
            kernel: "sgd_momentum",
            operands: ["param", "grad", "momentum_buffer"],
            sums: 0,
            scalars: ({ lr, isFirst }) => [weight_decay, lr, isFirst ? 0 : momentum, isFirst ? 1 : 1 - dampening, nesterov ? momentum : 0],
          },
        ],
});
