import type { InitParams } from "../generated/wire.gen.ts";
import type { Method } from "./method.ts";

/** optimizer.init: the state before the first step. A first step without a state gives the same result. */
export const init: Method<InitParams> = {
  name: "optimizer.init",
  summary: "The state before the first step: starting values, step 0",
  params: "init.schema.json",
  result: "init-result.schema.json",
  rest: { verb: "POST", path: "/v1/init" },

  async handle(call, { engine, blobs, lease, waits }) {
    return { state: await engine.init(await blobs.load(call, lease), lease, waits) };
  },
};
