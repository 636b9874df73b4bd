import type { DistancesParams } from "../generated/wire.gen.ts";
import type { Method } from "./method.ts";

/** Method optimizer.distances: returns the squared distances between updates. Krum and similar rules use them to select updates. */
export const distances: Method<DistancesParams> = {
  name: "optimizer.distances",
  summary: "Computes the squared distances between updates",
  params: "distances.schema.json",
  result: "distances-result.schema.json",
  rest: { verb: "POST", path: "/v1/distances" },

  async handle(call, { engine, blobs, lease, queueTime }) {
    return { distances: await engine.distances(await blobs.load(call, lease), lease, queueTime) };
  },
};
