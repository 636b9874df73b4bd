import { maximize } from "./_adam.ts";
import { defineOptimizer, pair, rate } from "./_define.ts";

/**
 * Rprop: each element has a step size of its own, which grows while the gradient keeps its sign and shrinks when it turns, as in torch.
 *
 *   s <- clamp(s * (g*prev > 0 ? eta_plus : g*prev < 0 ? eta_minus : 1), step_sizes)
 *   g <- 0 where g*prev < 0
 *   p <- p - sign(g)*s,  prev <- g
 *
 * lr is the first step size of all elements, and has no effect afterwards: a schedule does not change the steps. optax.rprop applies each
 * step one call later, so its parameters are those of the step before. Gradients must be those of the whole data, not of a batch.
 */
export default defineOptimizer({
  name: "rprop",
  title: "Rprop",
  revision: 1,
  family: "rprop",
  formula:
    "s = clamp(s * (g*prev > 0 ? eta_plus : g*prev < 0 ? eta_minus : 1), step_sizes); g = 0 where g*prev < 0; p -= sign(g)*s; prev = g (first step: s = lr)",
  references: ["Riedmiller & Braun, 1993, https://doi.org/10.1109/ICNN.1993.298623", "peer: torch.optim.Rprop"],
  hyperparameters: {
    lr: rate(1e-2, "Step size of the first step"),
    etas: pair([0.5, 1.2], "Factors of the step size: below 1 where the gradient's sign turns, above 1 where it stays"),
    step_sizes: pair([1e-6, 50], "Smallest and largest step size"),
    maximize,
  },
  variants: {
    rprop: {},
    "rprop, maximizing": { lr: 0.1, etas: [0.3, 2], step_sizes: [0.05, 0.25], maximize: true },
  },
  slots: () => ["prev", "step_size"],
  allSlots: ["prev", "step_size"],
  lateSlots: [],
  check: ({ etas: [minus, plus], step_sizes: [smallest, greatest] }) => {
    if (!(minus > 0 && minus < 1 && plus > 1))
      return { field: "etas", expected: "a number between 0 and 1, then a number above 1", found: `[${minus}, ${plus}]` };
    if (!(smallest >= 0 && smallest <= greatest))
      return { field: "step_sizes", expected: "two numbers of at least 0 in ascending order", found: `[${smallest}, ${greatest}]` };
    return undefined;
  },
  stages: ({ etas, step_sizes }) => [
    {
      kernel: "rprop",
      operands: ["param", "grad", "prev", "step_size"],
      sums: 0,
      scalars: ({ lr, isFirst }) => [...etas, ...step_sizes, isFirst ? lr : 0],
    },
  ],
});
