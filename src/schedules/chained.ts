import { StepdError } from "../errors/errors.ts";
import { defineSchedule, schedules } from "./_define.ts";

/**
 * Runs several schedules at the same time. Their factors of the base rate multiply, as in torch's ChainedScheduler.
 *
 *   lr_t = lr * f_1(t) * ... * f_n(t), f_i(t) = rate of schedules[i] at step t, divided by lr
 */
export default defineSchedule({
  name: "chained",
  title: "ChainedSchedule",
  torch: "ChainedScheduler",
  formula: "lr_t = lr times the factors of all schedules at step t; a factor is the schedule's rate divided by lr",
  references: ["peers: torch.optim.lr_scheduler.ChainedScheduler; products of optax schedules"],
  arguments: {
    schedules: schedules("Schedules that multiply the base rate: all but one_cycle and cyclic, which set it"),
  },
  prepare({ schedules: parts }, { field, nested }) {
    const evaluators = parts.map((part, index) => nested(part, `/schedules/${index}`));
    return (lr, step) => {
      const rates = evaluators.map((evaluate) => evaluate(lr, step));
      const setter = rates.findIndex(({ peak }) => peak !== undefined);
      if (setter >= 0) {
        throw StepdError.mismatch("INVALID_PARAMS", `${field}/schedules/${setter}`, "a schedule that multiplies the base rate", "one that sets the rate");
      }
      // The first rate is used as it is, so that one schedule alone keeps its bits. A base rate of 0 has no factors, and stays 0.
      return { lr: lr === 0 ? 0 : rates.reduce((product, { lr: rate }, index) => (index === 0 ? rate : product * (rate / lr)), lr) };
    };
  },
});
