import type { PlanParams } from "../generated/wire.gen.ts";
import type { Method } from "./method.ts";

/** Method optimizer.plan: estimates the cost of a step from shapes and dtypes alone. */
export const plan: Method<PlanParams> = {
  name: "optimizer.plan",
  summary: "Estimates the cost of a step from shapes and dtypes alone: bytes in and out, state, memory, number of calls",
  params: "plan.schema.json",
  result: "plan-result.schema.json",
  rest: { verb: "POST", path: "/v1/plan" },

  handle(call, { engine, lease }) {
    return engine.plan(call, lease);
  },
};
