import { defineSchedule, number, steps } from "./_define.ts";

/**
 * A fraction of the base rate at first, then the base rate.
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
    factor: number("What the rate is multiplied by at first", { minimum: 0, maximum: 1 }, 1 / 3),
    total_iters: steps("Steps with the factor", 0, 5),
  },
  prepare:
    ({ factor, total_iters }) =>
    (lr, step) => ({ lr: step < total_iters ? lr * factor : lr }),
});
