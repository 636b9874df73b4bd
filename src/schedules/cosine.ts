import { cosineDecay, interpolate } from "../math/cosine.ts";
import { defineSchedule, number, steps } from "./_define.ts";

/**
 * The rate falls along half a cosine from the base rate to eta_min. After T_max it rises again, with period 2*T_max, as in torch.
 *
 *   lr_t = eta_min + (lr - eta_min) * (1 + cos(pi * t / T_max)) / 2
 */
export default defineSchedule({
  name: "cosine",
  title: "CosineSchedule",
  torch: "CosineAnnealingLR",
  formula: "lr_t = eta_min + (lr - eta_min) * (1 + cos(pi * t / T_max)) / 2",
  references: ["Loshchilov & Hutter, 2017, https://arxiv.org/abs/1608.03983", "peer: torch.optim.lr_scheduler.CosineAnnealingLR"],
  arguments: {
    T_max: steps("Steps from the base rate to eta_min", 1),
    eta_min: number("The lowest rate", { minimum: 0 }, 0),
  },
  prepare:
    ({ T_max, eta_min }) =>
    (lr, step) => {
      // Steps and T_max are integers, so the remainder is exact.
      const rest = step % T_max;
      const rising = ((step - rest) / T_max) % 2 === 1;
      return { lr: interpolate(lr, eta_min, cosineDecay(rising ? T_max - rest : rest, T_max)) };
    },
});
