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

  async handle(call, { engine, blobs, lease, telemetry, waits }) {
    const plan = planOf(call.optimizer, call.groups, call.schedule);
    await using delivery = await blobs.delivery(call);
    const { params, grads, state = null } = await blobs.load(call, lease);
    const {
      elements,
      params: whole,
      rounded,
      isRecoverable,
      state: next,
      ...result
    } = await engine.step(
      {
        plan,
        params,
        grads,
        state,
        clip: call.clip ?? {},
        lossScale: call.loss_scale ?? 1,
        nonFinite: call.non_finite ?? "error",
        stats: call.stats ?? "none",
        masterWeights: call.master_weights ?? false,
        seed: call.stochastic_rounding?.seed,
        roundsReply: call.reply?.params === "bf16",
      },
      lease,
      waits,
    );
    if (result.skipped) telemetry.nonFinite();
    else telemetry.stepped(plan.optimizer.name, elements);
    return { ...(await delivery.deliver({ params: whole, rounded, state: next, isRecoverable })), ...result };
  },
};
