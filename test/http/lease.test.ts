/** Tests that a call releases its leases however it ends. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { JSON_TYPE, MSGPACK, pack, readReply, type TestService } from "../support/service.ts";
import { RawClient, requireHealthy, requireResult, serveSmall as serve, sgdBody, sgdParams, untilEmpty, untilMetric } from "./_client.ts";

const MIB = 2 ** 20;

for (const how of ["destroys", "ends"] as const) {
  test(`a client that ${how} its connection in mid-upload leaves nothing behind`, async () => {
    await using service = await serve();
    using client = await RawClient.connect(service);
    await client.hold(8 * MIB);
    client.send(Buffer.alloc(MIB));
    await untilMetric(service, "stepd_arena_used_bytes", (bytes) => bytes >= 8 * MIB);
    if (how === "destroys") client.socket.resetAndDestroy();
    else client.socket.end();
    await requireHealthy(service);
    assert.ok((await service.metric('stepd_request_seconds_count{method="unknown",outcome="CLIENT_GONE"}')) === 1);
  });
}

/** Sends a step whose reply far exceeds the socket buffers, and reads none of the reply. */
const stall = async (service: TestService): Promise<RawClient> => {
  const client = await RawClient.connect(service);
  const body = sgdBody(4 * MIB, 2);
  client.head("/v1/step", { "Content-Length": body.length });
  client.send(body);
  // The client stops reading at the first bytes of the reply.
  const begun = new Promise<boolean>((resolve) => {
    client.socket.once("data", () => {
      client.socket.pause();
      resolve(true);
    });
  });
  assert.ok(await Promise.race([begun, client.closed().then(() => false)]), "the connection ended before the reply");
  assert.ok((await service.metric("stepd_arena_used_bytes")) > 32 * MIB);
  return client;
};

test("a client that disconnects in mid-reply leaves nothing behind", async () => {
  await using service = await serve({ STEPD_ARENA_MIB: "64" });
  using client = await stall(service);
  client.socket.destroy();
  await requireHealthy(service);
});

test("a slow reader receives its whole reply while other calls are served", async () => {
  await using service = await serve({ STEPD_ARENA_MIB: "128" });
  using client = await stall(service);
  for (let i = 0; i < 5; i++) await service.call("optimizer.step", sgdParams(1_000_000, 9));
  client.socket.resume();
  const reply = await client.reply();
  assert.equal(reply?.status, 200);
  requireResult(reply.body, 4 * MIB, 1);
  await requireHealthy(service);
});

test("silence in an upload ends the connection after the idle timeout", async () => {
  await using service = await serve({ STEPD_IDLE_TIMEOUT_MS: "1000" });
  using client = await RawClient.connect(service);
  await client.hold(8 * MIB);
  client.send(Buffer.alloc(MIB));
  await client.closed();
  await requireHealthy(service);
});

test("a client that does not read its reply is cut off after the idle timeout", async () => {
  await using service = await serve({ STEPD_ARENA_MIB: "64", STEPD_IDLE_TIMEOUT_MS: "3000" });
  using _ = await stall(service);
  await requireHealthy(service);
});

test("unread replies are cut off after the request timeout, including one that waits behind another", async () => {
  await using service = await serve({ STEPD_ARENA_MIB: "64", STEPD_REQUEST_TIMEOUT_MS: "1000" });
  using client = await RawClient.connect(service);
  client.socket.pause();
  const evaluate = { jsonrpc: "2.0", method: "schedule.evaluate", params: { schedule: { name: "cosine", T_max: 10 }, from: 0, count: 10_000 } };
  const slow = pack(Array(100).fill(evaluate));
  for (let call = 0; call < 4; call++) {
    client.head("/rpc", { "Content-Length": slow.length });
    client.send(slow);
  }
  // This reply is ready before the replies in front of it, and larger than the socket buffers.
  const body = pack({ ...sgdParams(MIB, 3), optimizer: { name: "adamw" } });
  client.head("/v1/step", { "Content-Length": body.length });
  client.send(body);
  await untilMetric(service, 'stepd_refusals_total{reason="SLOW_REPLY"}', (count) => count > 0);
  await requireHealthy(service);
});

test("a call that takes longer than the idle timeout is answered", async () => {
  // The timeout is longer than any pause of this process while it sends and reads, even on a busy machine.
  const idleMs = 250;
  await using service = await serve({ STEPD_IDLE_TIMEOUT_MS: `${idleMs}` });
  // Each level of the schedule costs more time than the level inside it.
  let schedule: object = { name: "cosine_warm_restarts", T_0: 10, T_mult: 2 };
  for (let level = 0; level < 4; level++) schedule = { name: "sequence", schedules: [{ name: "exponential", gamma: 0.9999 }, schedule], milestones: [5] };
  const call = { jsonrpc: "2.0", id: 1, method: "schedule.evaluate", params: { schedule, from: 2 ** 40, count: 10_000 } };
  const start = performance.now();
  const response = await service.post("/rpc", pack(Array(100).fill(call)), MSGPACK);
  const took = performance.now() - start;
  const replies = (await readReply(response)) as { result?: { lrs: number[] } }[];
  for (const reply of replies) assert.equal(reply.result?.lrs.length, 10_000, JSON.stringify(reply).slice(0, 300));
  assert.ok(took > idleMs, `it took only ${took} ms`);
});

test("an upload that trickles is ended after the request timeout", async () => {
  await using service = await serve({ STEPD_REQUEST_TIMEOUT_MS: "1000" });
  using client = await RawClient.connect(service);
  await client.hold(8 * MIB);
  const drip = setInterval(() => client.send(Buffer.alloc(1)), 20);
  await client.closed();
  clearInterval(drip);
  await requireHealthy(service);
});

test("headers that never end are cut off after the request timeout", async () => {
  await using service = await serve({ STEPD_REQUEST_TIMEOUT_MS: "1000" });
  using client = await RawClient.connect(service);
  client.send("POST /rpc HTTP/1.1\r\nHost: x\r\nX-A: ");
  await client.closed();
});

test("every error releases its leases, at any point where a call can fail", async () => {
  await using service = await serve();
  const good = sgdParams(100_000, 1);
  for (const params of [
    { ...good, grads: good.grads.subarray(0, -1) },
    { ...good, state: Buffer.alloc(9) },
    { ...good, optimizer: { name: "none" } },
    { ...good, grads: new Uint8Array(good.grads).fill(0xff, good.grads.length - 4) },
  ]) {
    await assert.rejects(service.call("optimizer.step", params));
    await untilEmpty(service);
  }
  await requireHealthy(service);
});

test("the rest of a refused chunked body does not release its memory a second time", async () => {
  await using service = await serve({ STEPD_MAX_JSON_MIB: "1" });
  using refused = await RawClient.connect(service);
  refused.head("/v1/step", { "Content-Type": "application/json", "Transfer-Encoding": "chunked" });
  for (let sent = 0; sent < 1.1 * MIB; sent += 50_000) refused.chunk(Buffer.alloc(50_000, " "));
  assert.equal((await refused.reply())?.status, 413);
  // Another call takes the freed memory. The refused body ends only after that.
  using victim = await RawClient.connect(service);
  const body = sgdBody(MIB / 2, 2);
  victim.head("/v1/step", { "Content-Length": body.length });
  victim.send(body.subarray(0, body.length - 10));
  await untilMetric(service, "stepd_arena_used_bytes", (bytes) => bytes >= body.length);
  refused.chunk(Buffer.alloc(0));
  await requireHealthyBeside(service, body.length);
  victim.send(body.subarray(body.length - 10));
  const reply = await victim.reply();
  assert.equal(reply?.status, 200);
  requireResult(reply.body, MIB / 2, 1);
  await requireHealthy(service);
});

/** Asserts that a small step is right, and that the arena holds no more than `held` bytes. */
const requireHealthyBeside = async (service: TestService, held: number): Promise<void> => {
  for (let step = 0; step < 5; step++) {
    const { params } = await service.call<{ params: Uint8Array }>("optimizer.step", sgdParams(3000, 5));
    requireResult(pack({ params }), 3000, 4);
  }
  const used = await service.metric("stepd_arena_used_bytes");
  assert.ok(used >= held && used < held + 65536, `${used} bytes are in use, ${held} held`);
};

test("a reply that is not read in time is cut off, and its memory is released", async () => {
  await using service = await serve({ STEPD_ARENA_MIB: "64", STEPD_REQUEST_TIMEOUT_MS: "2000", STEPD_IDLE_TIMEOUT_MS: "60000" });
  using client = await stall(service);
  await untilMetric(service, 'stepd_refusals_total{reason="SLOW_REPLY"}', (count) => count > 0);
  await requireHealthy(service);
  client.socket.destroy();
});

test("replies outside the arena have a common limit", async () => {
  await using service = await serve({ STEPD_MAX_JSON_MIB: "1", STEPD_MAX_IN_FLIGHT: "64" });
  const evaluate = { jsonrpc: "2.0", id: 1, method: "schedule.evaluate", params: { schedule: { name: "cosine", T_max: 3 }, count: 10_000 } };
  const status = async (calls: number): Promise<number> =>
    (await service.post("/rpc", JSON.stringify(Array.from({ length: calls }, () => evaluate)), JSON_TYPE)).status;
  assert.equal(await status(10), 200);
  assert.equal(await status(100), 413);
  await requireHealthy(service);
});

test("values outside the arena have a common limit, in JSON and in MessagePack", async () => {
  await using service = await serve({ STEPD_MAX_JSON_MIB: "1" });
  const call = (count: number) => ({ jsonrpc: "2.0", id: 1, method: "optimizer.list", params: { x: Array.from({ length: count }, () => ({})) } });
  for (const [count, name] of [
    [20_000, "INVALID_PARAMS"],
    [200_000, "PAYLOAD_TOO_LARGE"],
  ] as const) {
    const replies = [await service.post("/rpc", JSON.stringify(call(count)), JSON_TYPE), await service.post("/rpc", pack(call(count)), MSGPACK)];
    for (const reply of replies) assert.equal(((await readReply(reply)) as { error: { data: { name: string } } }).error.data.name, name);
  }
  await requireHealthy(service);
});
