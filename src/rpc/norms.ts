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
    const norms = await engine.norms(await blobs.load(call, lease), lease, queueTime, draft);
    return draft ? { ...norms, receipt: await draft.finish({ grad_norm: wireValue(norms.grad_norm) }) } : norms;
  },
};

/** Returns a number as JSON expresses it: NaN and infinity are strings. */
const wireValue = (value: number): Value => (Number.isFinite(value) ? value : (String(value) as Value));
