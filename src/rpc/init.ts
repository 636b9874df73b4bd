import type { InitParams } from "../generated/wire.gen.ts";
import { beginReceipt } from "./_receipt.ts";
import type { Method } from "./method.ts";

/** Method optimizer.init: creates the state before the first step. A call of optimizer.step without a state starts from the same one. */
export const init: Method<InitParams> = {
  name: "optimizer.init",
  summary: "Creates the state before the first step: initial values, step 0",
  params: "init.schema.json",
  result: "init-result.schema.json",
  rest: { verb: "POST", path: "/v1/init" },

  async handle(call, { engine, blobs, lease, receipts, queueTime }) {
    const draft = beginReceipt("optimizer.init", call, receipts);
    const state = await engine.init(await blobs.load(call, lease), lease, queueTime, draft);
    draft?.addOutput("state", state.pieces);
    return { state, ...(draft && { receipt: await draft.finish({ step: 0 }) }) };
  },
};
