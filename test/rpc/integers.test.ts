/** Tests that integers in results are MessagePack integers of any size, and that real numbers are floats. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { decode } from "@msgpack/msgpack";
import { Members, plainOf } from "../../src/codec/members.ts";
import { integersOf } from "../../src/rpc/_integers.ts";
import { MSGPACK, pack, TestService } from "../support/service.ts";
import { writeState, writeTensors } from "../support/tensors.ts";

let service: TestService;
before(async () => {
  service = await TestService.start({ STEPD_WORKERS: "1" });
});
after(() => service[Symbol.asyncDispose]());

/** Returns the type byte of the value of a map member. The member must occur once. */
const typeOf = (bytes: Buffer, key: string): number => {
  const name = Buffer.concat([Buffer.from([0xa0 | key.length]), Buffer.from(key)]);
  const at = bytes.indexOf(name);
  assert.ok(at >= 0 && bytes.indexOf(name, at + 1) < 0, key);
  return bytes[at + name.length] as number;
};

const post = async (path: string, params: unknown): Promise<Buffer> => Buffer.from(await (await service.post(path, pack(params), MSGPACK)).arrayBuffer());

const INT64 = 0xd3;
const FLOAT64 = 0xcb;

test("the byte counts of a large plan are integers, over RPC, REST and in a batch", async () => {
  const params = { optimizer: { name: "adamw" }, tensors: { w: { shape: [2 ** 34] } } };
  const call = { jsonrpc: "2.0", id: 2 ** 40, method: "optimizer.plan", params };
  for (const [path, body] of [
    ["/v1/plan", params],
    ["/rpc", call],
    ["/rpc", [call]],
  ] as const) {
    const reply = await post(path, body);
    for (const key of ["parameters", "bytes_in", "bytes_out", "state_bytes", "arena_bytes"]) assert.equal(typeOf(reply, key), INT64, key);
  }
  const plan = decode(await post("/v1/plan", params), { useBigInt64: true }) as Record<string, bigint>;
  assert.equal(plan["parameters"], 2n ** 34n);
});

test("steps above 2^32 are integers in replies and inspected states", async () => {
  const zeros = { w: { shape: [1], data: new Float32Array(1) } };
  const state = writeState({ optimizer: "adam", steps: { w: 2 ** 40 }, slots: { exp_avg: zeros, exp_avg_sq: zeros } });
  const tensors = writeTensors(zeros);
  // From the second step on, the service uses a cached layout.
  for (let time = 0; time < 3; time++) {
    const reply = await post("/v1/step", { optimizer: { name: "adam" }, params: tensors, grads: tensors, state });
    assert.equal(typeOf(reply, "step"), INT64);
    assert.equal((decode(reply) as { step: number }).step, 2 ** 40 + 1);
  }
  assert.equal(typeOf(await post("/v1/state/inspect", { state }), "step"), INT64);
});

test("integers of members created during encoding are converted", () => {
  const members = new Members(2, () => [
    ["a", { step: 2 ** 40, slots: {} }],
    ["b", { step: 1, slots: {} }],
  ]);
  const { tensors } = (integersOf("inspect-result.schema.json") as (value: unknown) => unknown)({ tensors: members }) as { tensors: typeof members };
  assert.deepEqual(plainOf(tensors), { a: { step: 2n ** 40n, slots: {} }, b: { step: 1, slots: {} } });
});

test("real numbers of any size stay floats", async () => {
  const reply = await post("/v1/norms", { grads: { w: { shape: [1], values: [2 ** 40] } } });
  assert.deepEqual([typeOf(reply, "grad_squares"), typeOf(reply, "grad_norm")], [FLOAT64, FLOAT64]);
});

test("only integers of the schema are converted, at any depth, in a copy", () => {
  const convert = integersOf("norms-result.schema.json");
  const norms = { tensors: { zeros: { grad_squares: 2 ** 40, zeros: 2 ** 40, non_finite: 1 } }, grad_norm: 2 ** 40 };
  assert.deepEqual(convert?.(norms), { tensors: { zeros: { grad_squares: 2 ** 40, zeros: 2n ** 40n, non_finite: 1 } }, grad_norm: 2 ** 40 });
  assert.equal(norms.tensors.zeros.zeros, 2 ** 40);
  const small = { tensors: {}, grad_norm: 1 };
  assert.equal(convert?.(small), small);
  assert.equal(integersOf("evaluate-result.schema.json"), undefined);
});
