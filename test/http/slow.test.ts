/**
 * Tests slow callers: they keep their memory while no other caller needs it, delay no other caller, and get the reason for a
 * refusal.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { Transfer } from "../../src/http/_pace.ts";
import { JSON_TYPE, MSGPACK, type TestService, unpack } from "../support/service.ts";
import { RawClient, type RawReply, requireHealthy, requireResult, serveSmall as serve, sgdBody, untilMetric } from "./_client.ts";

const MIB = 2 ** 20;

const SMALL_JSON = JSON.stringify({ optimizer: { name: "sgd" }, params: { w: { shape: [1], values: [1] } }, grads: {} });

/** Sends a few bytes at a time until the connection closes. */
const trickle = ({ socket }: RawClient, bytes = 100): void => {
  const timer = setInterval(() => socket.write(Buffer.alloc(bytes, " ")), 100);
  socket.once("close", () => clearInterval(timer));
};

/** Repeats a step until it succeeds. Requires status 429 for every earlier attempt, and returns their number. */
const stepUntilTaken = async (service: TestService, elements: number): Promise<number> => {
  const body = sgdBody(elements, 2);
  for (let refusals = 0; ; refusals++) {
    const reply = await service.post("/v1/step", body, MSGPACK);
    const bytes = Buffer.from(await reply.arrayBuffer());
    if (reply.status === 200) {
      requireResult(bytes, elements, 1);
      return refusals;
    }
    assert.equal(reply.status, 429);
    await delay(20);
  }
};

const nameOf = (reply: RawReply | null): string => {
  const value = unpackReply(reply) as { name?: string; error?: { data: { name: string } } };
  return value.error?.data.name ?? value.name ?? "";
};

const unpackReply = (reply: RawReply | null): unknown =>
  reply?.headers.get("content-type")?.includes("json") ? JSON.parse(reply.body.toString()) : unpack(reply?.body ?? Buffer.of(0xc0));

for (const path of ["/v1/step", "/rpc"]) {
  test(`${path}: a call that needs memory gets the memory of a trickling body, which gets 408`, async () => {
    await using service = await serve();
    using slow = await RawClient.connect(service);
    await slow.hold(15 * MIB, path);
    trickle(slow);
    await stepUntilTaken(service, MIB);
    const refusal = await slow.reply();
    assert.deepEqual([refusal?.status, nameOf(refusal)], [408, "SLOW_BODY"]);
    await slow.closed();
    await requireHealthy(service);
  });
}

test("the largest of several late bodies is ended first, and no more than necessary", async () => {
  await using service = await serve();
  using small = await RawClient.connect(service);
  using large = await RawClient.connect(service);
  await small.hold(4 * MIB);
  await large.hold(10 * MIB);
  await stepUntilTaken(service, MIB);
  assert.equal((await large.reply())?.status, 408);
  const rest = sgdBody(MIB / 2 - 100, 3);
  small.send(rest);
  small.send(Buffer.alloc(4 * MIB - rest.length));
  // The service refuses the body for its content, not for its time.
  assert.equal(nameOf(await small.reply()), "PARSE_ERROR");
  await requireHealthy(service);
});

test("a body that keeps up its rate keeps its memory, even if others need it", async () => {
  await using service = await serve();
  using steady = await RawClient.connect(service);
  await steady.keep(15 * MIB);
  const start = performance.now();
  const body = sgdBody(MIB, 2);
  // The loop lasts longer than the initial time in which a body may send nothing.
  while (performance.now() - start < 4000) {
    assert.equal((await service.post("/v1/step", body, MSGPACK)).status, 429);
    await delay(20);
  }
  assert.equal(await service.metric('stepd_refusals_total{reason="SLOW_BODY"}'), 0);
});

test("a step that needs memory in mid-call gets the memory of a late body", async () => {
  await using service = await serve();
  using late = await RawClient.connect(service);
  await late.hold(9 * MIB);
  // In the first step of Adam, the body takes 4 MiB, and the new slots take 4 MiB more.
  const elements = MIB / 2;
  for (;;) {
    const reply = await service.post("/v1/step", sgdBody(elements, 2, { name: "adam", lr: 1 }), MSGPACK);
    await reply.arrayBuffer();
    if (reply.status === 200) break;
    assert.equal(reply.status, 429);
    await delay(20);
  }
  assert.equal((await late.reply())?.status, 408);
  await requireHealthy(service);
});

test("a trickling JSON body holds only what has arrived, not the length that it announced", async () => {
  await using service = await serve({ STEPD_ARENA_MIB: "64", STEPD_MAX_JSON_MIB: "8" });
  using slow = await RawClient.connect(service);
  slow.head("/v1/step", { "Content-Type": JSON_TYPE, "Content-Length": 8 * MIB });
  trickle(slow, 400);
  const padded = SMALL_JSON.replace("[1]}", `[1]}${" ".repeat(2 * MIB)}`);
  for (let call = 0; call < 20; call++) assert.equal((await service.post("/v1/step", padded, JSON_TYPE)).status, 200);
  assert.equal(await service.metric("stepd_in_flight_requests"), 1, "the slow one goes on");
});

test("a JSON body that stalls near its end loses its memory to calls that need it", async () => {
  await using service = await serve({ STEPD_ARENA_MIB: "64", STEPD_MAX_JSON_MIB: "2" });
  using slow = await RawClient.connect(service);
  slow.head("/v1/step", { "Content-Type": JSON_TYPE, "Content-Length": 2 * MIB });
  slow.send(Buffer.alloc(1.9 * MIB, " "));
  // The next calls need the memory, so the service must have read the body first.
  await new Promise((resolve) => slow.socket.write("", resolve));
  await delay(300);
  const large = SMALL_JSON.replace("[1]}", `[1]}${" ".repeat(MIB)}`);
  let refusal: RawReply | null | undefined;
  const isOver = slow.reply().then((reply) => {
    refusal = reply;
  });
  // The service refuses calls while the stalled body may still be ahead of its rate, and accepts calls afterwards.
  while (refusal === undefined) {
    assert.match(`${(await service.post("/v1/step", large, JSON_TYPE)).status}`, /^(?:200|429)$/);
    await delay(20);
  }
  await isOver;
  assert.equal(refusal?.status, 408);
  assert.equal((await service.post("/v1/step", large, JSON_TYPE)).status, 200);
  await requireHealthy(service);
});

test("silence in an upload gets 408 after the idle timeout", async () => {
  await using service = await serve({ STEPD_IDLE_TIMEOUT_MS: "3000" });
  using client = await RawClient.connect(service);
  await client.hold(8 * MIB);
  client.send(Buffer.alloc(MIB));
  const reply = await client.reply();
  assert.deepEqual([reply?.status, nameOf(reply)], [408, "SLOW_BODY"]);
  assert.match(JSON.stringify(unpackReply(reply)), /STEPD_IDLE_TIMEOUT_MS/);
  await client.closed();
  await requireHealthy(service);
});

test("an unfinished head gets 408 before the idle timeout closes the connection", async () => {
  await using service = await serve({ STEPD_IDLE_TIMEOUT_MS: "1000" });
  using client = await RawClient.connect(service);
  client.send("POST /rpc HTTP/1.1\r\nHost: x\r\nX-A: ");
  assert.equal((await client.reply())?.status, 408);
});

test("an upload that is incomplete when the drain ends gets 503", async () => {
  await using service = await serve({ STEPD_DRAIN_TIMEOUT_MS: "1000" });
  using client = await RawClient.connect(service);
  await client.hold(8 * MIB);
  trickle(client);
  const reply = client.reply();
  await service.stop();
  assert.deepEqual([(await reply)?.status, nameOf(await reply)], [503, "DRAINING"]);
});

test("a reply whose reader is silent counts as slow", async () => {
  await using service = await serve({ STEPD_ARENA_MIB: "64", STEPD_IDLE_TIMEOUT_MS: "4000" });
  using client = await RawClient.connect(service);
  client.socket.pause();
  const body = sgdBody(4 * MIB, 2);
  client.head("/v1/step", { "Content-Length": body.length });
  client.send(body);
  await untilMetric(service, 'stepd_refusals_total{reason="SLOW_REPLY"}', (count) => count === 1);
  await requireHealthy(service);
});

/** Sends a step whose reply of 12 MiB is larger than the buffers of sockets, and reads one chunk of it at an interval. Its call holds 16 MiB. */
const readSlowly = async (service: TestService, client: RawClient, intervalMs: number): Promise<void> => {
  client.socket.pause();
  const body = sgdBody(MIB, 2, { name: "adamw" });
  client.head("/v1/step", { "Content-Length": body.length });
  client.send(body);
  await untilMetric(service, 'stepd_phase_calls{phase="send"}', (calls) => calls === 1);
  const timer = setInterval(() => client.socket.once("data", () => client.socket.pause()).resume(), intervalMs);
  client.socket.once("close", () => clearInterval(timer));
};

test("a call that needs memory gets the memory of a reply that is read at a trickle", async () => {
  await using service = await serve({ STEPD_ARENA_MIB: "32" });
  using client = await RawClient.connect(service);
  await readSlowly(service, client, 1000 * (65536 / 10_000));
  assert.ok((await stepUntilTaken(service, 2.5 * MIB)) > 0, "the reply keeps its memory at first");
  assert.equal(await service.metric('stepd_refusals_total{reason="SLOW_REPLY"}'), 1);
  await requireHealthy(service);
});

test("a reply that is read at its rate keeps its memory, even if others need it", async () => {
  await using service = await serve({ STEPD_ARENA_MIB: "32" });
  using client = await RawClient.connect(service);
  // The rate is 12 MiB in 300 s, two thirds of a chunk of 64 KiB a second.
  await readSlowly(service, client, 250);
  const end = performance.now() + 4000;
  while (performance.now() < end) assert.equal((await service.post("/v1/step", sgdBody(2.5 * MIB, 2), MSGPACK)).status, 429);
  assert.equal(await service.metric('stepd_phase_calls{phase="send"}'), 1);
});

class Steady extends Transfer {
  moved = 0;
  readonly cuts: string[] = [];

  override measure(): number {
    return this.moved;
  }

  override cut(expected: string): void {
    this.cuts.push(expected);
  }
}

test("a transfer below its average rate ends after the grace period, though nobody needs its memory", () => {
  for (const [bytesPerSecond, cuts] of [
    [999, 1],
    [1000, 0],
  ] as const) {
    const transfer = new Steady(undefined, 300_000);
    for (let second = 1; second <= 11; second++) {
      assert.equal(transfer.cuts.length, 0, `second ${second}`);
      transfer.moved += bytesPerSecond;
      transfer.check(1, 300, 10);
    }
    assert.equal(transfer.cuts.length, cuts, `${bytesPerSecond} bytes a second`);
  }
});

test("CONNECT gets an answer", async () => {
  await using service = await serve();
  using client = await RawClient.connect(service);
  client.send("CONNECT example:443 HTTP/1.1\r\nHost: example:443\r\n\r\n");
  assert.equal((await client.reply())?.status, 405);
  await client.closed();
});
