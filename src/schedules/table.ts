import { defineSchedule, rates } from "./_define.ts";

/**
 * Takes each step's rate from a list, and the last one for all later steps. The optimizer's lr is unused.
 *
 *   lr_t = lrs[min(t, length - 1)]
 */
export default defineSchedule({
  name: "table",
  title: "TableSchedule",
  torch: "LambdaLR",
  formula: "lr_t = lrs[min(t, length - 1)]",
  references: ["peer: a callable or an array of rates in optax"],
  arguments: { lrs: rates("The rates of the steps, from the first one; later steps have the last rate") },
  prepare:
    ({ lrs }) =>
    (_, step) => ({ lr: lrs[Math.min(step, lrs.length - 1)] as number }),
});
