import { cosineDecay, interpolate } from "../math/cosine.ts";
import { defineSchedule, number, steps } from "./_define.ts";

/**
 * SGDR: the rate falls along half a cosine from the base rate to eta_min and restarts after each period. Each period is T_mult times
 * as long as the period before.
 *
 *   lr_t = eta_min + (lr - eta_min) * (1 + cos(pi * T_cur / T_i)) / 2, T_i = T_0 * T_mult^i
 */
export default defineSchedule({
  name: "cosine_warm_restarts",
  title: "CosineWarmRestartsSchedule",
  torch: "CosineAnnealingWarmRestarts",
  formula: "lr_t = eta_min + (lr - eta_min) * (1 + cos(pi * T_cur / T_i)) / 2, T_cur steps after the last restart, T_i = T_0 * T_mult^i",
  references: ["Loshchilov & Hutter, 2017, https://arxiv.org/abs/1608.03983", "peer: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts"],
  arguments: {
    T_0: steps("Steps until the first restart", 1),
    T_mult: steps("Factor from the length of one period to the next", 1, 1),
    eta_min: number("The lowest rate", { minimum: 0 }, 0),
  },
  prepare:
    ({ T_0, T_mult, eta_min }) =>
    (lr, step) => {
      let period = T_0;
      let rest = step;
      if (T_mult === 1) rest %= period;
      else {
        // The loop ends after at most 53 rounds, because the period at least doubles each time and steps end at 2^53.
        while (rest >= period) {
          rest -= period;
          period *= T_mult;
        }
      }
      return { lr: interpolate(lr, eta_min, cosineDecay(rest, period)) };
    },
});
