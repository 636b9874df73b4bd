import { power as powerOf } from "../math/power.ts";
import { defineSchedule, number, steps } from "./_define.ts";

/**
 * The rate falls to 0 with a power of the remaining fraction of total_iters.
 *
 *   lr_t = lr * (1 - min(t, total_iters) / total_iters)^power
 */
export default defineSchedule({
  name: "polynomial",
  title: "PolynomialSchedule",
  torch: "PolynomialLR",
  formula: "lr_t = lr * (1 - min(t, total_iters) / total_iters)^power",
  references: ["peers: torch.optim.lr_scheduler.PolynomialLR; optax.polynomial_schedule with end_value 0"],
  arguments: {
    total_iters: steps("Steps until the rate is 0", 1, 5),
    power: number("Exponent: any number of at least 0, not only integers", { minimum: 0 }, 1),
  },
  prepare:
    ({ total_iters, power }) =>
    (lr, step) => ({ lr: lr * powerOf(Math.max(total_iters - step, 0) / total_iters, power) }),
});
