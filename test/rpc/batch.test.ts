/** Tests that a batch does not occupy the main thread until its end. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { type Request, Rpc, type Services } from "../../src/rpc/rpc.ts";

test("other work runs between the calls of a batch", async () => {
  const services = { blobs: () => ({ seconds: 0 }), telemetry: { ran: () => {} } } as unknown as Services;
  const rpc = new Rpc("0.0.0", services);
  const calls = Array.from({ length: 10 }, (_, id) => ({ jsonrpc: "2.0", id, method: "optimizer.list" }));
  let turns = 0;
  let next = setImmediate(function count() {
    turns++;
    next = setImmediate(count);
  });
  const { value } = await rpc.handle(calls, {} as Request, "r", () => {});
  clearImmediate(next);
  assert.equal((value as unknown[]).length, 10);
  assert.ok(turns >= 9, `${turns} turns`);
});
