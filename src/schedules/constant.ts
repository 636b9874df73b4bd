import { defineSchedule, number, steps } from "./_define.ts";

/**
 * Multiplies the base rate by a factor for the first total_iters steps, then uses the base rate.
 *
 *   lr_t = lr * factor for t < total_iters, then lr
 */
export default defineSchedule({
  name: "constant",
  title: "ConstantSchedule",
  torch: "ConstantLR",
  formula: "lr_t = lr * factor for t < total_iters, then lr",
  references: ["peer: torch.optim.lr_scheduler.ConstantLR"],
  arguments: {
    factor: number("Factor of the base rate before step total_iters", { minimum: 0, maximum: 1 }, 1 / 3),
    total_iters: steps("Number of steps with the factor", 0, 5),
  },
  prepare:
    ({ factor, total_iters }) =>
    (lr, step) => ({ lr: step < total_iters ? lr * factor : lr }),
});
