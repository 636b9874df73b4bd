import { cosineFall, mix } from "../math/cosine.ts";
import { defineSchedule, number, steps } from "./_define.ts";

/**
 * SGDR: half a cosine from the base rate to eta_min, again and again, each T_mult times as long as the one before.
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
    T_mult: steps("How many times as long each period is as the one before", 1, 1),
    eta_min: number("The least rate", { minimum: 0 }, 0),
  },
  prepare:
    ({ T_0, T_mult, eta_min }) =>
    (lr, step) => {
      let period = T_0;
      let rest = step;
      if (T_mult === 1) rest %= period;
      else {
        // At most 53 rounds: each takes more than half of what is left at T_mult 2.
        while (rest >= period) {
          rest -= period;
          period *= T_mult;
        }
      }
      return { lr: mix(lr, eta_min, cosineFall(rest, period)) };
    },
});
