import type { NormsParams } from "../generated/wire.gen.ts";
import type { Method } from "./method.ts";

/** Method optimizer.norms: the first phase of a step that is sharded over several calls. The second is optimizer.step with clip.total_norm. */
export const norms: Method<NormsParams> = {
  name: "optimizer.norms",
  summary: "Computes sums of squares of gradients by tensor, for exact clipping over several calls",
  params: "norms.schema.json",
  result: "norms-result.schema.json",
  rest: { verb: "POST", path: "/v1/norms" },

  async handle(call, { engine, blobs, lease, queueTime }) {
    return engine.norms(await blobs.load(call, lease), lease, queueTime);
  },
};
