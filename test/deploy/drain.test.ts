/** Tests SIGTERM without a load balancer: the replies during the grace period, after it, and in the middle of an upload. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";
import { RawClient, sgdBody } from "../http/_client.ts";
import { MSGPACK, TestService } from "../support/service.ts";

const GRACE_MS = 1500;

const isReady = async ({ url }: TestService): Promise<boolean> => (await fetch(`${url}/health/ready`)).ok;

const untilUnready = async (service: TestService): Promise<void> => {
  const deadline = performance.now() + 5000;
  while (await isReady(service)) assert.ok(performance.now() < deadline);
};

test("a replica in its grace is not ready, but serves calls and asks to close connections", async () => {
  await using service = await TestService.start({ STEPD_DRAIN_GRACE_MS: `${GRACE_MS}` });
  const body = sgdBody(1000, 2);
  using kept = await RawClient.connect(service);
  const step = async (): Promise<string | undefined> => {
    kept.head("/v1/step", { "Content-Length": body.length });
    kept.send(body);
    const reply = await kept.reply();
    assert.equal(reply?.status, 200);
    return reply.headers.get("connection");
  };
  assert.notEqual(await step(), "close");
  const start = performance.now();
  const exit = service.stop();
  await untilUnready(service);
  assert.equal(await step(), "close");
  await kept.closed();
  assert.equal((await service.post("/v1/step", body, MSGPACK)).status, 200);
  assert.equal(await exit, 0);
  assert.ok(performance.now() - start >= GRACE_MS, "the grace is served to its end");
});

test("a caller whose upload is refused in a drain can finish it, reads the refusal, and is not cut", async () => {
  await using service = await TestService.start({ STEPD_DRAIN_GRACE_MS: "0" });
  using held = await RawClient.connect(service);
  const small = sgdBody(1000, 2);
  await held.hold(small.length);
  const exit = service.stop();
  await untilUnready(service);

  // The body exceeds the socket buffers, so the upload advances only as far as the replica reads.
  const large = sgdBody(8 * 2 ** 20, 2);
  using refused = await RawClient.connect(service);
  let reset: Error | undefined;
  refused.socket.on("error", (error) => {
    reset = error;
  });
  refused.head("/v1/step", { "Content-Length": large.length });
  refused.send(large.subarray(0, 2 ** 20));
  const reply = await refused.reply();
  assert.equal(reply?.status, 503);
  // After the end of the last call, only the refused upload keeps the drain from ending.
  held.send(small);
  assert.equal((await held.reply())?.status, 200);
  assert.equal(refused.socket.destroyed, false);
  await new Promise((resolve) => refused.socket.write(large.subarray(2 ** 20), resolve));
  await refused.closed();
  assert.equal(reset, undefined);
  assert.equal(await exit, 0);
});

test("a caller that stalls in a refused upload does not keep the process alive", async () => {
  await using service = await TestService.start({ STEPD_DRAIN_TIMEOUT_MS: "20000" });
  using held = await RawClient.connect(service);
  const small = sgdBody(1000, 2);
  await held.hold(small.length);
  const exit = once(service.process, "exit");
  service.process.kill("SIGTERM");
  await untilUnready(service);
  using stalled = await RawClient.connect(service);
  stalled.head("/v1/step", { "Content-Length": 2 ** 24 });
  assert.equal((await stalled.reply())?.status, 503);
  held.send(small);
  assert.equal((await held.reply())?.status, 200);
  assert.equal((await exit)[0], 0);
});
