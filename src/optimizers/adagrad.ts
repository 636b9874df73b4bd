import { maximize } from "./_adam.ts";
import { defineOptimizer, rate } from "./_define.ts";

/**
 * Adagrad, as in torch.
 *
 *   sum <- sum + g^2
 *   p <- p - lr / (1 + (t-1)*lr_decay) * g / (sqrt(sum) + eps)
 *
 * sum starts at initial_accumulator_value.
 */
export default defineOptimizer({
  name: "adagrad",
  title: "Adagrad",
  revision: 1,
  family: "adagrad",
  formula: "g += weight_decay*p; sum += g^2; p -= lr/(1 + (t-1)*lr_decay) * g/(sqrt(sum) + eps)",
  references: ["Duchi, Hazan & Singer, 2011, https://jmlr.org/papers/v12/duchi11a.html", "peer: torch.optim.Adagrad"],
  hyperparameters: {
    lr: rate(1e-2, "Learning rate; with a schedule, its base rate"),
    lr_decay: rate(0, "Learning rate decay: step t divides the rate by 1 + (t-1)*lr_decay"),
    weight_decay: rate(0, "Weight decay (L2): weight_decay times the parameter is added to the gradient"),
    initial_accumulator_value: rate(0, "Initial value of sum"),
    eps: rate(1e-10, "Added to the root"),
    maximize,
  },
  variants: {
    adagrad: { lr_decay: 0.1, weight_decay: 0.01, initial_accumulator_value: 0.5 },
    "adagrad, maximizing": { maximize: true },
  },
  slots: () => ["sum"],
  allSlots: ["sum"],
  lateSlots: [],
  squareSlots: ["sum"],
  initial: ({ initial_accumulator_value }) => ({ sum: initial_accumulator_value }),
  stages: ({ lr_decay, weight_decay, eps }) => [
    { kernel: "adagrad", operands: ["param", "grad", "sum"], sums: 0, scalars: ({ lr, step }) => [weight_decay, lr / (1 + (step - 1) * lr_decay), eps] },
  ],
});
