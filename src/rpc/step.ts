import type { StepOptions, StepOutput } from "../engine/engine.ts";
import { StepdError } from "../errors/errors.ts";
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
    const take = async () => {
      const { params, grads, state = null } = await blobs.load(call, lease);
      return engine.step(options, { params, grads, state }, lease, waits);
    };
    let made: StepOutput;
    try {
      made = await take();
    } catch (error) {
      if (!isLost(error) || !isThere(call)) throw error;
      made = await take();
    }
    const { report, elements } = made;
    if (report.skipped) telemetry.nonFinite();
    else telemetry.stepped(options.plan.optimizer.name, elements);
    return { ...(await delivery.deliver(made)), ...report };
  },
};

const isLost = (error: unknown): boolean => error instanceof StepdError && error.code === "WORKER_LOST";

/** Whether the step overwrote nothing of the call: its bytes are in files or the cache, or it has lists of numbers. */
const isThere = ({ params, grads, state }: StepParams): boolean => ![params, grads, state].some((source) => source instanceof Uint8Array);

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
