import type { NormsParams } from "../generated/wire.gen.ts";
import type { Method } from "./method.ts";

/** optimizer.norms: phase one of a step over several calls. optimizer.step with clip.total_norm is phase two. */
export const norms: Method<NormsParams> = {
  name: "optimizer.norms",
  summary: "Sums of squares of gradients by tensor, for exact clipping over several calls",
  params: "norms.schema.json",
  result: "norms-result.schema.json",
  rest: { verb: "POST", path: "/v1/norms" },

  handle({ grads, params, loss_scale: lossScale = 1 }, { engine, lease, waits }) {
    return engine.norms(grads, params, lossScale, lease, waits);
  },
};
