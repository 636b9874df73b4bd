import { repeatedSquaring } from "../math/power.ts";
import { eps, maximize } from "./_adam.ts";
import { betas, defineOptimizer, rate, stateDtype } from "./_define.ts";
import { averageBy, averaging, averagingScalars, averagingSlots, checkBeta } from "./_schedule_free.ts";

/**
 * Schedule-free AdamW, as in schedulefree. The parameters are y; optimizer.average returns x, with which a model is evaluated.
 *
 *   v <- beta2*v + (1-beta2)*g^2,  u = g / (sqrt(v / (1-beta2^t)) + eps) + weight_decay*y
 *   y <- y + c*(z - y) - lr * (1 - beta1*(1-c)) * u,  z <- z - lr*u
 *
 * c = weight_t / (sum of weights), weight_t = t^r * lr_max^weight_lr_power. At the first step z = y. There is no first moment.
 */
export default defineOptimizer({
  name: "schedule_free_adamw",
  title: "Schedule-free AdamW",
  revision: 1,
  family: "schedule_free_adamw",
  formula:
    "v = lerp(v, g^2, 1-beta2); u = g/(sqrt(v/(1-beta2^t)) + eps) + weight_decay*p; c = w_t/(w_1 + ... + w_t), w_t = t^r * lr_max^weight_lr_power; p += c*(z - p) - lr*(1 - beta1*(1-c))*u; z -= lr*u (first step: z = p before it); average: p + (1 - 1/beta1)*(z - p)",
  references: ["Defazio et al., 2024, https://arxiv.org/abs/2405.15682", "peer: schedulefree.AdamWScheduleFree"],
  hyperparameters: {
    lr: rate(2.5e-3, "Learning rate; with a schedule, its base rate"),
    betas: betas([0.9, 0.999], "Weight of the average x in the parameters, more than 0, and decay rate of exp_avg_sq"),
    eps: eps(1e-8),
    weight_decay: rate(0, "Weight decay: weight_decay times the parameter is added to the scaled gradient"),
    ...averaging,
    maximize,
    state_dtype: stateDtype,
  },
  variants: {
    schedule_free_adamw: {},
    "schedule_free_adamw with warm-up and decay, maximizing": { warmup_steps: 3, r: 1, weight_lr_power: 1, weight_decay: 0.01, maximize: true },
  },
  slots: () => ["z", "exp_avg_sq"],
  allSlots: ["z", "exp_avg_sq"],
  moments: { exp_avg_sq: "square" },
  squareSlots: ["exp_avg_sq"],
  ...averagingSlots,
  check: ({ betas: [beta1] }) => checkBeta("betas", beta1),
  average: ({ betas: [beta1] }) => averageBy(beta1),
  stages: (values) => [
    {
      kernel: "schedule_free_adamw",
      operands: ["param", "grad", "z", "exp_avg_sq"],
      sums: 0,
      scalars: (context) => {
        const root2 = Math.sqrt(1 - repeatedSquaring(values.betas[1], context.step));
        return [values.weight_decay, 1 - values.betas[1], root2, values.eps * root2, ...averagingScalars(values, values.betas[0], context)];
      },
    },
  ],
});
