import { inTurns } from "../codec/turns.ts";
import { encodeGrads, filePieces } from "../engine/engine.ts";
import type { ReduceParams } from "../generated/wire.gen.ts";
import { beginReceipt } from "./_receipt.ts";
import type { Method } from "./method.ts";

/** Method optimizer.reduce: combines updates into a pseudo-gradient, from which optimizer.step computes a federated or outer step. */
export const reduce: Method<ReduceParams> = {
  name: "optimizer.reduce",
  summary: "Combines the updates of several clients into one pseudo-gradient",
  params: "reduce.schema.json",
  result: "reduce-result.schema.json",
  rest: { verb: "POST", path: "/v1/reduce" },

  async handle(call, { engine, blobs, lease, telemetry, receipts, queueTime }) {
    const draft = beginReceipt("optimizer.reduce", call, receipts);
    const reduced = await engine.reduce(await blobs.load(call, lease), lease, queueTime, draft);
    telemetry.countReduced(reduced.elements);
    const grads = await encodeGrads(reduced);
    if (reduced.grads) draft?.addOutput("grads", await inTurns(filePieces(reduced.grads)));
    if (reduced.accumulator) draft?.addOutput("accumulator", reduced.accumulator.pieces);
    const receipt = draft && (await draft.finish({ skipped: reduced.report.skipped }));
    return { ...(grads && { grads }), ...(reduced.accumulator && { accumulator: reduced.accumulator }), ...reduced.report, ...(receipt && { receipt }) };
  },
};
