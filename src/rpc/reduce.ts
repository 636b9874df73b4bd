import { encodeGrads } from "../engine/engine.ts";
import type { ReduceParams } from "../generated/wire.gen.ts";
import type { Method } from "./method.ts";

/** Method optimizer.reduce: combines updates into a pseudo-gradient, from which optimizer.step computes a federated or outer step. */
export const reduce: Method<ReduceParams> = {
  name: "optimizer.reduce",
  summary: "Combines the updates of several clients into one pseudo-gradient",
  params: "reduce.schema.json",
  result: "reduce-result.schema.json",
  rest: { verb: "POST", path: "/v1/reduce" },

  async handle(call, { engine, blobs, lease, telemetry, queueTime }) {
    const reduced = await engine.reduce(await blobs.load(call, lease), lease, queueTime);
    telemetry.countReduced(reduced.elements);
    const grads = await encodeGrads(reduced);
    return { ...(grads && { grads }), ...(reduced.accumulator && { accumulator: reduced.accumulator }), ...reduced.report };
  },
};
