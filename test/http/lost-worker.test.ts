/**
 * Tests a step that loses a worker in the middle. The service repeats the step if its inputs are intact; otherwise the caller
 * must send the step again.
 */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { readConfig } from "../../src/config.ts";
import { StepdError } from "../../src/errors/errors.ts";
import { Service } from "../../src/service.ts";
import { type Place, SharedFolder } from "../blobs/_folder.ts";
import { JSON_TYPE, MSGPACK, pack, unpack } from "../support/service.ts";
import { readTensors, writeTensors } from "../support/tensors.ts";
import { requireResult, sgdBody } from "./_client.ts";

/** A tensor of this size goes to the workers, not to the main thread. */
const ELEMENTS = 300_000;

const folder = new SharedFolder();
let service: Service;

before(async () => {
  const env = { STEPD_PORT: "0", STEPD_ARENA_MIB: "32", STEPD_WORKERS: "2", STEPD_LOG_LEVEL: "silent", STEPD_SHARED_DIR: folder.path };
  service = await Service.start(readConfig(env));
});
after(async () => {
  await service[Symbol.asyncDispose]();
  folder[Symbol.dispose]();
});

/** Makes the next `count` jobs write their results and then report a lost worker. */
const loseWorkers = (count: number): void => {
  const run = service.pool.run.bind(service.pool);
  let left = count;
  service.pool.run = async (units, lease) => {
    await run(units, lease);
    if (--left === 0) service.pool.run = run;
    throw new StepdError("WORKER_LOST", "A worker thread died during this call; nothing was changed, send it again", { retry_after: 1 });
  };
};

const post = (path: string, body: Uint8Array | string, type: string): Promise<Response> =>
  fetch(`${service.address}${path}`, { method: "POST", body: body as BodyInit, headers: { "Content-Type": type } });

const tensors = (value: number): Uint8Array => writeTensors({ w: { shape: [ELEMENTS], data: new Float32Array(ELEMENTS).fill(value) } });
const optimizer = { name: "sgd", lr: 1 };

test("a step on sent bytes gets 503 with Retry-After over RPC and REST, and succeeds when sent again", async () => {
  loseWorkers(1);
  const refused = await post("/v1/step", sgdBody(ELEMENTS, 3), MSGPACK);
  assert.deepEqual([refused.status, refused.headers.get("retry-after")], [503, "1"]);
  await refused.arrayBuffer();
  loseWorkers(1);
  const body = pack({ jsonrpc: "2.0", id: 1, method: "optimizer.step", params: { optimizer, params: tensors(3), grads: tensors(1) } });
  const rpc = await post("/rpc", body, MSGPACK);
  const { error } = unpack(Buffer.from(await rpc.arrayBuffer())) as { error: { code: number; data: { name: string; retry_after: number } } };
  assert.deepEqual([rpc.status, rpc.headers.get("retry-after"), error.code, error.data.name, error.data.retry_after], [503, "1", -32029, "WORKER_LOST", 1]);
  const again = await post("/v1/step", sgdBody(ELEMENTS, 3), MSGPACK);
  assert.equal(again.status, 200);
  requireResult(new Uint8Array(await again.arrayBuffer()), ELEMENTS, 2);
});

test("a step on a shared file is repeated, with the right result", async () => {
  const [params, grads] = folder.write("blobs", tensors(3), tensors(1)) as [Place, Place];
  loseWorkers(1);
  const reply = await post("/v1/step", pack({ optimizer, params, grads }), MSGPACK);
  assert.equal(reply.status, 200);
  await reply.arrayBuffer();
  const data = readTensors(folder.read(params))["w"]?.data;
  assert.ok(data?.length === ELEMENTS && data.every((value) => value === 2));
});

test("a step on lists of numbers is repeated once", async () => {
  const list = (value: number) => ({ w: { shape: [ELEMENTS], values: new Array<number>(ELEMENTS).fill(value) } });
  const body = JSON.stringify({ optimizer, params: list(3), grads: list(1) });
  loseWorkers(1);
  const reply = await post("/v1/step", body, JSON_TYPE);
  assert.equal(reply.status, 200);
  const { params } = (await reply.json()) as { params: { w: { values: number[] } } };
  assert.ok(params.w.values.length === ELEMENTS && params.w.values.every((value) => value === 2));
  loseWorkers(2);
  assert.equal((await post("/v1/step", body, JSON_TYPE)).status, 503);
});
