import { cosineDecay, interpolate } from "../math/cosine.ts";
import { choice, defineSchedule, number, steps } from "./_define.ts";

/** The fraction of the fall that is left after `part` of `whole` steps. */
const LEFT = {
  linear: (part: number, whole: number) => (whole - part) / whole,
  cosine: cosineDecay,
  "1-sqrt": (part: number, whole: number) => 1 - Math.sqrt(part / whole),
} as const;

/**
 * The rate rises linearly to the base rate, stays there, and falls at the end.
 *
 *   m = min_lr_ratio, w = warmup_steps, s = w + stable_steps, d = decay_steps, x = (t - s) / d
 *   lr_t = lr * (m + (1 - m) * t / w) for t < w, then lr up to s, then lr * (m + (1 - m) * left(x)) up to s + d, then lr * m
 *   left(x) = 1 - x, (1 + cos(pi * x)) / 2 or 1 - sqrt(x), by decay_type
 */
export default defineSchedule({
  name: "warmup_stable_decay",
  title: "WarmupStableDecaySchedule",
  torch: "LambdaLR",
  formula:
    "lr_t = lr times a line from min_lr_ratio to 1 in warmup_steps steps, then lr for stable_steps, then down to lr * min_lr_ratio in decay_steps by 1 - x, (1 + cos(pi * x)) / 2 or 1 - sqrt(x)",
  references: ["Hu et al., 2024, https://arxiv.org/abs/2404.06395", "peer: transformers.get_wsd_schedule"],
  arguments: {
    warmup_steps: steps("Steps up to the base rate", 0),
    stable_steps: steps("Steps at the base rate", 0),
    decay_steps: steps("Steps down to the last rate", 1),
    decay_type: choice("Shape of the fall", ["linear", "cosine", "1-sqrt"], "cosine"),
    min_lr_ratio: number("Ratio of the first and the last rate to the base rate", { minimum: 0, maximum: 1 }, 0),
  },
  prepare:
    ({ warmup_steps, stable_steps, decay_steps, decay_type, min_lr_ratio }) =>
    (lr, step) => {
      if (step < warmup_steps) return { lr: lr * interpolate(min_lr_ratio, 1, (warmup_steps - step) / warmup_steps) };
      const part = step - warmup_steps - stable_steps;
      if (part <= 0) return { lr };
      return { lr: lr * (part >= decay_steps ? min_lr_ratio : interpolate(1, min_lr_ratio, LEFT[decay_type](part, decay_steps))) };
    },
});
