import { setImmediate } from "node:timers/promises";
import { StepdError } from "../errors/errors.ts";
import type { EvaluateParams } from "../generated/wire.gen.ts";
import { prepare, type Rates } from "../schedules/registry.ts";
import type { Method } from "./method.ts";

/** Steps between two looks at other calls: the slowest schedules take 3 us for a step, the largest range 10,000 of them. */
const SLICE = 5000;

/** schedule.evaluate: the learning rates of a range of steps, as optimizer.step would use them. */
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
    const at = prepare(schedule);
    const rates: Rates[] = [];
    while (rates.length < count) {
      rates.push(at(lr, from + rates.length));
      if (rates.length % SLICE === 0) await setImmediate();
    }
    const cycles = rates.some(({ momentum }) => momentum !== undefined);
    return { lrs: rates.map((rate) => rate.lr), ...(cycles && { momentums: rates.map(({ momentum = null }) => momentum) }) };
  },
};
