import { maximize } from "./_adam.ts";
import { defineOptimizer, rate } from "./_define.ts";
import { averageBy, averaging, averagingScalars, averagingSlots, checkBeta } from "./_schedule_free.ts";

/**
 * Schedule-free SGD, as in schedulefree. The parameters are y; optimizer.average returns x, with which a model is evaluated.
 *
 *   g <- g + weight_decay*y
 *   y <- y + c*(z - y) - lr * (1 - momentum*(1-c)) * g,  z <- z - lr*g
 *
 * c = weight_t / (sum of weights), weight_t = t^r * lr_max^weight_lr_power. At the first step z = y.
 */
export default defineOptimizer({
  name: "schedule_free_sgd",
  title: "Schedule-free SGD",
  revision: 1,
  family: "schedule_free_sgd",
  formula:
    "g += weight_decay*p; c = w_t/(w_1 + ... + w_t), w_t = t^r * lr_max^weight_lr_power; p += c*(z - p) - lr*(1 - momentum*(1-c))*g; z -= lr*g (first step: z = p before it); average: p + (1 - 1/momentum)*(z - p)",
  references: ["Defazio et al., 2024, https://arxiv.org/abs/2405.15682", "peer: schedulefree.SGDScheduleFree"],
  hyperparameters: {
    lr: rate(1, "Learning rate; with a schedule, its base rate"),
    momentum: { ...rate(0.9, "Weight of the average x in the parameters; more than 0"), maximum: 1 },
    weight_decay: rate(0, "Weight decay (L2): weight_decay times the parameter is added to the gradient"),
    ...averaging,
    maximize,
  },
  variants: {
    schedule_free_sgd: { lr: 0.1, weight_decay: 0.01 },
    "schedule_free_sgd with warm-up, maximizing": { lr: 0.1, warmup_steps: 3, r: 1, weight_lr_power: 1, maximize: true },
  },
  slots: () => ["z"],
  allSlots: ["z"],
  ...averagingSlots,
  check: ({ momentum }) => checkBeta("momentum", momentum),
  average: ({ momentum }) => averageBy(momentum),
  stages: (values) => [
    {
      kernel: "schedule_free_sgd",
      operands: ["param", "grad", "z"],
      sums: 0,
      scalars: (context) => [values.weight_decay, ...averagingScalars(values, values.momentum, context)],
    },
  ],
});
