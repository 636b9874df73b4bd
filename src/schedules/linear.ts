import { interpolate } from "../math/cosine.ts";
import { defineSchedule, number, steps } from "./_define.ts";

/**
 * The rate moves linearly from one fraction of the base rate to another and then stays constant.
 *
 *   lr_t = lr * (start_factor + (end_factor - start_factor) * min(t, total_iters) / total_iters)
 *
 * With start_factor 1/k this is the warm-up of Goyal et al. With start_factor 0 it is a warm-up from 0, as in optax. torch rejects
 * start_factor 0, because it computes each rate from the one before.
 */
export default defineSchedule({
  name: "linear",
  title: "LinearSchedule",
  torch: "LinearLR",
  formula: "lr_t = lr * (start_factor + (end_factor - start_factor) * min(t, total_iters) / total_iters)",
  references: ["Goyal et al., 2017, https://arxiv.org/abs/1706.02677", "peers: torch.optim.lr_scheduler.LinearLR; optax.linear_schedule"],
  arguments: {
    start_factor: number("Factor of the base rate at the first step", { minimum: 0, maximum: 1 }, 1 / 3),
    end_factor: number("Factor of the base rate from step total_iters on", { minimum: 0, maximum: 1 }, 1),
    total_iters: steps("Steps from start_factor to end_factor", 1, 5),
  },
  prepare:
    ({ start_factor, end_factor, total_iters }) =>
    (lr, step) => ({ lr: lr * interpolate(start_factor, end_factor, Math.max(total_iters - step, 0) / total_iters) }),
});
