import type { StepOutput } from "../engine/engine.ts";
import { StepdError } from "../errors/errors.ts";
import type { StepParams } from "../generated/wire.gen.ts";
import { beginReceipt, stepDigests } from "./_receipt.ts";
import type { Method } from "./method.ts";

/** Method optimizer.step: returns new parameters and new state, or an error without any change. */
export const step: Method<StepParams> = {
  name: "optimizer.step",
  summary: "Runs one optimizer step: takes parameters, gradients and state, returns new parameters and new state",
  params: "step.schema.json",
  result: "step-result.schema.json",
  rest: { verb: "POST", path: "/v1/step" },

  async handle(call, { engine, blobs, lease, telemetry, receipts, queueTime, template }) {
    requireGradients(call);
    const draft = beginReceipt("optimizer.step", call, receipts);
    const runStep = async (): Promise<StepOutput> => engine.step(await blobs.load(call, lease), lease, queueTime, template, draft);
    const { delivered, result } = await blobs.deliver(call, lease, async () => {
      const computed = await runStep().catch((error) => {
        if (!isWorkerLost(error) || !isInputIntact(call)) throw error;
        return runStep();
      });
      const output = draft ? { ...computed, digests: await stepDigests(draft, computed) } : computed;
      if (output.reduced) telemetry.countReduced(output.reduced.elements);
      if (output.report.reduce?.skipped) return output;
      if (output.report.skipped) telemetry.countNonFinite();
      else for (const [optimizer, elements] of Object.entries(output.elements)) telemetry.countElements(optimizer, elements);
      return output;
    });
    blobs.releaseGrads(call);
    if (!draft) return { ...delivered, ...result.report };
    const { step, skipped } = result.report;
    return { ...delivered, ...result.report, receipt: await draft.finish({ step, skipped }) };
  },
};

/** Throws INVALID_PARAMS unless the call has either gradients or updates. A schema that says so would spoil generated clients. */
const requireGradients = ({ grads, reduce }: StepParams): void => {
  if (grads === undefined && reduce === undefined) throw StepdError.mismatch("INVALID_PARAMS", "/grads", "gradients, or updates in reduce", "none");
  if (grads !== undefined && reduce !== undefined) throw StepdError.mismatch("INVALID_PARAMS", "/grads", "none beside reduce", "gradients");
};

const isWorkerLost = (error: unknown): boolean => error instanceof StepdError && error.code === "WORKER_LOST";

/** True if a failed step left its inputs intact. Steps overwrite blobs of the request, but not files, cached blobs or lists of numbers. */
const isInputIntact = ({ params, grads, state }: StepParams): boolean => ![params, grads, state].some((source) => source instanceof Uint8Array);
