import type { StepOutput } from "../engine/engine.ts";
import { StepdError } from "../errors/errors.ts";
import type { StepParams } from "../generated/wire.gen.ts";
import type { Method } from "./method.ts";

/** optimizer.step: new parameters and new state, or an error and nothing changed. */
export const step: Method<StepParams> = {
  name: "optimizer.step",
  summary: "One optimizer update: parameters, gradients and state in, new parameters and new state out",
  params: "step.schema.json",
  result: "step-result.schema.json",
  rest: { verb: "POST", path: "/v1/step" },

  async handle(call, { engine, blobs, lease, telemetry, waits }) {
    await using delivery = await blobs.delivery(call);
    const take = async () => engine.step(await blobs.load(call, lease), lease, waits);
    let made: StepOutput;
    try {
      made = await take();
    } catch (error) {
      if (!isLost(error) || !isThere(call)) throw error;
      made = await take();
    }
    const { report, elements } = made;
    if (report.skipped) telemetry.nonFinite();
    else telemetry.stepped(call.optimizer.name, elements);
    return { ...(await delivery.deliver(made)), ...report };
  },
};

const isLost = (error: unknown): boolean => error instanceof StepdError && error.code === "WORKER_LOST";

/** Whether the step overwrote nothing of the call: its bytes are in files or the cache, or it has lists of numbers. */
const isThere = ({ params, grads, state }: StepParams): boolean => ![params, grads, state].some((source) => source instanceof Uint8Array);
