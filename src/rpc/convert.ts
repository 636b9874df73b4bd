import type { ConvertParams } from "../generated/wire.gen.ts";
import { convertState } from "../interchange/convert.ts";
import type { Method } from "./method.ts";

/** Method state.convert: converts a state to and from the formats of torch, qhoptim and optax, and between optimizers of a family. */
export const convert: Method<ConvertParams> = {
  name: "state.convert",
  summary: "Converts a state: to or from the formats of torch, qhoptim and optax, to another optimizer of its family, or to more slots",
  params: "convert.schema.json",
  result: "convert-result.schema.json",
  rest: { verb: "POST", path: "/v1/state/convert" },

  async handle(call, { engine, blobs, lease, queueTime }) {
    const { state, from = { format: "stepd" }, to = { format: "stepd" }, optimizer, fill = [], state_dtype: stateDtype } = await blobs.load(call, lease);
    const input = { state, from, to, optimizer, fill, stateDtype };
    return engine.withState(state, (run) => convertState(input, lease, run, (...moments) => engine.convertMoments(...moments, lease, queueTime, run)));
  },
};
