import type { NormsParams, Value } from "../generated/wire.gen.ts";
import { beginReceipt } from "./_receipt.ts";
import type { Method } from "./method.ts";

/** Method optimizer.norms: the first phase of a step that is sharded over several calls. The second is optimizer.step with clip.total_norm. */
export const norms: Method<NormsParams> = {
  name: "optimizer.norms",
  summary: "Computes sums of squares of gradients by tensor, for exact clipping over several calls",
  params: "norms.schema.json",
  result: "norms-result.schema.json",
  rest: { verb: "POST", path: "/v1/norms" },

  async handle(call, { engine, blobs, lease, receipts, queueTime }) {
    const draft = beginReceipt("optimizer.norms", call, receipts);
    const loaded = await blobs.load(call, lease);
    // Norms divide the gradients in place, and a step divides them itself.
    const isChanged = (call.loss_scale ?? 1) !== 1;
    const grads = call.reply?.cache === true ? blobs.unchangedGrads(loaded.grads, isChanged, lease) : undefined;
    const norms = await engine.norms(loaded, lease, queueTime, draft);
    const cached = grads && (await blobs.keepGrads(grads, lease));
    const result = { ...norms, ...(cached && { cached }) };
    return draft ? { ...result, receipt: await draft.finish({ grad_norm: wireValue(norms.grad_norm) }) } : result;
  },
};

/** Returns a number as JSON expresses it: NaN and infinity are strings. */
const wireValue = (value: number): Value => (Number.isFinite(value) ? value : (String(value) as Value));
