/** Tests the admission of bodies by their size, before the service reads them. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { MSGPACK } from "../support/service.ts";
import { RawClient, requireHealthy, requireResult, serveSmall as serve, sgdBody, untilEmpty, untilMetric } from "./_client.ts";

const MIB = 2 ** 20;

test("a call with Expect gets 100 once there is room, and is then answered", async () => {
  await using service = await serve();
  using client = await RawClient.connect(service);
  const body = sgdBody(1000, 2);
  await client.hold(body.length);
  assert.ok((await service.metric("stepd_arena_used_bytes")) >= body.length, "the room is taken before the body comes");
  client.send(body);
  const reply = await client.reply();
  assert.equal(reply?.status, 200);
  requireResult(reply.body, 1000, 1);
  await requireHealthy(service);
});

test("a call without room gets 429 with Retry-After instead of 100, and other calls continue", async () => {
  await using service = await serve();
  using first = await RawClient.connect(service);
  using second = await RawClient.connect(service);
  await first.keep(12 * MIB);
  for (const path of ["/v1/step", "/rpc"]) {
    using refused = await RawClient.connect(service);
    refused.head(path, { "Content-Length": 8 * MIB, Expect: "100-continue" });
    const reply = await refused.reply();
    assert.equal(reply?.status, 429);
    assert.match(reply.headers.get("retry-after") ?? "", /^[1-9]\d*$/);
    assert.equal(reply.headers.get("connection"), "close", "the caller may not send a body now");
    assert.match(reply.body.toString("latin1"), /OVERLOADED/);
  }
  await second.hold(3 * MIB);
  assert.equal(await service.metric('stepd_refusals_total{reason="OVERLOADED",limit="server"}'), 2);
  first.socket.destroy();
  await untilMetric(service, "stepd_arena_used_bytes", (bytes) => bytes < 4 * MIB);
  using third = await RawClient.connect(service);
  await third.hold(8 * MIB);
});

test("429 comes before the body is read, even without Expect, and the connection stays usable", async () => {
  await using service = await serve();
  using holder = await RawClient.connect(service);
  using client = await RawClient.connect(service);
  await holder.keep(12 * MIB);
  const body = sgdBody(1000 * 1000, 2);
  client.head("/v1/step", { "Content-Length": body.length });
  const reply = await client.reply();
  assert.equal(reply?.status, 429, "before a byte of the body was sent");
  holder.socket.destroy();
  await untilMetric(service, "stepd_arena_used_bytes", (bytes) => bytes === 0);
  client.send(body);
  client.head("/v1/step", { "Content-Length": body.length });
  client.send(body);
  const again = await client.reply();
  assert.equal(again?.status, 200);
  requireResult(again.body, 1000 * 1000, 1);
  await requireHealthy(service);
});

test("a body that can never fit gets 413 instead of 100, without Retry-After", async () => {
  await using service = await serve();
  for (const length of [17 * MIB, 2 ** 32, 2 ** 40]) {
    using client = await RawClient.connect(service);
    client.head("/v1/step", { "Content-Length": length, Expect: "100-continue" });
    const reply = await client.reply();
    assert.deepEqual([reply?.status, reply?.headers.has("retry-after")], [413, false]);
  }
  await requireHealthy(service);
});

test("a JSON body above the JSON limit gets 413, however large the arena is", async () => {
  await using service = await serve({ STEPD_ARENA_MIB: "512", STEPD_MAX_JSON_MIB: "100" });
  using client = await RawClient.connect(service);
  client.head("/v1/step", { "Content-Type": "application/json", "Content-Length": 101 * MIB, Expect: "100-continue" });
  const reply = await client.reply();
  assert.equal(reply?.status, 413);
  assert.match(reply.body.toString(), /at most 104857600 bytes of JSON/);
});

test("the JSON limit holds for all calls and replies together, and MessagePack is not affected", async () => {
  await using service = await serve({ STEPD_ARENA_MIB: "64", STEPD_MAX_JSON_MIB: "2" });
  using held = await RawClient.connect(service);
  held.head("/v1/step", { "Content-Type": "application/json", "Content-Length": 2 * MIB - 4096, Expect: "100-continue" });
  assert.equal((await held.reply())?.status, 100);
  held.send(Buffer.alloc(2 * MIB - 8192, " "));
  const json = JSON.stringify({ optimizer: { name: "sgd" }, params: { w: { shape: [1], values: [1] } }, grads: {} });
  const post = (body: string, headers: Readonly<Record<string, string>> = {}) => service.post("/v1/step", body, "application/json", headers);
  const large = json.replace("[1]}", `[1]}${" ".repeat(12_000)}`);
  // The service counts the held bytes once it has received them, and refuses further calls from then on.
  let refused = await post(large);
  while (refused.status === 200) refused = await post(large);
  assert.deepEqual([refused.status, ((await refused.json()) as { name: string }).name], [429, "OVERLOADED"]);
  assert.match(refused.headers.get("retry-after") ?? "", /^[1-9]\d*$/);
  assert.equal((await post(json)).status, 200, "small calls still fit");
  // The service refuses a chunked body while the body grows.
  using chunked = await RawClient.connect(service);
  chunked.head("/v1/step", { "Content-Type": "application/json", "Transfer-Encoding": "chunked" });
  chunked.chunk(Buffer.from(large));
  assert.equal((await chunked.reply())?.status, 429);
  chunked.socket.destroy();
  const body = sgdBody(300_000, 2);
  assert.equal((await service.post("/v1/step", body, MSGPACK)).status, 200);
  const asJson = await service.post("/v1/step", body, MSGPACK, { Accept: "application/json" });
  assert.equal(asJson.status, 429, "base64 of a reply takes memory as well");
  held.socket.destroy();
  await untilEmpty(service);
  assert.equal((await post(large)).status, 200);
  const packed = gzipSync(json.replace("[1]}", `[1]}${" ".repeat(3 * MIB)}`));
  assert.equal((await service.post("/v1/step", packed, "application/json", { "Content-Encoding": "gzip" })).status, 413);
  await requireHealthy(service);
});

test("a refusal reaches a caller that closes after its call, even while it is still sending", async () => {
  await using service = await serve();
  for (let call = 0; call < 5; call++) {
    using client = await RawClient.connect(service);
    client.head("/v1/step", { "Content-Length": 17 * MIB, Connection: "close" });
    client.send(Buffer.alloc(17 * MIB));
    assert.equal((await client.reply())?.status, 413);
    await client.closed();
  }
});

test("a JSON reply larger than the JSON limit gets 413 before it is encoded", async () => {
  await using service = await serve({ STEPD_ARENA_MIB: "64", STEPD_MAX_JSON_MIB: "1" });
  const reply = await service.post("/v1/step", sgdBody(2 * MIB, 2), MSGPACK, { Accept: "application/json" });
  assert.equal(reply.status, 413);
  await requireHealthy(service);
});

test("a call without a body is answered even if the arena is full", async () => {
  await using service = await serve();
  using holder = await RawClient.connect(service);
  await holder.keep(16 * MIB);
  assert.equal((await fetch(`${service.url}/v1/optimizers`)).status, 200);
  assert.equal((await fetch(`${service.url}/v1/optimizers/lamb`)).status, 200);
  assert.equal((await fetch(`${service.url}/health/ready`)).status, 200);
});

test("a chunked body grows as needed, up to nearly the whole arena", async () => {
  await using service = await serve();
  const elements = 1700 * 1000;
  const body = sgdBody(elements, 2);
  assert.ok(body.length > 12 * MIB);
  using client = await RawClient.connect(service);
  client.head("/v1/step", { "Transfer-Encoding": "chunked" });
  for (let at = 0; at < body.length; at += 100_001) client.chunk(body.subarray(at, at + 100_001));
  client.chunk(Buffer.alloc(0));
  const reply = await client.reply();
  assert.equal(reply?.status, 200, reply?.body.toString("latin1").slice(0, 300));
  requireResult(reply.body, elements, 1);
  await requireHealthy(service);
});

test("chunked bodies that grow side by side keep their bytes", async () => {
  await using service = await serve({ STEPD_ARENA_MIB: "64" });
  const elements = 300 * 1000;
  const clients = await Promise.all(Array.from({ length: 4 }, () => RawClient.connect(service)));
  for (const client of clients) client.head("/v1/step", { "Transfer-Encoding": "chunked" });
  const bodies = clients.map((_, index) => sgdBody(elements, 10 * index));
  for (let at = 0; at < (bodies[0]?.length ?? 0); at += 65_537) {
    clients.forEach((client, index) => {
      const piece = bodies[index]?.subarray(at, at + 65_537) as Buffer;
      if (piece.length > 0) client.chunk(piece);
    });
  }
  for (const client of clients) client.chunk(Buffer.alloc(0));
  for (const [index, client] of clients.entries()) {
    const reply = await client.reply();
    assert.equal(reply?.status, 200);
    requireResult(reply.body, elements, 10 * index - 1);
    client[Symbol.dispose]();
  }
  await requireHealthy(service);
});

test("a chunked body larger than the arena gets 413; one that fits but lacks room gets 429", async () => {
  await using service = await serve();
  const large = async (): Promise<number | undefined> => {
    using client = await RawClient.connect(service);
    client.head("/v1/step", { "Transfer-Encoding": "chunked" });
    for (let i = 0; i < 18; i++) client.chunk(Buffer.alloc(MIB));
    client.chunk(Buffer.alloc(0));
    return (await client.reply())?.status;
  };
  assert.equal(await large(), 413);
  await untilEmpty(service);
  using holder = await RawClient.connect(service);
  await holder.keep(12 * MIB);
  using client = await RawClient.connect(service);
  client.head("/v1/step", { "Transfer-Encoding": "chunked" });
  for (let i = 0; i < 8; i++) client.chunk(Buffer.alloc(MIB));
  client.chunk(Buffer.alloc(0));
  const reply = await client.reply();
  assert.equal(reply?.status, 429);
  assert.match(reply.headers.get("retry-after") ?? "", /^[1-9]\d*$/);
  holder.socket.destroy();
  await requireHealthy(service);
});

test("a chunked body fits into the smallest arena", async () => {
  await using service = await serve({ STEPD_ARENA_MIB: "1" });
  using client = await RawClient.connect(service);
  const body = sgdBody(1000, 3);
  client.head("/v1/step", { "Transfer-Encoding": "chunked" });
  client.chunk(body);
  client.chunk(Buffer.alloc(0));
  const reply = await client.reply();
  assert.equal(reply?.status, 200);
  requireResult(reply.body, 1000, 2);
});

test("the sum of all bodies never exceeds the arena, with 60 parallel callers", async () => {
  await using service = await serve();
  const sizes = Array.from({ length: 60 }, (_, index) => 1000 + 50_000 * (index % 9));
  const statuses = await Promise.all(
    sizes.map(async (elements, index) => {
      const reply = await service.post("/v1/step", sgdBody(elements, index), MSGPACK);
      const body = Buffer.from(await reply.arrayBuffer());
      if (reply.status === 200) requireResult(body, elements, index - 1);
      return reply.status;
    }),
  );
  assert.ok(
    statuses.every((status) => status === 200 || status === 429),
    String(statuses),
  );
  assert.ok(statuses.includes(200));
  assert.ok((await service.metric("stepd_arena_high_water_bytes")) <= 16 * MIB);
  await requireHealthy(service);
});
