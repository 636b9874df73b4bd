import { defineSchedule, optionalSteps, steps } from "./_define.ts";

/** The timescale without a warm-up, as in transformers. */
const DEFAULT_TIMESCALE = 10_000;

/**
 * The rate rises linearly from 0 to the base rate, then falls with the inverse square root of the step.
 *
 *   lr_t = lr * t / warmup_steps for t < warmup_steps, then lr / sqrt((t - warmup_steps + timescale) / timescale)
 */
export default defineSchedule({
  name: "inverse_sqrt",
  title: "InverseSqrtSchedule",
  torch: "LambdaLR",
  formula: "lr_t = lr * t / warmup_steps for t < warmup_steps, then lr / sqrt((t - warmup_steps + timescale) / timescale)",
  references: ["Vaswani et al., 2017, https://arxiv.org/abs/1706.03762", "peer: transformers.get_inverse_sqrt_schedule"],
  arguments: {
    warmup_steps: steps("Steps from 0 to the base rate", 0, 0),
    timescale: optionalSteps("Steps that divide the rate by the root of 2, after the warm-up; null is warmup_steps, or 10,000 without a warm-up", 1),
  },
  prepare: ({ warmup_steps, timescale }) => {
    const scale = timescale ?? (warmup_steps === 0 ? DEFAULT_TIMESCALE : warmup_steps);
    return (lr, step) => ({
      lr: step < warmup_steps ? (lr * step) / warmup_steps : lr / Math.sqrt((step - warmup_steps + scale) / scale),
    });
  },
});
