import { wholePower } from "../math/power.ts";
import { defineSchedule, number, steps } from "./_define.ts";

/**
 * Multiplies the rate by gamma once every step_size steps.
 *
 *   lr_t = lr * gamma^floor(t / step_size)
 */
export default defineSchedule({
  name: "step",
  title: "StepSchedule",
  torch: "StepLR",
  formula: "lr_t = lr * gamma^floor(t / step_size)",
  references: ["peer: torch.optim.lr_scheduler.StepLR"],
  arguments: {
    step_size: steps("Steps between two decays", 1),
    gamma: number("Factor of the rate per decay", { minimum: 0 }, 0.1),
  },
  prepare:
    ({ step_size, gamma }) =>
    (lr, step) => ({ lr: lr * wholePower(gamma, (step - (step % step_size)) / step_size) }),
});
