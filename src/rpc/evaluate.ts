import { setImmediate } from "node:timers/promises";
import { StepdError } from "../errors/errors.ts";
import type { EvaluateParams } from "../generated/wire.gen.ts";
import { prepare, type Rates } from "../schedules/registry.ts";
import type { Method } from "./method.ts";

/** Evaluation yields to other calls after this many steps. The slowest schedules take 3 us per step; a call has at most 10,000 steps. */
const STEPS_PER_YIELD = 5000;

/** Method schedule.evaluate: returns the learning rates that optimizer.step uses, for a range of steps. */
export const evaluate: Method<EvaluateParams> = {
  name: "schedule.evaluate",
  summary: "Evaluates a schedule for a range of steps: learning rates, and momentums if the schedule cycles them",
  params: "evaluate.schema.json",
  result: "evaluate-result.schema.json",
  rest: { verb: "POST", path: "/v1/schedule" },

  async handle({ schedule, lr = 1e-3, from = 0, count = 1 }) {
    if (from + count > Number.MAX_SAFE_INTEGER) {
      throw StepdError.mismatch("INVALID_PARAMS", "/count", `at most ${Number.MAX_SAFE_INTEGER - from} steps from there`, `${count}`);
    }
    const evaluator = prepare(schedule);
    const rates: Rates[] = [];
    while (rates.length < count) {
      rates.push(evaluator(lr, from + rates.length));
      if (rates.length % STEPS_PER_YIELD === 0) await setImmediate();
    }
    const hasMomentum = rates.some(({ momentum }) => momentum !== undefined);
    return { lrs: rates.map((rate) => rate.lr), ...(hasMomentum && { momentums: rates.map(({ momentum = null }) => momentum) }) };
  },
};
