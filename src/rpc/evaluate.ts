import { setImmediate } from "node:timers/promises";
import { StepdError } from "../errors/errors.ts";
import type { EvaluateParams } from "../generated/wire.gen.ts";
import { prepare, type Rates } from "../schedules/registry.ts";
import type { Method } from "./method.ts";

/** Steps evaluated between two yields to other calls. The slowest schedules take 3 us per step, and a range has at most 10,000. */
const STEPS_PER_YIELD = 5000;

/** schedule.evaluate: the learning rates that optimizer.step uses, for a range of steps. */
export const evaluate: Method<EvaluateParams> = {
  name: "schedule.evaluate",
  summary: "Learning rates, and momentums where they cycle, for a range of steps of a schedule",
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
