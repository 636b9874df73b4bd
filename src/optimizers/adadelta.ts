import { maximize } from "./_adam.ts";
import { defineOptimizer, number, rate, stateDtype } from "./_define.ts";

/**
 * Adadelta, as in torch: eps is added under both roots.
 *
 *   s <- rho*s + (1-rho)*g^2
 *   d = sqrt(acc + eps) / sqrt(s + eps) * g,  acc <- rho*acc + (1-rho)*d^2
 *   p <- p - lr*d
 */
export default defineOptimizer({
  name: "adadelta",
  title: "Adadelta",
  revision: 1,
  family: "adadelta",
  formula: "g += weight_decay*p; s = lerp(s, g^2, 1-rho); d = sqrt(acc + eps)/sqrt(s + eps) * g; acc = lerp(acc, d^2, 1-rho); p -= lr*d",
  references: ["Zeiler, 2012, https://arxiv.org/abs/1212.5701", "peer: torch.optim.Adadelta"],
  hyperparameters: {
    lr: rate(1, "Learning rate; with a schedule, its base rate"),
    rho: { ...number(0.9, "Decay rate of square_avg and acc_delta", 0), maximum: 1 },
    eps: rate(1e-6, "Added under both roots"),
    weight_decay: rate(0, "Weight decay (L2): weight_decay times the parameter is added to the gradient"),
    maximize,
    state_dtype: stateDtype,
  },
  variants: {
    adadelta: { weight_decay: 0.01 },
    "adadelta with small rho": { rho: 0.3, maximize: true },
  },
  slots: () => ["square_avg", "acc_delta"],
  allSlots: ["square_avg", "acc_delta"],
  moments: { square_avg: "square", acc_delta: "square" },
  lateSlots: [],
  squareSlots: ["square_avg"],
  stages: ({ rho, eps, weight_decay }) => [
    { kernel: "adadelta", operands: ["param", "grad", "square_avg", "acc_delta"], sums: 0, scalars: ({ lr }) => [weight_decay, 1 - rho, lr, eps] },
  ],
});
