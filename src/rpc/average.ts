import type { AverageParams } from "../generated/wire.gen.ts";
import type { Method } from "./method.ts";

/** Method optimizer.average: returns the parameters with which a model is evaluated. Training goes on with the parameters of the step. */
export const average: Method<AverageParams> = {
  name: "optimizer.average",
  summary: "Returns the averaged parameters, with which a model is evaluated",
  params: "average.schema.json",
  result: "average-result.schema.json",
  rest: { verb: "POST", path: "/v1/average" },

  async handle(call, { engine, blobs, lease, queueTime }) {
    return { params: await engine.average(await blobs.load(call, lease), lease, queueTime) };
  },
};
