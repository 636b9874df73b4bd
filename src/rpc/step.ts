import type { StepOptions } from "../engine/engine.ts";
import type { StepParams } from "../generated/wire.gen.ts";
import { Memo } from "./_memo.ts";
import { planOf } from "./_optimizer.ts";
import type { Method } from "./method.ts";

/** optimizer.step: new parameters and new state, or an error and nothing changed. */
export const step: Method<StepParams> = {
  name: "optimizer.step",
  summary: "One optimizer update: parameters, gradients and state in, new parameters and new state out",
  params: "step.schema.json",
  result: "step-result.schema.json",
  rest: { verb: "POST", path: "/v1/step" },

  async handle(call, { engine, blobs, lease, telemetry, waits, words }) {
    const options = memo.of(words, () => optionsOf(call));
    await using delivery = await blobs.delivery(call);
    const { params, grads, state = null } = await blobs.load(call, lease);
    const made = await engine.step(options, { params, grads, state }, lease, waits);
    const { report, elements } = made;
    if (report.skipped) telemetry.nonFinite();
    else telemetry.stepped(options.plan.optimizer.name, elements);
    return { ...(await delivery.deliver(made)), ...report };
  },
};

const memo = new Memo<StepOptions>();

const optionsOf = (call: StepParams): StepOptions => ({
  plan: planOf(call.optimizer, call.groups, call.schedule),
  clip: call.clip ?? {},
  lossScale: call.loss_scale ?? 1,
  nonFinite: call.non_finite ?? "error",
  stats: call.stats ?? "none",
  masterWeights: call.master_weights ?? false,
  seed: call.stochastic_rounding?.seed,
  roundsReply: call.reply?.params === "bf16",
});
