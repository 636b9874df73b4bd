/** Tests `stepd bench` on real servers: counts, refusals, errors, Ctrl-C, tokens, TLS and sockets. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { once } from "node:events";
import http from "node:http";
import type { AddressInfo } from "node:net";
import { test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { TestService } from "../support/service.ts";
import { Command, Folder, main, stepd } from "./_command.ts";

interface Row {
  readonly elements: number;
  readonly connections: number;
  readonly seconds: number;
  readonly steps: number;
  readonly steps_per_second: number;
  readonly bytes_in_per_second: number;
  readonly p50_ms: number;
  readonly p90_ms: number;
  readonly p99_ms: number;
  readonly refusals: number;
  readonly errors: Readonly<Record<string, number>>;
}

test("bench counts the same steps as the server", async () => {
  await using service = await TestService.start();
  const args = ["bench", service.url, "--elements", "1000,20000", "--connections", "3", "--seconds", "1", "--check", "--json"];
  const { code, stdout, stderr } = await stepd(...args, "--optimizer", "lamb", "--set", "lr=0.01", "--dtype", "BF16");
  assert.equal(code, 0, stderr);
  const rows = JSON.parse(stdout) as Row[];
  assert.deepEqual(
    rows.map(({ elements, connections, refusals, errors }) => [elements, connections, refusals, errors]),
    [
      [1000, 3, 0, {}],
      [20000, 3, 0, {}],
    ],
  );
  const metrics = await (await fetch(`${service.url}/metrics`)).text();
  const counted = Number(/^stepd_elements_total\{optimizer="lamb",dtype="BF16"\} (\d+)$/m.exec(metrics)?.[1]);
  // For each size, 4 steps are not counted: one that creates the state, and one on each connection.
  assert.equal(
    counted,
    rows.reduce((sum, { steps, elements }) => sum + (steps + 4) * elements, 0),
  );
  for (const row of rows) {
    assert.ok(row.steps > 0 && row.seconds >= 1);
    assert.ok(row.p50_ms > 0 && row.p50_ms <= row.p90_ms && row.p90_ms <= row.p99_ms);
    assert.ok(Math.abs(row.steps_per_second * row.seconds - row.steps) < 1e-6);
    // A step sends two parameters of 2 bytes and two moments of 4 bytes per element, and headers.
    assert.ok(row.bytes_in_per_second / row.steps_per_second > 12 * row.elements);
  }
});

test("bench prints a table, over a Unix socket", async () => {
  using folder = new Folder();
  const address = `unix:${folder.at("stepd.sock")}`;
  await using server = new Command(["serve", "--socket", folder.at("stepd.sock"), "--arena-mib", "32", "--log-level", "warn"]);
  assert.equal(await server.listening(), address);
  const { code, stdout, stderr } = await stepd("bench", address, "--elements", "1000", "--seconds", "1");
  assert.equal(code, 0, stderr);
  assert.match(stdout, /^adamw, F32\n\nelements {2}connections .*refused {2}errors\n[- ]+\n1,000 +1 +[\d,]+ +[\d.]+ .* 0 +0\n$/);
});

/** Delays of the second signal in ms: at once, and about when the command ends. */
for (const gap of [0, 4, 6, 8])
  test(`Ctrl-C prints the results so far, with a second signal after ${gap} ms`, async () => {
    await using service = await TestService.start();
    const start = performance.now();
    await using command = new Command(["bench", service.url, "--elements", "1000,2000", "--seconds", "600", "--json"]);
    // Before the first step the metric is NaN.
    while (!((await service.metric('stepd_elements_total{optimizer="adamw",dtype="F32"}')) > 20_000)) await delay(20);
    // npx forwards the terminal's signal, so the command receives the signal twice.
    command.child.kill("SIGINT");
    if (gap > 0) await delay(gap);
    command.child.kill("SIGINT");
    const { code, stdout, stderr } = await command.ended;
    assert.equal(code, 0, stderr);
    const rows = JSON.parse(stdout) as Row[];
    assert.deepEqual(
      rows.map(({ elements }) => elements),
      [1000],
    );
    assert.ok((rows[0]?.steps ?? 0) > 10 && (rows[0]?.seconds ?? 0) < (performance.now() - start) / 1000);
  });

type Answer = { readonly status: number; readonly headers?: http.OutgoingHttpHeaders; readonly body?: string } | "lost" | undefined;

/** Starts a proxy that answers some calls itself, or changes the replies of the server behind it. */
const startProxy = async (url: string, answer: (call: number) => Answer, change: (reply: Buffer, call: number) => void = () => {}) => {
  let calls = 0;
  const server = http.createServer(async (request, response) => {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const call = ++calls;
    const own = answer(call);
    if (own === "lost") {
      request.socket.destroy();
      return;
    }
    if (own) {
      response.writeHead(own.status, own.headers).end(own.body);
      return;
    }
    const headers = { "Content-Type": String(request.headers["content-type"]) };
    const reply = await fetch(`${url}${request.url}`, { method: "POST", headers, body: Buffer.concat(chunks) });
    const bytes = Buffer.from(await reply.arrayBuffer());
    change(bytes, call);
    response.writeHead(reply.status, { "Content-Type": String(reply.headers.get("content-type")) }).end(bytes);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
};

const problem = (status: number, name: string) => ({
  status,
  headers: { "Content-Type": "application/problem+json", "Retry-After": "0" },
  body: JSON.stringify({ name, detail: "no", code: 0 }),
});

test("refusals and errors are counted separately, and errors set the exit status", async () => {
  await using service = await TestService.start();
  const answers = new Map<number, Answer>([
    [1, problem(429, "OVERLOADED")],
    [5, problem(429, "OVERLOADED")],
    [6, problem(503, "DRAINING")],
    [7, problem(500, "INTERNAL_ERROR")],
    [8, { status: 502, body: "a proxy" }],
    [9, "lost"],
    [10, { status: 200, headers: { "Content-Type": "application/vnd.msgpack" }, body: "another reply" }],
  ]);
  await using proxy = await startProxy(service.url, (call) => answers.get(call));
  const { code, stdout, stderr } = await stepd("bench", proxy.url, "--elements", "10", "--seconds", "2", "--json");
  assert.equal(code, 1, stderr);
  const [row] = JSON.parse(stdout) as Row[];
  assert.equal(row?.refusals, 2);
  assert.deepEqual(row?.errors, { INTERNAL_ERROR: 1, "HTTP 502": 1, ECONNRESET: 1, OTHER_REPLY: 1 });
  assert.ok(row.steps > 0);
});

test("refusals alone do not set the exit status", async () => {
  await using service = await TestService.start();
  await using proxy = await startProxy(service.url, (call) => (call === 4 ? problem(429, "OVERLOADED") : undefined));
  const { code, stdout } = await stepd("bench", proxy.url, "--elements", "10", "--seconds", "1");
  assert.equal(code, 0);
  assert.match(stdout, / 1 +0\n$/);
});

test("--check detects a reply of the right length with wrong bytes", async () => {
  await using service = await TestService.start();
  await using proxy = await startProxy(
    service.url,
    () => undefined,
    (reply, call) => {
      const middle = reply.length >> 1;
      if (call > 2) reply[middle] = (reply[middle] as number) ^ 1;
    },
  );
  const args = ["bench", proxy.url, "--elements", "100", "--seconds", "1", "--json"];
  const { code, stdout } = await stepd(...args, "--check");
  assert.equal(code, 1);
  const [row] = JSON.parse(stdout) as Row[];
  assert.equal(row?.steps, 0);
  assert.ok((row?.errors["OTHER_REPLY"] ?? 0) > 0);
});

test("the token comes from a file; without it the first refusal ends the run", async () => {
  using folder = new Folder();
  const tokens = folder.write("tokens", "tester s3cret-of-the-test\n");
  await using server = new Command(["serve", "--port", "0", "--arena-mib", "32", "--log-level", "error", "--tokens-file", tokens]);
  const url = await server.listening();
  const refused = await stepd("bench", url, "--elements", "10", "--seconds", "1");
  assert.equal(refused.code, 1);
  assert.match(refused.stderr, /^stepd: the first step did not go well: UNAUTHENTICATED: [^\n]+\n$/);
  const token = folder.write("token", "s3cret-of-the-test\n");
  const { code, stderr } = await stepd("bench", url, "--elements", "10", "--seconds", "1", "--token-file", token);
  assert.equal(code, 0, stderr);
  const two = await stepd("bench", url, "--token-file", folder.write("two", "a b"));
  assert.equal(two.code, 2);
  assert.equal(two.stderr, "stepd: --token-file: expected one token of visible ASCII characters, found others\n");
});

test("bench supports mutual TLS", async () => {
  using folder = new Folder();
  const [cert, key] = [folder.at("cert.pem"), folder.at("key.pem")];
  // One self-signed certificate serves as authority, server and client.
  const request = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=stepd"];
  const names = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:TRUE"];
  const { status, stderr: openssl } = spawnSync("openssl", [...request, ...names, "-keyout", key, "-out", cert], { encoding: "utf8" });
  assert.equal(status, 0, openssl);
  const tls = ["--tls-cert-file", cert, "--tls-key-file", key, "--tls-client-ca-file", cert];
  await using server = new Command(["serve", "--port", "0", "--arena-mib", "32", "--log-level", "fatal", ...tls]);
  const url = await server.listening();
  assert.match(url, /^https:/);
  const args = ["bench", url, "--elements", "10", "--seconds", "1"];
  const { code, stderr } = await stepd(...args, "--ca", cert, "--cert", cert, "--key", key);
  assert.equal(code, 0, stderr);
  const untrusted = await stepd(...args);
  assert.equal(untrusted.code, 1);
  assert.match(untrusted.stderr, /^stepd: the first step did not go well: DEPTH_ZERO_SELF_SIGNED_CERT: [^\n]+\n$/);
  assert.equal((await stepd(...args, "--ca", cert)).code, 1, "a caller without a certificate");
  const missing = await stepd(...args, "--ca", folder.at("none"));
  assert.match(missing.stderr, /^stepd: --ca: expected a file that can be read, found [^\n]+\n$/);
});

test("the progress bar appears only on a terminal", async () => {
  await using service = await TestService.start();
  const args = ["bench", service.url, "--elements", "10", "--seconds", "1"];
  const { code, stdout, stderr } = await stepd(...args);
  assert.equal(code, 0);
  assert.equal(stderr, "");
  assert.ok(!stdout.includes("%"));
  await using terminal = new Command(["-qec", [process.execPath, main, ...args].join(" "), "/dev/null"], { TERM: "xterm" }, ["script"]);
  assert.match((await terminal.ended).stdout, /10 elements .*\d+%/);
});

test("an unreachable server or an unknown optimizer is an error", async () => {
  const nobody = await stepd("bench", "http://127.0.0.1:1", "--seconds", "1");
  assert.equal(nobody.code, 1);
  assert.match(nobody.stderr, /^stepd: the first step did not go well: ECONNREFUSED: [^\n]+\n$/);
  await using service = await TestService.start();
  const unknown = await stepd("bench", service.url, "--elements", "10", "--optimizer", "adann");
  assert.equal(unknown.code, 1);
  assert.match(unknown.stderr, /^stepd: the first step did not go well: INVALID_PARAMS: \/optimizer\/name: expected one of [^\n]+\n$/);
});
