import { defineSchedule, milestones, milestonesReached, schedules } from "./_define.ts";

/**
 * Runs several schedules one after another. Each starts at its own step 0 and from the base rate, as in torch's SequentialLR.
 *
 *   lr_t = schedules[i] at t - milestones[i-1], i = number of milestones <= t
 */
export default defineSchedule({
  name: "sequence",
  title: "SequenceSchedule",
  torch: "SequentialLR",
  formula: "lr_t = schedules[i] at step t - milestones[i-1] with the same base rate, i = number of milestones <= t",
  references: ["peers: torch.optim.lr_scheduler.SequentialLR; optax.join_schedules"],
  arguments: {
    schedules: schedules("One schedule more than milestones; a schedule may be a sequence itself"),
    milestones: milestones("Steps at which the next schedule begins, in ascending order", 1),
  },
  check({ schedules: parts, milestones: all }) {
    if (all.length !== parts.length - 1) {
      return { field: "/milestones", expected: `${parts.length - 1} milestones, one fewer than schedules`, found: `${all.length}` };
    }
    const index = all.findIndex((milestone, at) => milestone <= (all[at - 1] ?? 0));
    if (index === -1) return undefined;
    return { field: `/milestones/${index}`, expected: `more than ${all[index - 1]}, the milestone before it`, found: `${all[index]}` };
  },
  prepare({ schedules: parts, milestones: all }, { nested }) {
    const evaluators = parts.map((part, index) => nested(part, `/schedules/${index}`));
    return (lr, step) => {
      const index = milestonesReached(all, step);
      return (evaluators[index] as (typeof evaluators)[number])(lr, step - (all[index - 1] ?? 0));
    };
  },
});
