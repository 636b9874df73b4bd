import { wholePower } from "../math/power.ts";
import { defineSchedule, milestones, milestonesReached, number } from "./_define.ts";

/**
 * Multiplies the rate by gamma at each milestone. A milestone that is listed twice decays the rate twice, as in torch.
 *
 *   lr_t = lr * gamma^(number of milestones <= t)
 */
export default defineSchedule({
  name: "multistep",
  title: "MultistepSchedule",
  torch: "MultiStepLR",
  formula: "lr_t = lr * gamma^(number of milestones <= t)",
  references: ["peer: torch.optim.lr_scheduler.MultiStepLR"],
  arguments: {
    milestones: milestones("Steps at which the rate decays, in ascending order; one that is listed twice decays twice", 0),
    gamma: number("Factor of the rate per decay", { minimum: 0 }, 0.1),
  },
  check({ milestones: all }) {
    const index = all.findIndex((milestone, at) => milestone < (all[at - 1] ?? 0));
    if (index === -1) return undefined;
    return { field: `/milestones/${index}`, expected: `at least ${all[index - 1]}, the milestone before it`, found: `${all[index]}` };
  },
  prepare:
    ({ milestones: all, gamma }) =>
    (lr, step) => ({ lr: lr * wholePower(gamma, milestonesReached(all, step)) }),
});
