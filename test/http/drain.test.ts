/** Tests SIGTERM while calls arrive and replies leave, over TCP and over a Unix socket. */
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import http from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { JSON_TYPE, MSGPACK, TestService, unpack } from "../support/service.ts";
import { readTensors } from "../support/tensors.ts";
import { RawClient, sgdBody } from "./_client.ts";

const MIB = 2 ** 20;

/** Sends a request over TCP or a Unix socket, on a separate connection. */
const ask = (
  { url }: TestService,
  path: string,
  body?: Buffer | string,
  type = JSON_TYPE,
): Promise<{ readonly status: number; readonly headers: http.IncomingHttpHeaders; readonly body: Buffer }> =>
  new Promise((resolve, reject) => {
    const where = url.startsWith("unix:") ? { socketPath: url.slice("unix:".length) } : { host: new URL(url).hostname, port: new URL(url).port };
    const options = {
      ...where,
      path,
      agent: false,
      method: body === undefined ? "GET" : "POST",
      headers: body === undefined ? {} : { "Content-Type": type, "Content-Length": Buffer.byteLength(body) },
    };
    const request = http.request(options, (response) => {
      const chunks: Buffer[] = [];
      response.on("data", (chunk: Buffer) => chunks.push(chunk));
      response.on("end", () => resolve({ status: response.statusCode ?? 0, headers: response.headers, body: Buffer.concat(chunks) }));
    });
    request.on("error", reject).end(body);
  });

/** Sends SIGTERM and waits until the service reports that it is not ready. */
const sendSigterm = async (service: TestService): Promise<void> => {
  service.process.kill("SIGTERM");
  const deadline = performance.now() + 5000;
  while ((await ask(service, "/health/ready")).status !== 503) assert.ok(performance.now() < deadline);
};

const requireRight = (body: Buffer | undefined, elements: number, expected: number): void => {
  const data = readTensors((unpack(body as Buffer) as { params: Uint8Array }).params)["w"]?.data;
  assert.deepEqual([data?.length, data?.every((value) => value === expected)], [elements, true]);
};

const withSocket = async (run: (path: string) => Promise<void>): Promise<void> => {
  const folder = await mkdtemp(join(tmpdir(), "stepd-"));
  try {
    await run(join(folder, "s"));
  } finally {
    await rm(folder, { recursive: true });
  }
};

const drains = async (env: Readonly<Record<string, string>>): Promise<void> => {
  await using service = await TestService.start({ STEPD_ARENA_MIB: "64", ...env });
  using client = await RawClient.connect(service);
  const body = sgdBody(1000, 2);
  await client.hold(body.length);
  await sendSigterm(service);
  assert.deepEqual(JSON.parse((await ask(service, "/health/ready")).body.toString()), { ready: false });
  assert.equal((await ask(service, "/health/live")).status, 200);
  for (const [path, given] of [
    ["/rpc", JSON.stringify({ jsonrpc: "2.0", id: 1, method: "optimizer.list" })],
    ["/v1/step", "{}"],
    ["/v1/optimizers", undefined],
  ] as const) {
    const { status, headers, body: text } = await ask(service, path, given);
    assert.equal(status, 503, path);
    assert.equal(headers["retry-after"], "1");
    const reply = JSON.parse(text.toString()) as { name?: string; code?: number; error?: { code: number; data: { name: string } } };
    assert.deepEqual([reply.error?.data.name ?? reply.name, reply.error?.code ?? reply.code], ["DRAINING", -32021]);
  }
  client.send(body);
  const reply = await client.reply();
  assert.equal(reply?.status, 200);
  requireRight(reply.body, 1000, 1);
  assert.equal(await service.stop(), 0);
};

test("a drain lets an upload finish, refuses new calls with 503, and exits with 0", () => drains({}));

test("a drain does the same over a Unix socket", () => withSocket((path) => drains({ STEPD_SOCKET: path })));

test("a drain lets a slow reader receive a reply to its end", async () => {
  await using service = await TestService.start();
  using client = await RawClient.connect(service);
  const body = sgdBody(4 * MIB, 2);
  client.head("/v1/step", { "Content-Length": body.length });
  client.send(body);
  await new Promise<void>((resolve) => {
    client.socket.once("data", () => {
      client.socket.pause();
      resolve();
    });
  });
  await sendSigterm(service);
  client.socket.resume();
  const reply = await client.reply();
  assert.equal(reply?.status, 200);
  requireRight(reply.body, 4 * MIB, 1);
  assert.equal(await service.stop(), 0);
});

test("a drain without calls ends at once, even with idle keep-alive connections", async () => {
  await using service = await TestService.start();
  using client = await RawClient.connect(service);
  const body = sgdBody(10, 2);
  client.head("/v1/step", { "Content-Length": body.length });
  client.send(body);
  assert.equal((await client.reply())?.status, 200);
  assert.equal(await service.stop(), 0);
  await client.closed();
});

test("new calls during a drain do not delay its end", async () => {
  await using service = await TestService.start();
  using client = await RawClient.connect(service);
  await client.hold(100);
  await sendSigterm(service);
  let isOver = false;
  const callers = Array.from({ length: 8 }, async () => {
    while (!isOver) await ask(service, "/v1/step", "{}").catch(() => {});
  });
  client.socket.destroy();
  assert.equal(await service.stop(), 0);
  isOver = true;
  await Promise.all(callers);
});

test("a step over a Unix socket returns the same bytes as over TCP", () =>
  withSocket(async (path) => {
    const body = sgdBody(1_000_000, 7);
    await using unix = await TestService.start({ STEPD_SOCKET: path });
    assert.equal(unix.url, `unix:${path}`);
    await using tcp = await TestService.start();
    const [first, second] = await Promise.all([unix, tcp].map((service) => ask(service, "/v1/step", body, MSGPACK)));
    assert.equal(first?.status, 200);
    assert.ok(first.body.equals(second?.body as Buffer));
    requireRight(first.body, 1_000_000, 6);
  }));
