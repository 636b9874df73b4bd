import { cosineDecay, interpolate } from "../math/cosine.ts";
import { defineSchedule, number, steps } from "./_define.ts";

/**
 * The rate rises linearly to the base rate, falls along half a cosine to eta_min, and stays there.
 *
 *   w = warmup_steps, n = total_steps
 *   lr_t = lr * (start_factor + (1 - start_factor) * t / w) for t < w
 *   lr_t = eta_min + (lr - eta_min) * (1 + cos(pi * (t - w) / (n - w))) / 2 up to n, then eta_min
 */
export default defineSchedule({
  name: "warmup_cosine",
  title: "WarmupCosineSchedule",
  torch: "SequentialLR",
  formula:
    "lr_t = lr times a line from start_factor to 1 in warmup_steps steps, then eta_min + (lr - eta_min) * (1 + cos(pi * (t - warmup_steps) / (total_steps - warmup_steps))) / 2 up to total_steps, then eta_min",
  references: [
    "Loshchilov & Hutter, 2017, https://arxiv.org/abs/1608.03983",
    "peers: optax.warmup_cosine_decay_schedule; transformers.get_cosine_schedule_with_warmup",
  ],
  arguments: {
    warmup_steps: steps("Steps up to the base rate", 0),
    total_steps: steps("Steps up to eta_min, the warm-up included", 1),
    start_factor: number("Factor of the base rate in the first step", { minimum: 0 }, 0),
    eta_min: number("The lowest rate", { minimum: 0 }, 0),
  },
  check: ({ warmup_steps, total_steps }) =>
    warmup_steps < total_steps ? undefined : { field: "/warmup_steps", expected: `less than total_steps, ${total_steps}`, found: `${warmup_steps}` },
  prepare:
    ({ warmup_steps, total_steps, start_factor, eta_min }) =>
    (lr, step) => {
      if (step < warmup_steps) return { lr: lr * interpolate(start_factor, 1, (warmup_steps - step) / warmup_steps) };
      return { lr: step >= total_steps ? eta_min : interpolate(lr, eta_min, cosineDecay(step - warmup_steps, total_steps - warmup_steps)) };
    },
});
