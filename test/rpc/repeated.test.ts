/** Tests that the service answers each of several equal calls as it answers the first. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { gradsAt, SMALL, type StepReply, startParams } from "../support/run.ts";
import { MSGPACK, pack, type RpcError, readReply, TestService } from "../support/service.ts";
import { writeTensors } from "../support/tensors.ts";

/** From the fourth call on, a step uses a cached layout. */
const TIMES = 6;

let service: TestService;
before(async () => {
  service = await TestService.start();
});
after(() => service[Symbol.asyncDispose]());

const params = writeTensors(startParams(SMALL));
const grads = writeTensors(gradsAt(SMALL, 0));

/** Returns a step that continues after another step. */
const nextStep = async (optimizer: unknown, more = {}): Promise<Record<string, unknown>> => {
  const { state } = await service.call<StepReply>("optimizer.step", { optimizer, params, grads });
  return { optimizer, params, grads, state, ...more };
};

const post = async (path: string, body: unknown): Promise<unknown> => readReply(await service.post(path, pack(body), MSGPACK));

/** Returns a reply without the members that vary between calls. */
const plain = (reply: unknown): unknown => {
  const { request_id: _, ...rest } = reply as Record<string, unknown>;
  return rest;
};

const resultOf = (reply: unknown): unknown => (reply as { result: unknown }).result;

test("a call gets the same reply each time, over RPC and REST, with any id", async () => {
  const call = await nextStep({ name: "lamb" });
  const expected = await post("/v1/step", call);
  for (let id = 0; id < TIMES; id++) {
    assert.deepEqual(await post("/v1/step", call), expected);
    assert.deepEqual(await post("/rpc", { jsonrpc: "2.0", id, method: "optimizer.step", params: call }), { jsonrpc: "2.0", result: expected, id });
  }
});

test("a body accepted at one address is not accepted at another", async () => {
  const call = await nextStep({ name: "adam" });
  for (let time = 0; time < TIMES; time++) {
    assert.equal((plain(await post("/v1/norms", call)) as { name?: string }).name, "INVALID_PARAMS");
    assert.equal(typeof ((await post("/v1/step", call)) as StepReply).step, "number");
  }
});

test("a refused call is refused each time", async () => {
  const wrong = [
    { ...(await nextStep({ name: "adam" })), optimizer: { name: "adam", lr: -1 } },
    await nextStep({ name: "adam" }, { grads: writeTensors({ w: { shape: [2], data: new Float32Array(2) } }) }),
    await nextStep({ name: "adam" }, { grads: writeTensors({ b: { shape: [7], data: new Float32Array(7).fill(Number.NaN) } }) }),
    await nextStep({ name: "adamw" }, { reply: { state: "none" } }),
  ];
  for (const call of wrong) {
    const expected = plain(await post("/v1/step", call));
    assert.equal(typeof (expected as { name?: string }).name, "string");
    for (let time = 0; time < TIMES; time++) assert.deepEqual(plain(await post("/v1/step", call)), expected);
  }
});

test("the calls of a batch are distinguished", async () => {
  const calls = [await nextStep({ name: "sgd", lr: 0.5, momentum: 0.5 }), await nextStep({ name: "sgd", lr: 0.25, momentum: 0.5 })];
  const batch = calls.map((params, id) => ({ jsonrpc: "2.0", id, method: "optimizer.step", params }));
  const expected = await Promise.all(batch.map((call) => post("/rpc", call)));
  for (let time = 0; time < TIMES; time++) assert.deepEqual(await post("/rpc", batch), expected);
});

test("a step with a cached layout continues from its state, and refuses non-finite gradients", async () => {
  const optimizer = { name: "adamw", lr: 0.125 };
  let reply: StepReply = await service.call("optimizer.step", { optimizer, params, grads });
  for (let step = 2; step < 2 + TIMES; step++) {
    reply = await service.call<StepReply>("optimizer.step", { optimizer, params: reply.params, grads, state: reply.state });
    assert.equal(reply.step, step);
    const infinite = writeTensors({ ...gradsAt(SMALL, 0), b: { shape: [7], data: new Float32Array(7).fill(Number.POSITIVE_INFINITY) } });
    await assert.rejects(service.call("optimizer.step", { optimizer, params: reply.params, grads: infinite, state: reply.state }), (error: RpcError) => {
      assert.equal(error.data.name, "NON_FINITE_GRADIENT");
      return true;
    });
  }
});

test("params may be a list of one object, and an empty list or null means none", async () => {
  const call = await nextStep({ name: "lamb" });
  const expected = resultOf(await post("/rpc", { jsonrpc: "2.0", id: 1, method: "optimizer.step", params: call }));
  for (let id = 0; id < TIMES; id++) assert.deepEqual(resultOf(await post("/rpc", { jsonrpc: "2.0", id, method: "optimizer.step", params: [call] })), expected);
  const list = (params?: unknown) => post("/rpc", { jsonrpc: "2.0", id: 1, method: "optimizer.list", ...(params !== undefined && { params }) });
  for (const none of [[], [{}], {}, null]) assert.deepEqual(await list(none), await list());
  // A list in place of the object of a REST call must be refused.
  const { status } = (await post("/v1/step", [call])) as { status: number };
  assert.equal(status, 400);
});
