import { StepdError } from "../errors/errors.ts";
import { cosineDecay, interpolate } from "../math/cosine.ts";
import { choice, defineSchedule, flag, number, steps } from "./_define.ts";

/** A phase of the cycle, with the rate and the momentum at its start and end. `end` is a step number, possibly fractional. */
interface Phase {
  readonly end: number;
  readonly lr: readonly [number, number];
  readonly momentum: readonly [number, number];
}

/**
 * 1cycle: the rate rises from max_lr / div_factor to max_lr, then falls to a fraction of its start. The momentum moves the opposite
 * way. The optimizer's lr is unused, as in torch.
 *
 *   initial = max_lr / div_factor, min = initial / final_div_factor, n = total_steps
 *   two phases:   initial -> max_lr at pct_start*n - 1, -> min at n - 1
 *   three phases: initial -> max_lr at pct_start*n - 1, -> initial at 2*pct_start*n - 2, -> min at n - 1
 *
 * Steps from total_steps on are rejected. torch accepts the step at total_steps, beyond its last phase, and rejects later steps.
 */
export default defineSchedule({
  name: "one_cycle",
  title: "OneCycleSchedule",
  torch: "OneCycleLR",
  formula:
    "max_lr/div_factor -> max_lr at t = pct_start*total_steps - 1 -> max_lr/div_factor/final_div_factor at t = total_steps - 1; three_phase goes back to max_lr/div_factor at t = 2*pct_start*total_steps - 2 before; no steps after",
  references: ["Smith & Topin, 2017, https://arxiv.org/abs/1708.07120", "peer: torch.optim.lr_scheduler.OneCycleLR"],
  arguments: {
    max_lr: number("The highest rate", { minimum: 0 }),
    total_steps: steps("Steps of the whole cycle", 1),
    pct_start: number("Fraction of the cycle in which the rate rises", { minimum: 0, maximum: 1 }, 0.3),
    anneal_strategy: choice("Shape of the curve between two rates", ["cos", "linear"], "cos"),
    cycle_momentum: flag("Cycle the momentum, or the first of betas, inversely to the rate", true),
    base_momentum: number("The lowest momentum, where the rate is highest", { minimum: 0, exclusiveMaximum: 1 }, 0.85),
    max_momentum: number("The highest momentum", { minimum: 0, exclusiveMaximum: 1 }, 0.95),
    div_factor: number("Ratio of max_lr to the first rate", { exclusiveMinimum: 0 }, 25),
    final_div_factor: number("Ratio of the first rate to the last", { exclusiveMinimum: 0 }, 1e4),
    three_phase: flag("Fall to the first rate in as many steps as the rise, then to the last rate", false),
  },
  prepare(
    { max_lr, total_steps, pct_start, anneal_strategy, cycle_momentum, base_momentum, max_momentum, div_factor, final_div_factor, three_phase },
    { field },
  ) {
    const initial = max_lr / div_factor;
    const least = initial / final_div_factor;
    const up: Phase = { end: pct_start * total_steps - 1, lr: [initial, max_lr], momentum: [max_momentum, base_momentum] };
    const down: Phase[] = three_phase
      ? [
          { end: 2 * pct_start * total_steps - 2, lr: [max_lr, initial], momentum: [base_momentum, max_momentum] },
          { end: total_steps - 1, lr: [initial, least], momentum: [max_momentum, max_momentum] },
        ]
      : [{ end: total_steps - 1, lr: [max_lr, least], momentum: [base_momentum, max_momentum] }];
    const phases = [up, ...down];

    return (_, step) => {
      if (step >= total_steps) throw StepdError.mismatch("INVALID_PARAMS", `${field}/total_steps`, `more than the ${step} steps taken`, `${total_steps}`);
      const index = phases.findIndex(({ end }) => step <= end);
      const phase = phases[index] as Phase;
      const start = phases[index - 1]?.end ?? 0;
      const between = interpolatorOf(anneal_strategy, step - start, phase.end - start);
      return { lr: between(phase.lr), peak: max_lr, ...(cycle_momentum && { momentum: between(phase.momentum) }) };
    };
  },
});

/** Returns a function that interpolates between two values. A phase of length 0 returns the second value. */
const interpolatorOf = (strategy: "cos" | "linear", part: number, whole: number): ((ends: readonly [number, number]) => number) => {
  const left = whole === 0 ? 0 : strategy === "cos" ? cosineDecay(part, whole) : (whole - part) / whole;
  return ([from, to]) => interpolate(from, to, left);
};
