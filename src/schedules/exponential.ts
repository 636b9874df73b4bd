import { wholePower } from "../math/power.ts";
import { defineSchedule, number } from "./_define.ts";

/**
 * Multiplies the rate by gamma at every step.
 *
 *   lr_t = lr * gamma^t
 *
 * optax.exponential_decay without staircase is this schedule with gamma = decay_rate^(1 / transition_steps).
 */
export default defineSchedule({
  name: "exponential",
  title: "ExponentialSchedule",
  torch: "ExponentialLR",
  formula: "lr_t = lr * gamma^t",
  references: ["peers: torch.optim.lr_scheduler.ExponentialLR; optax.exponential_decay with gamma = decay_rate^(1 / transition_steps)"],
  arguments: { gamma: number("Factor of the rate per step", { minimum: 0 }) },
  prepare:
    ({ gamma }) =>
    (lr, step) => ({ lr: lr * wholePower(gamma, step) }),
});
