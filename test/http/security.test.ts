/** Tests access control: tokens and certificates with their renewal, the admin port, CORS, and the caller's data in the log. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import https from "node:https";
import os from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { JSON_TYPE, MSGPACK, pack, readReply, TestService } from "../support/service.ts";
import { RawClient, sgdParams, untilEmpty, untilMetric } from "./_client.ts";

const scratch = mkdtempSync(join(os.tmpdir(), "stepd-security-"));
after(() => rmSync(scratch, { recursive: true, force: true }));

const ALICE = "alice-0123456789abcdef";
const BOB = "bob-0123456789abcdef";
const step = pack(sgdParams(3, 5));

/** Replaces a file atomically, as Kubernetes does with a mounted secret. */
const replace = (path: string, text: string): void => {
  writeFileSync(`${path}.new`, text);
  renameSync(`${path}.new`, path);
};

let files = 0;
const tokensFile = (text = `# callers\nalice ${ALICE}\n\nbob ${BOB}\n`): string => {
  const path = join(scratch, `tokens-${files++}`);
  writeFileSync(path, text);
  return path;
};

const bearer = (token: string) => ({ Authorization: `Bearer ${token}` });

const eventually = async (accepts: () => Promise<boolean>, what: string): Promise<void> => {
  const deadline = performance.now() + 15_000;
  while (!(await accepts())) {
    assert.ok(performance.now() < deadline, `${what} has not happened`);
    await delay(50);
  }
};

test("with a tokens file every call needs a token, over RPC and REST; health does not", async () => {
  const longestName = "n".repeat(32);
  const shortest = "0123456789abcdef";
  await using service = await TestService.start({ STEPD_TOKENS_FILE: tokensFile(`alice ${ALICE}\nbob ${BOB}\n${longestName} ${shortest}\n`) });
  const refused: readonly Readonly<Record<string, string>>[] = [
    {},
    { Authorization: "Basic YWxpY2U6eA==" },
    { Authorization: "Bearer" },
    { Authorization: `Bearer ${ALICE} ${BOB}` },
    bearer(`${ALICE}x`),
    bearer(ALICE.slice(0, -1)),
    bearer(ALICE.toUpperCase()),
    bearer("x".repeat(10_000)),
  ];
  for (const headers of refused) {
    const rest = await service.post("/v1/step", step, MSGPACK, headers);
    assert.equal(rest.status, 401);
    assert.equal(rest.headers.get("www-authenticate"), 'Bearer realm="stepd"');
    const problem = (await readReply(rest)) as Record<string, string>;
    assert.deepEqual([problem["name"], problem["field"]], ["UNAUTHENTICATED", "Authorization"]);
    const call = { jsonrpc: "2.0", id: 1, method: "optimizer.list" };
    const rpc = await service.post("/rpc", JSON.stringify(call), JSON_TYPE, headers);
    assert.equal(rpc.status, 401);
    assert.equal(((await readReply(rpc)) as { error: { code: number } }).error.code, -32025);
  }
  for (const path of ["/metrics", "/v1", "/openapi.json", "/openrpc.json", "/v1/optimizers", "/v1/optimizers/sgd"])
    assert.equal((await fetch(service.url + path)).status, 401, path);
  for (const path of ["/health/live", "/health/ready"]) assert.equal((await fetch(service.url + path)).status, 200, path);
  for (const headers of [bearer(ALICE), bearer(BOB), { authorization: `bearer  ${BOB}` }, bearer(shortest)])
    assert.equal((await service.post("/v1/step", step, MSGPACK, headers)).status, 200);
  const metrics = await (await fetch(`${service.url}/metrics`, { headers: bearer(ALICE) })).text();
  assert.match(metrics, /stepd_refusals_total\{reason="UNAUTHENTICATED"\} 2\d\n/);
});

test("a caller without a token is refused before its body is admitted", async () => {
  await using service = await TestService.start({ STEPD_TOKENS_FILE: tokensFile(), STEPD_ARENA_MIB: "16" });
  using client = await RawClient.connect(service);
  client.head("/v1/step", { "Content-Length": 2 ** 40, Expect: "100-continue" });
  const reply = await client.reply();
  assert.deepEqual([reply?.status, reply?.headers.get("connection")], [401, "close"]);
});

test("changed tokens take effect at once; a broken tokens file changes nothing", async () => {
  const path = tokensFile(`alice ${ALICE}\n`);
  await using service = await TestService.start({ STEPD_TOKENS_FILE: path, STEPD_LOG_LEVEL: "debug" });
  const statusOf = async (token: string): Promise<number> => (await service.post("/v1/step", step, MSGPACK, bearer(token))).status;
  assert.deepEqual([await statusOf(ALICE), await statusOf(BOB)], [200, 401]);
  const second = "alice-second-0123456789";
  replace(path, `alice ${ALICE}\nalice ${second}\n`);
  await eventually(async () => (await statusOf(second)) === 200, "the second token of alice");
  assert.equal(await statusOf(ALICE), 200);
  replace(path, `bob ${BOB}\n`);
  await eventually(async () => (await statusOf(ALICE)) === 401, "the end of alice's tokens");
  assert.equal(await statusOf(BOB), 200);
  replace(path, "bob short\n");
  await eventually(async () => service.log.join("").includes("is not taken"), "the log line of the broken file");
  assert.equal(await statusOf(BOB), 200);
  const log = service.log.join("");
  assert.match(log, /expected a token of at least 16 characters, found 5/);
  assert.match(log, /"caller":"alice"/);
  for (const secret of [ALICE, second, BOB]) assert.ok(!log.includes(secret), "a token is in the log");
});

test("an invalid tokens file stops the start with one line that quotes nothing of it", async () => {
  for (const [text, message] of [
    ["", /expected at least one line/],
    ["# nobody\n", /expected at least one line/],
    [`alice ${ALICE} ${BOB}\n`, /line 1: expected limits such as calls=8/],
    [`alice ${ALICE} calls=0\n`, /line 1: expected limits such as calls=8/],
    [`alice ${ALICE} calls=8\nalice ${BOB} calls=9\n`, /line 2: expected one value of calls for the name, found 8 and 9/],
    ["alice secretsecretsecr\u00e9t\n", /line 1: expected a name/],
    ["0123456789abcdef0123456789abcdef trainer-production-a\n", /line 1: expected a name/],
    [`${"x".repeat(33)} trainer-production-a\n`, /line 1: expected a name/],
    ["al@ice trainer-production-a\n", /line 1: expected a name/],
    ["DEADBEEF00000000 trainer-production-a\n", /line 1: expected a name/],
    ["\nalice tooshorttooshor\n", /line 2: expected a token of at least 16 characters, found 15/],
  ] as const) {
    const failure = await TestService.start({ STEPD_TOKENS_FILE: tokensFile(text) }).then(
      async (service) => `it started: ${await service.stop()}`,
      (error: Error) => error.message,
    );
    assert.match(failure, message);
    assert.match(failure, /STEPD_TOKENS_FILE: /);
    assert.doesNotMatch(failure, /secretsecret|abcdef|tooshort|xxxx/);
  }
  await assert.rejects(TestService.start({ STEPD_TOKENS_FILE: join(scratch, "absent") }), /STEPD_TOKENS_FILE: ENOENT/);
});

test("the log of a call has its request id, traceparent and caller, but no tensor values", async () => {
  await using service = await TestService.start({ STEPD_TOKENS_FILE: tokensFile(), STEPD_LOG_LEVEL: "trace" });
  const traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  const body = JSON.stringify({
    optimizer: { name: "sgd", lr: 1 },
    params: { w: { shape: [1], values: [123456.75] } },
    grads: { w: { shape: [1], values: [98765.5] } },
  });
  await service.post("/v1/step", body, JSON_TYPE, { ...bearer(BOB), "X-Request-Id": "run-7.3", traceparent });
  await service.post("/v1/step", body, JSON_TYPE, { ...bearer(BOB), "X-Request-Id": "run-7.4", traceparent: "not one" });
  await eventually(async () => service.log.join("").includes("run-7.4"), "the log of the call");
  const lines = service.log
    .join("")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as Record<string, unknown>);
  const { time: _, seconds: __, phases: ___, bytes_in, bytes_out, ...call } = lines.find(({ request_id }) => request_id === "run-7.3") ?? {};
  const expected = { request_id: "run-7.3", traceparent, caller: "bob", peer: "127.0.0.1", method: "optimizer.step", outcome: "ok" };
  assert.deepEqual(call, { level: 20, ...expected, msg: "call" });
  assert.equal(bytes_in, body.length);
  assert.ok(Number(bytes_out) > 0);
  assert.ok(!("traceparent" in (lines.find(({ request_id }) => request_id === "run-7.4") ?? {})));
  assert.doesNotMatch(service.log.join(""), /123456|98765|24691/);
});

test("with an admin port, metrics are only there, and health is on both ports", async () => {
  await using service = await TestService.start({ STEPD_ADMIN_PORT: "0", STEPD_TOKENS_FILE: tokensFile() });
  const admin = service.admin ?? assert.fail("no admin address was printed");
  assert.notEqual(admin, service.url);
  assert.match(await (await fetch(`${admin}/metrics`)).text(), /^stepd_build_info/m);
  for (const url of [admin, service.url]) {
    assert.deepEqual(await (await fetch(`${url}/health/ready`)).json(), { ready: true });
    assert.deepEqual(await (await fetch(`${url}/health/live`)).json(), { live: true });
  }
  assert.equal((await fetch(`${service.url}/metrics`, { headers: bearer(ALICE) })).status, 404);
  assert.equal((await fetch(`${admin}/v1/optimizers`)).status, 404);
  await assert.rejects(TestService.start({ STEPD_ADMIN_PORT: new URL(admin).port }), /STEPD_ADMIN_PORT: expected a free port on 127\.0\.0\.1/);
  assert.equal(await service.stop(), 0);
});

test("pages can call only from a listed origin", async () => {
  const preflight = (service: TestService, origin: string) =>
    fetch(`${service.url}/v1/step`, {
      method: "OPTIONS",
      headers: { Origin: origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type" },
    });
  {
    await using service = await TestService.start();
    const replies = [await preflight(service, "https://train.example"), await service.post("/v1/step", step, MSGPACK, { Origin: "https://train.example" })];
    for (const reply of replies) assert.ok([...reply.headers.keys()].every((name) => !name.startsWith("access-control-")));
  }
  await using service = await TestService.start({ STEPD_CORS_ORIGINS: "https://train.example,http://127.0.0.1:5173", STEPD_TOKENS_FILE: tokensFile() });
  const allowed = await preflight(service, "https://train.example");
  assert.equal(allowed.status, 204, "a preflight has no token");
  assert.equal(allowed.headers.get("access-control-allow-origin"), "https://train.example");
  assert.match(allowed.headers.get("access-control-allow-headers") ?? "", /authorization/);
  const reply = await service.post("/v1/step", step, MSGPACK, { Origin: "http://127.0.0.1:5173", ...bearer(ALICE) });
  assert.equal(reply.headers.get("access-control-allow-origin"), "http://127.0.0.1:5173");
  assert.match(reply.headers.get("access-control-expose-headers") ?? "", /Retry-After/);
  const refused = await service.post("/v1/step", step, MSGPACK, { Origin: "http://127.0.0.1:5173" });
  assert.deepEqual([refused.status, refused.headers.get("access-control-allow-origin")], [401, "http://127.0.0.1:5173"], "a page sees why it is refused");
  const other = await preflight(service, "https://evil.example");
  assert.equal(other.headers.get("access-control-allow-origin"), null);
});

/** Makes a key and its certificate. The certificate is signed by `ca`, or self-signed if `ca` is absent. */
const makeCertificate = (name: string, ca?: string): { readonly cert: string; readonly key: string } => {
  const [cert, key] = [join(scratch, `${name}.pem`), join(scratch, `${name}.key`)];
  const signer =
    ca === undefined ? ["-addext", "basicConstraints=critical,CA:TRUE"] : ["-CA", join(scratch, `${ca}.pem`), "-CAkey", join(scratch, `${ca}.key`)];
  const { status, stderr } = spawnSync(
    "openssl",
    ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"].concat(
      ["-subj", `/CN=${name}`, "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
      signer,
    ),
    { encoding: "utf8" },
  );
  assert.equal(status, 0, stderr);
  return { cert, key };
};

interface TlsReply {
  readonly status: number;
  readonly body: Buffer;
  /** The common name of the server's certificate. */
  readonly peer: string;
}

/** Sends a step over a separate TLS connection. */
const callTls = (service: TestService, options: https.RequestOptions): Promise<TlsReply> =>
  new Promise((resolve, reject) => {
    const request = https.request(
      `${service.url}/v1/step`,
      { method: "POST", agent: false, headers: { "Content-Type": MSGPACK, "Content-Length": step.length }, ...options },
      (response) => {
        const { subject } = (response.socket as import("node:tls").TLSSocket).getPeerCertificate();
        const chunks: Buffer[] = [];
        response.on("data", (chunk: Buffer) => chunks.push(chunk));
        response.on("end", () => resolve({ status: response.statusCode ?? 0, body: Buffer.concat(chunks), peer: String(subject.CN) }));
      },
    );
    request.on("error", reject).end(step);
  });

test("TLS works, certificates renew while the service runs, and mutual TLS refuses strangers", async () => {
  const ca = makeCertificate("ca");
  const { cert, key } = makeCertificate("server", "ca");
  const env = { STEPD_TLS_CERT_FILE: cert, STEPD_TLS_KEY_FILE: key };
  const trust = { ca: readFileSync(ca.cert) };
  {
    await using service = await TestService.start({ ...env, STEPD_LOG_LEVEL: "info" });
    assert.match(service.url, /^https:/);
    assert.deepEqual([(await callTls(service, trust)).status, (await callTls(service, trust)).peer], [200, "server"]);
    await assert.rejects(callTls(service, {}), /unable to (?:verify|get)|self-signed/);
    await assert.rejects(callTls(service, { ...trust, maxVersion: "TLSv1.1", ciphers: "DEFAULT@SECLEVEL=0" }));
    await assert.rejects(fetch(service.url.replace("https:", "http:")));

    const next = makeCertificate("renewed", "ca");
    replace(key, readFileSync(next.key, "utf8"));
    await eventually(async () => service.log.join("").includes("is not taken"), "the log line of a key that does not fit");
    assert.equal((await callTls(service, trust)).peer, "server");
    replace(cert, readFileSync(next.cert, "utf8"));
    await eventually(async () => (await callTls(service, trust)).peer === "renewed", "the new certificate");
    assert.equal(await service.stop(), 0);
  }
  const client = makeCertificate("client", "ca");
  makeCertificate("other-ca");
  const otherClient = makeCertificate("stranger", "other-ca");
  await using service = await TestService.start({ ...env, STEPD_TLS_CLIENT_CA_FILE: ca.cert, STEPD_ADMIN_PORT: "0" });
  const pair = (files: { readonly cert: string; readonly key: string }) => ({ cert: readFileSync(files.cert), key: readFileSync(files.key) });
  assert.equal((await callTls(service, { ...trust, ...pair(client) })).status, 200);
  await assert.rejects(callTls(service, trust));
  await assert.rejects(callTls(service, { ...trust, ...pair(otherClient) }));
  assert.equal((await fetch(`${service.admin}/health/ready`)).status, 200, "probes have no certificate");
  assert.equal((await callTls(service, { ...trust, ...pair(client), headers: { "X-Long": "a".repeat(16384) } })).status, 431);
  const metrics = await (await fetch(`${service.admin}/metrics`)).text();
  // A failed handshake does not count as a request.
  assert.match(metrics, /reason="HEADERS_TOO_LARGE"\} 1\n.*reason="MALFORMED"\} 0\n/);
});

test("a certificate without its key, or a file without a certificate, stops the start with one line", async () => {
  const one = makeCertificate("one");
  const two = makeCertificate("two");
  await assert.rejects(TestService.start({ STEPD_TLS_CERT_FILE: one.cert, STEPD_TLS_KEY_FILE: two.key }), /stepd: STEPD_TLS_KEY_FILE: .*another key[^\n]*\n$/);
  await assert.rejects(TestService.start({ STEPD_TLS_CERT_FILE: join(scratch, "no"), STEPD_TLS_KEY_FILE: two.key }), /STEPD_TLS_CERT_FILE: .*ENOENT/);
});

test("connections and calls above their limits get 429 with Retry-After", async () => {
  await using service = await TestService.start({ STEPD_MAX_CONNECTIONS: "3", STEPD_ADMIN_PORT: "0" });
  const first = await Promise.all([RawClient.connect(service), RawClient.connect(service), RawClient.connect(service)]);
  for (const client of first) await client.hold(1000);
  using late = await RawClient.connect(service);
  late.head("/v1/step", { "Content-Length": step.length });
  late.send(step);
  const refusal = await late.reply();
  assert.deepEqual([refusal?.status, refusal?.headers.get("retry-after")], [429, "1"]);
  assert.match(String(refusal?.body), /3 connections/);
  await late.closed();
  assert.equal((await fetch(`${service.url}/health/ready`)).status, 200, "health is answered all the same");
  const metric = async (name: string): Promise<string> =>
    (await (await fetch(`${service.admin}/metrics`)).text()).split("\n").find((line) => line.startsWith(name)) ?? "";
  assert.match(await metric('stepd_refusals_total{reason="CONNECTIONS"}'), / 2$/);
  for (const client of first) client.socket.destroy();
  await eventually(async () => / 0$/.test(await metric("stepd_in_flight_requests")), "the end of the held calls");
  using next = await RawClient.connect(service);
  await next.hold(1000);

  await using busy = await TestService.start({ STEPD_MAX_IN_FLIGHT: "2" });
  using one = await RawClient.connect(busy);
  using two = await RawClient.connect(busy);
  await one.hold(step.length);
  await two.hold(step.length);
  const refused = await busy.post("/v1/step", step, MSGPACK);
  assert.equal(refused.status, 429);
  assert.match(refused.headers.get("retry-after") ?? "", /^[1-9]\d*$/);
  assert.match(await refused.text(), /"found"|2 calls/);
  one.send(step);
  assert.equal((await one.reply())?.status, 200);
  assert.equal((await busy.post("/v1/step", step, MSGPACK)).status, 200);
  two.socket.destroy();
  await untilEmpty(busy);
});

test("a body that comes too slowly is refused, and its memory is released", async () => {
  await using service = await TestService.start({ STEPD_MIN_BODY_RATE: "1000", STEPD_ARENA_MIB: "16" });
  using slow = await RawClient.connect(service);
  await slow.hold(15 * 2 ** 20);
  const drip = setInterval(() => slow.send(Buffer.alloc(100)), 1000);
  try {
    const start = performance.now();
    const refusal = await slow.reply();
    assert.ok(performance.now() - start > 9000, "after the grace");
    assert.equal(refusal?.status, 408);
    assert.match(refusal.body.toString("latin1"), /SLOW_BODY.*at least 52429 bytes a second/s);
  } finally {
    clearInterval(drip);
  }
  await untilMetric(service, "stepd_arena_used_bytes", (bytes) => bytes === 0);
  assert.equal(await service.metric('stepd_refusals_total{reason="SLOW_BODY"}'), 1);
  await slow.closed();
});

test("a connection that is silent in its handshake does not delay a drain, and ends with the idle timeout", async () => {
  const { cert, key } = makeCertificate("silent");
  const env = { STEPD_TLS_CERT_FILE: cert, STEPD_TLS_KEY_FILE: key, STEPD_IDLE_TIMEOUT_MS: "1000", STEPD_ADMIN_PORT: "0" };
  await using service = await TestService.start(env);
  using silent = await RawClient.connect(service);
  await silent.closed();
  using tls = await RawClient.connect(service);
  using plain = await RawClient.connect({ url: service.admin ?? "" });
  const start = performance.now();
  assert.equal(await service.stop(), 0);
  assert.ok(performance.now() - start < 20_000, "the drain waits for nobody");
  await Promise.all([tls.closed(), plain.closed()]);
});
