import { defineSchedule, number, optionalSteps } from "./_define.ts";

/**
 * Multiplies the base rate by a factor for the first total_iters steps, then uses the base rate. Without total_iters the factor stays.
 *
 *   lr_t = lr * factor for t < total_iters, then lr
 */
export default defineSchedule({
  name: "constant",
  title: "ConstantSchedule",
  torch: "ConstantLR",
  formula: "lr_t = lr * factor for t < total_iters, or always if it is null, then lr",
  references: ["peer: torch.optim.lr_scheduler.ConstantLR"],
  arguments: {
    factor: number("Factor of the base rate before step total_iters", { minimum: 0, maximum: 1 }, 1 / 3),
    total_iters: { ...optionalSteps("Number of steps with the factor; null is all steps", 0), default: 5 },
  },
  prepare:
    ({ factor, total_iters }) =>
    (lr, step) => ({ lr: total_iters === null || step < total_iters ? lr * factor : lr }),
});
