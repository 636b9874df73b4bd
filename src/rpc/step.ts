import { StepdError } from "../errors/errors.ts";
import type { StepParams } from "../generated/wire.gen.ts";
import { planOf } from "./_optimizer.ts";
import type { Method } from "./method.ts";

/** optimizer.step: new parameters and new state, or an error and nothing changed. */
export const step: Method<StepParams> = {
  name: "optimizer.step",
  summary: "One optimizer update: parameters, gradients and state in, new parameters and new state out",
  params: "step.schema.json",
  result: "step-result.schema.json",
  rest: { verb: "POST", path: "/v1/step" },

  async handle({ optimizer, groups, params, grads, state = null, non_finite: nonFinite = "error", ...rest }, { engine, lease, telemetry }) {
    requireNothingToCome(rest);
    const plan = planOf(optimizer, groups);
    const { elements, computeSeconds, queueSeconds, ...result } = await engine.step({ plan, params, grads, state, nonFinite }, lease);
    telemetry.stepped(plan.optimizer.name, "F32", elements, { compute: computeSeconds, queue: queueSeconds });
    return result;
  },
};

/** Fields of the contract that this version does not do yet. */
const requireNothingToCome = ({ stats = "none", ...rest }: Pick<StepParams, "schedule" | "clip" | "loss_scale" | "stats">): void => {
  const [name] = Object.entries(rest).find(([, value]) => value !== undefined) ?? (stats === "none" ? [] : ["stats"]);
  if (name) throw StepdError.mismatch("NOT_SUPPORTED", `/${name}`, "no value: this version does not do it yet", "a value");
};
