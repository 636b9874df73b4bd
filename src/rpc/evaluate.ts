import { StepdError } from "../errors/errors.ts";
import type { EvaluateParams } from "../generated/wire.gen.ts";
import { prepare } from "../schedules/registry.ts";
import type { Method } from "./method.ts";

/** schedule.evaluate: the learning rates of a range of steps, as optimizer.step would use them. */
export const evaluate: Method<EvaluateParams> = {
  name: "schedule.evaluate",
  summary: "Learning rates, and momentums where they cycle, for a range of steps of a schedule",
  params: "evaluate.schema.json",
  result: "evaluate-result.schema.json",
  rest: { verb: "POST", path: "/v1/schedule" },

  handle({ schedule, lr = 1e-3, from = 0, count = 1 }) {
    if (from + count > Number.MAX_SAFE_INTEGER) {
      throw StepdError.mismatch("INVALID_PARAMS", "/count", `at most ${Number.MAX_SAFE_INTEGER - from} steps from there`, `${count}`);
    }
    const at = prepare(schedule);
    const rates = Array.from({ length: count }, (_, index) => at(lr, from + index));
    const cycles = rates.some(({ momentum }) => momentum !== undefined);
    return { lrs: rates.map((rate) => rate.lr), ...(cycles && { momentums: rates.map(({ momentum = null }) => momentum) }) };
  },
};
