/** Tests every reason for a refusal with a call that causes it: the refusal is counted once, under that reason and no other. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import net from "node:net";
import os from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { readConfig } from "../../src/config.ts";
import { Service } from "../../src/service.ts";
import { RawClient, sgdBody, sgdParams } from "../http/_client.ts";
import { JSON_TYPE, MSGPACK, pack, TestService } from "../support/service.ts";
import { Changes, refusalSeries, requestSeries } from "./_exposition.ts";

const MIB = 2 ** 20;

const REASONS = [
  "OVERLOADED",
  "PAYLOAD_TOO_LARGE",
  "DRAINING",
  "UNSUPPORTED_MEDIA_TYPE",
  "NOT_ACCEPTABLE",
  "UNAUTHENTICATED",
  "SLOW_BODY",
  "CONNECTIONS",
  "PIPELINED",
  "TLS_HANDSHAKE",
  "SLOW_REPLY",
  "SLOW_REQUEST",
  "HEADERS_TOO_LARGE",
  "MALFORMED",
] as const;

type Reason = (typeof REASONS)[number];

const serve = (env: Readonly<Record<string, string>> = {}) => TestService.start({ STEPD_ARENA_MIB: "16", STEPD_WORKERS: "2", STEPD_ADMIN_PORT: "0", ...env });

/** Returns the expected changes: `count` refusals for one reason, and none for all other reasons. */
const refusalChanges = (reason: Reason, count = 1) => Object.fromEntries(REASONS.map((name) => [refusalSeries(name), name === reason ? count : 0]));

test("all reasons are exported from the start, with 0", async () => {
  await using service = await serve();
  const text = await (await fetch(`${service.admin}/metrics`)).text();
  const limitsOf = (reason: Reason) => (reason === "OVERLOADED" ? ["server", "share", "caller"] : reason === "PAYLOAD_TOO_LARGE" ? ["server", "caller"] : [""]);
  assert.deepEqual(
    text.match(/^stepd_refusals_total.*$/gm),
    REASONS.flatMap((reason) => limitsOf(reason).map((limit) => `${refusalSeries(reason, limit)} 0`)),
  );
});

test("OVERLOADED counts a body without room, over RPC and REST", async () => {
  await using service = await serve();
  using holder = await RawClient.connect(service);
  await holder.keep(15 * MIB);
  const changes = await Changes.from(service);
  for (const path of ["/v1/step", "/rpc"]) {
    assert.equal((await service.post(path, Buffer.alloc(2 * MIB), MSGPACK)).status, 429);
    await changes.become({ ...refusalChanges("OVERLOADED"), [requestSeries("unknown", "OVERLOADED")]: 1 });
  }
});

test("OVERLOADED and PAYLOAD_TOO_LARGE count a step that runs out of room, over RPC and REST", async () => {
  await using service = await serve();
  // Adam's new state needs as much room as the body.
  const params = { ...sgdParams(1.5 * MIB, 1), optimizer: { name: "adam" } };
  const bodies = { "/v1/step": pack(params), "/rpc": pack({ jsonrpc: "2.0", id: 1, method: "optimizer.step", params }) };
  for (const [path, body] of Object.entries(bodies)) {
    const changes = await Changes.from(service);
    assert.equal((await service.post(path, body, MSGPACK)).status, 413);
    await changes.become({ ...refusalChanges("PAYLOAD_TOO_LARGE"), [requestSeries("optimizer.step", "PAYLOAD_TOO_LARGE")]: 1 });
  }
  const small = { ...sgdParams(MIB / 2, 1), optimizer: { name: "adam" } };
  using holder = await RawClient.connect(service);
  await holder.keep(10 * MIB);
  for (const [path, body] of Object.entries({ "/v1/step": pack(small), "/rpc": pack({ jsonrpc: "2.0", id: 1, method: "optimizer.step", params: small }) })) {
    const changes = await Changes.from(service);
    assert.equal((await service.post(path, body, MSGPACK)).status, 429);
    await changes.become({ ...refusalChanges("OVERLOADED"), [requestSeries("optimizer.step", "OVERLOADED")]: 1 });
  }
});

test("OVERLOADED counts calls above STEPD_MAX_IN_FLIGHT", async () => {
  await using service = await serve({ STEPD_MAX_IN_FLIGHT: "1" });
  using holder = await RawClient.connect(service);
  await holder.hold(1000);
  const changes = await Changes.from(service);
  assert.equal((await service.post("/v1/step", sgdBody(3, 1), MSGPACK)).status, 429);
  await changes.become(refusalChanges("OVERLOADED"));
});

test("PAYLOAD_TOO_LARGE counts a body that can never fit, with and without a length", async () => {
  await using service = await serve({ STEPD_MAX_JSON_MIB: "1" });
  const changes = await Changes.from(service);
  assert.equal((await service.post("/v1/step", Buffer.alloc(17 * MIB), MSGPACK)).status, 413);
  await changes.become(refusalChanges("PAYLOAD_TOO_LARGE"));
  using client = await RawClient.connect(service);
  client.head("/v1/step", { "Content-Type": JSON_TYPE, "Transfer-Encoding": "chunked" });
  client.chunk(Buffer.alloc(MIB + 1));
  assert.equal((await client.reply())?.status, 413);
  await changes.become(refusalChanges("PAYLOAD_TOO_LARGE"));
});

test("UNSUPPORTED_MEDIA_TYPE and NOT_ACCEPTABLE are counted", async () => {
  await using service = await serve();
  const changes = await Changes.from(service);
  assert.equal((await service.post("/v1/step", "x", "text/plain")).status, 415);
  await changes.become(refusalChanges("UNSUPPORTED_MEDIA_TYPE"));
  assert.equal((await service.post("/rpc", "{}", JSON_TYPE, { Accept: "text/html" })).status, 406);
  await changes.become(refusalChanges("NOT_ACCEPTABLE"));
});

test("UNAUTHENTICATED counts calls and pages without a token", async () => {
  const folder = mkdtempSync(join(os.tmpdir(), "stepd-refusals-"));
  try {
    const file = join(folder, "tokens");
    writeFileSync(file, "alice alice-0123456789abcdef\n");
    await using service = await serve({ STEPD_TOKENS_FILE: file });
    const changes = await Changes.from(service);
    assert.equal((await service.post("/v1/step", sgdBody(3, 1), MSGPACK)).status, 401);
    await changes.become({ ...refusalChanges("UNAUTHENTICATED"), [requestSeries("unknown", "UNAUTHENTICATED")]: 1 });
    assert.equal((await fetch(`${service.url}/openapi.json`)).status, 401);
    await changes.become({ ...refusalChanges("UNAUTHENTICATED"), [requestSeries("unknown", "UNAUTHENTICATED")]: 0 });
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("DRAINING counts a call after SIGTERM; readiness ends, metrics stay available", async () => {
  await using service = await serve({ STEPD_DRAIN_GRACE_MS: "1" });
  using holder = await RawClient.connect(service);
  const body = sgdBody(1000, 2);
  await holder.hold(body.length);
  using late = await RawClient.connect(service);
  const changes = await Changes.from(service);
  service.process.kill("SIGTERM");
  await changes.become({ stepd_ready: -1 });
  // After the grace period, the service refuses calls.
  for (;;) {
    late.head("/v1/step", { "Content-Length": body.length });
    late.send(body);
    const reply = await late.reply();
    assert.ok(reply && [200, 503].includes(reply.status), `${reply?.status}`);
    if (reply.status === 503) break;
    await changes.become({ [requestSeries("optimizer.step", "ok")]: 1 });
  }
  await changes.become({ ...refusalChanges("DRAINING"), [requestSeries("unknown", "DRAINING")]: 1 });
  holder.send(body);
  assert.equal((await holder.reply())?.status, 200);
  assert.equal(await service.stop(), 0);
});

test("CONNECTIONS counts connections above STEPD_MAX_CONNECTIONS", async () => {
  await using service = await serve({ STEPD_MAX_CONNECTIONS: "2" });
  using first = await RawClient.connect(service);
  using second = await RawClient.connect(service);
  await first.hold(10);
  await second.hold(10);
  const changes = await Changes.from(service);
  const { port, hostname } = new URL(service.url);
  using third = await RawClient.connect(service);
  await changes.become(refusalChanges("CONNECTIONS"));
  third.head("/v1/step", { "Content-Length": 0 });
  assert.equal((await third.reply())?.status, 429);
  await changes.become(refusalChanges("OVERLOADED"));
  // Beyond the reserve, the service closes connections without an answer.
  const more = Array.from({ length: 64 }, () => net.connect(Number(port), hostname));
  for (const socket of more) socket.on("error", () => {}); // The server resets one of these sockets.
  await Promise.race(more.map((socket) => once(socket, "close")));
  for (const socket of more) socket.destroy();
  await changes.become(refusalChanges("CONNECTIONS", 64));
});

test("PIPELINED counts requests above the limit of waiting replies on a connection", async () => {
  await using service = await serve();
  using client = await RawClient.connect(service);
  const changes = await Changes.from(service);
  client.socket.pause();
  client.send("GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000));
  await changes.become(refusalChanges("PIPELINED"));
});

test("SLOW_BODY counts a body slower than STEPD_MIN_BODY_RATE", async () => {
  await using service = await serve({ STEPD_MIN_BODY_RATE: "1000000" });
  using client = await RawClient.connect(service);
  await client.hold(MIB);
  const changes = await Changes.from(service);
  assert.equal((await client.reply())?.status, 408);
  await changes.become({ ...refusalChanges("SLOW_BODY"), [requestSeries("unknown", "SLOW_BODY")]: 1, stepd_in_flight_bytes: 0 });
});

/** Sends bytes on a raw connection, and returns everything received until the connection closes. */
const answerTo = async (service: TestService, text: string): Promise<string> => {
  const { port, hostname } = new URL(service.url);
  const socket = net.connect(Number(port), hostname).setEncoding("latin1");
  socket.write(text, "latin1");
  let answer = "";
  for await (const chunk of socket) answer += chunk;
  return answer;
};

test("SLOW_REQUEST counts headers or bodies that exceed STEPD_REQUEST_TIMEOUT_MS", async () => {
  await using service = await serve({ STEPD_REQUEST_TIMEOUT_MS: "1500" });
  const changes = await Changes.from(service);
  assert.equal(await answerTo(service, "POST /rpc HTTP/1.1\r\nHost: x\r\nX-A: "), "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n");
  await changes.become({ ...refusalChanges("SLOW_REQUEST"), [requestSeries("unknown", "CLIENT_GONE")]: 0 });
  const head = `POST /rpc HTTP/1.1\r\nHost: x\r\nContent-Type: ${MSGPACK}\r\nContent-Length: 9\r\n\r\n`;
  assert.match(await answerTo(service, head), /^HTTP\/1.1 408 Request Timeout\r\n.*SLOW_BODY.*STEPD_REQUEST_TIMEOUT_MS/s);
  await changes.become({ ...refusalChanges("SLOW_BODY"), [requestSeries("unknown", "SLOW_BODY")]: 1 });
});

test("HEADERS_TOO_LARGE counts headers above 16 KiB", async () => {
  await using service = await serve();
  const changes = await Changes.from(service);
  const answer = await answerTo(service, `GET /v1 HTTP/1.1\r\nHost: x\r\nX-Long: ${"a".repeat(16384)}\r\n\r\n`);
  assert.equal(answer, "HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\n\r\n");
  await changes.become(refusalChanges("HEADERS_TOO_LARGE"));
});

test("MALFORMED counts input that is not HTTP, and an invalid chunk", async () => {
  await using service = await serve();
  const changes = await Changes.from(service);
  const head = `POST /rpc HTTP/1.1\r\nHost: x\r\nContent-Type: ${MSGPACK}\r\nTransfer-Encoding: chunked\r\n\r\n`;
  for (const text of ["\x16\x03\x01\x02\x00", "GET /v1 HTTP/1.1\r\nno header\r\n\r\n", `${head}zz\r\n`]) {
    assert.equal(await answerTo(service, text), "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    await changes.become(refusalChanges("MALFORMED"));
  }
});

test("a caller that disconnects counts as no refusal", async () => {
  await using service = await serve();
  const changes = await Changes.from(service);
  const { port, hostname } = new URL(service.url);
  for (const end of ["end", "resetAndDestroy"] as const) {
    const socket = net.connect(Number(port), hostname, () => socket.write("POST /rpc HTTP/1.1\r\nHost: x\r\n", () => socket[end]())).resume();
    socket.on("error", () => {});
    await once(socket, "close");
  }
  // A later refusal, once counted, shows that all earlier refusals have been counted.
  assert.equal((await service.post("/v1/step", "x", "text/plain")).status, 415);
  await changes.become(refusalChanges("UNSUPPORTED_MEDIA_TYPE"));
});

test("a dead worker is counted", async () => {
  await using service = await Service.start(readConfig({ STEPD_PORT: "0", STEPD_ARENA_MIB: "8", STEPD_WORKERS: "2", STEPD_LOG_LEVEL: "silent" }));
  const changes = await Changes.from({ url: service.address, admin: undefined });
  void service.pool.threads[0]?.terminate();
  await changes.become({ stepd_workers_lost_total: 1, stepd_workers: 0 });
});
