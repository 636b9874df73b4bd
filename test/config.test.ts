/** Tests settings and flags of the real process: valid values, invalid values, and the messages at a terminal. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import http from "node:http";
import net from "node:net";
import os from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { helpText, readConfig, settings, warningsFor } from "../src/config.ts";
import { childEnv } from "./support/env.ts";
import { started } from "./support/service.ts";

const root = join(import.meta.dirname, "..");
const main = join(root, "src/main.ts");
const scratch = mkdtempSync(join(os.tmpdir(), "stepd-config-"));
after(() => rmSync(scratch, { recursive: true, force: true }));

type Env = Readonly<Record<string, string>>;

interface Run {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Starts the service. `ended` resolves with the output and the exit code. */
const run = (env: Env, args: readonly string[] = [], command: readonly string[] = [process.execPath, main]) => {
  const [file = "", ...rest] = command;
  const child = spawn(file, [...rest, ...args], { cwd: root, env: { ...childEnv, ...env }, stdio: ["ignore", "pipe", "pipe"] });
  let stdout = "";
  let stderr = "";
  child.stdout.on("data", (chunk) => {
    stdout += chunk;
  });
  child.stderr.on("data", (chunk) => {
    stderr += chunk;
  });
  const ended = once(child, "close").then(([code]): Run => ({ code: code as number | null, stdout, stderr }));
  /** Resolves with the address once the process prints it. */
  const listening = async (): Promise<string> => (await started(child, () => stderr)).address;
  return {
    child,
    ended,
    listening,
    async [Symbol.asyncDispose]() {
      if (child.exitCode === null && child.signalCode === null) child.kill("SIGKILL");
      await ended;
    },
  };
};

/** Returns the HTTP status of /health/live on a Unix socket. */
const liveStatus = (socketPath: string): Promise<number | undefined> =>
  new Promise((resolve, reject) => {
    http.get({ socketPath, path: "/health/live" }, (res) => resolve(res.resume().statusCode)).once("error", reject);
  });

const small: Env = { STEPD_PORT: "0", STEPD_ARENA_MIB: "16", STEPD_WORKERS: "1" };

/** Requires exit code 1, an empty stdout, and one line on stderr that names the variable, the expected and the found value. */
const requireRefusal = async (env: Env, variable: string, found: string): Promise<void> => {
  await using service = run({ ...small, ...env });
  const { code, stdout, stderr } = await service.ended;
  assert.equal(code, 1, stderr);
  assert.equal(stdout, "");
  assert.match(stderr, /^[^\n]+\n$/, "one line");
  assert.ok(stderr.startsWith(`stepd: ${variable}: expected `), stderr);
  assert.ok(stderr.includes("found ") && stderr.includes(found), stderr);
};

const wholeNumbers = {
  STEPD_PORT: [0, 65535],
  STEPD_WORKERS: [1, 256],
  STEPD_ARENA_MIB: [1, 4096],
  STEPD_REQUEST_TIMEOUT_MS: [1, 86400000],
  STEPD_IDLE_TIMEOUT_MS: [1, 86400000],
  STEPD_DRAIN_TIMEOUT_MS: [1, 86400000],
} as const;

for (const [name, [least, most]] of Object.entries(wholeNumbers)) {
  const high = String(most + 1);
  test(`${name} accepts only whole numbers in decimal digits, within its limits`, () => {
    for (const wrong of [String(least - 1), high, "many", "", "1.5", "0x10", " 8", "8 ", "1e2", "+8", "NaN", "Infinity", "\u0668"])
      assert.throws(
        () => readConfig({ [name]: wrong }),
        (error: Error) =>
          error.name === "ConfigError" && error.message.startsWith(`${name}: expected `) && error.message.endsWith(`, found ${JSON.stringify(wrong)}`),
      );
  });
  test(`${name} accepts its minimum and its maximum`, () => {
    for (const value of [least, most]) assert.ok(Object.values(readConfig({ [name]: String(value) })).includes(value));
  });
}

test("a number over its limit stops the start", () => requireRefusal({ STEPD_PORT: "65536" }, "STEPD_PORT", '"65536"'));
test("an unknown log level stops the start", () => requireRefusal({ STEPD_LOG_LEVEL: "loud" }, "STEPD_LOG_LEVEL", '"loud"'));

test("values in capitals, empty values and unknown choices are refused", () => {
  for (const [name, value] of [
    ["STEPD_LOG_LEVEL", "INFO"],
    ["STEPD_LOG_LEVEL", ""],
    ["STEPD_WIDE_VECTORS", "on"],
    ["STEPD_HOST", ""],
  ] as const) {
    const message = new RegExp(`^${name}: expected .*, found ${JSON.stringify(value)}$`);
    assert.throws(() => readConfig({ [name]: value }), { name: "ConfigError", message });
  }
});
test("a host that is not an address of this machine stops the start", () => requireRefusal({ STEPD_HOST: "192.0.2.1" }, "STEPD_HOST", '"192.0.2.1"'));
test("a socket in a missing folder stops the start", () => {
  const path = join(scratch, "missing/stepd.sock");
  return requireRefusal({ STEPD_SOCKET: path }, "STEPD_SOCKET", JSON.stringify(path));
});
test("a socket path that is too long stops the start", () => {
  const path = join(scratch, "s".repeat(200));
  return requireRefusal({ STEPD_SOCKET: path }, "STEPD_SOCKET", JSON.stringify(path));
});
test("a socket path that is a regular file stops the start and keeps the file", async () => {
  const path = join(scratch, "file");
  writeFileSync(path, "precious");
  await requireRefusal({ STEPD_SOCKET: path }, "STEPD_SOCKET", JSON.stringify(path));
  assert.equal(readFileSync(path, "utf8"), "precious");
});

/** Writes a file of settings and returns its path. */
const settingsFile = (text: string): string => {
  const file = join(mkdtempSync(join(scratch, "settings-")), "stepd.env");
  writeFileSync(file, text);
  return file;
};

test("a file of settings is read below the variables; names of the clients' variables are no mistake in it", () => {
  const file = settingsFile("STEPD_URL=http://a.example\n  # note\r\nSTEPD_PORT=9000\nSTEPD_TOKENS_FILE='to kens'\nSTEPD_LOG_LEVEL=warn # as usual\n");
  const config = readConfig({ STEPD_SETTINGS_FILE: file, STEPD_PORT: "9001" });
  assert.deepEqual([config.port, config.tokensFile, config.logLevel, config.settingsFile], [9001, "to kens", "warn", file]);
});

test("a mistake in a file of settings is refused with the file and the setting or the line, and without the line's content", () => {
  for (const [text, message] of [
    ["STEPD_PORT=x\n", 'STEPD_PORT: expected a whole number from 0 to 65535, found "x"'],
    ["STEPD_PROT=1\n", "STEPD_PROT: expected a setting that --help lists (the nearest is STEPD_PORT), found an unknown name"],
    ["STEPD_PORT=1\nSTEPD_HOST=::1\nSTEPD_PORT=2\n", "line 3: expected each setting once, found STEPD_PORT already in line 1"],
    ["STEPD_SETTINGS_FILE=a\n", "line 1: expected no file of settings inside of another, found STEPD_SETTINGS_FILE"],
    ["\ntrainer secret-token\n", "line 2: expected STEPD_NAME=value, found something else"],
    ["NODE_ENV=production\n", "line 1: expected STEPD_NAME=value, found something else"],
  ] as const) {
    const file = settingsFile(text);
    const place = message.startsWith("line") ? `${file}, ` : `${file}: `;
    assert.throws(() => readConfig({ STEPD_SETTINGS_FILE: file }), { name: "ConfigError", message: `${place}${message}` });
  }
  assert.throws(() => readConfig({ STEPD_SETTINGS_FILE: scratch }), { name: "ConfigError", message: /^STEPD_SETTINGS_FILE: expected a file that can be read/ });
});

test("an arena of the file of settings counts as given: it is refused if it does not fit", () => {
  const machine = { memory: 2 ** 34, memoryLimit: 2 ** 29, processors: 1 };
  const file = settingsFile("STEPD_ARENA_MIB=4000\n");
  assert.throws(() => readConfig({ STEPD_SETTINGS_FILE: file }, machine), { name: "ConfigError", message: /STEPD_ARENA_MIB=4000/ });
});

test("an unknown setting that resembles none is refused without a suggestion", async () => {
  await using service = run({ ...small, STEPD_FOO: "2" });
  assert.match((await service.ended).stderr, /^stepd: STEPD_FOO: expected a setting that --help lists, found an unknown name\n$/);
});

test("an unknown setting stops the start and suggests the nearest one", async () => {
  await using service = run({ ...small, STEPD_WORKER: "2" });
  const { code, stderr } = await service.ended;
  assert.equal(code, 1);
  assert.match(stderr, /^stepd: STEPD_WORKER: expected a setting that --help lists \(the nearest is STEPD_WORKERS\), found [^\n]*\n$/);
});

/** Returns the names of all STEPD_ variables in a folder's files, except in installed and built files. */
const namesIn = (folder: string): readonly string[] =>
  readdirSync(join(root, folder), { recursive: true, encoding: "utf8" })
    .filter((file) => !/node_modules|\.venv|__pycache__|\/build\//.test(file) && statSync(join(root, folder, file)).isFile())
    .flatMap((file) => readFileSync(join(root, folder, file), "utf8").match(/\bSTEPD_[A-Z0-9_]*[A-Z0-9]\b/g) ?? []);

test("variables of clients, examples, the deployment and Kubernetes are accepted", async () => {
  const names = new Set(["clients", "examples", "deploy"].flatMap(namesIn));
  for (const name of ["STEPD_URL", "STEPD_IMAGE", "STEPD_BIND"]) assert.ok(names.has(name), name);
  const clientVariables = ["STEPD_TOKEN", "STEPD_URLS"];
  const links = ["STEPD_SERVICE_HOST", "STEPD_SERVICE_PORT_HTTP", "STEPD_PORT_8080_TCP", "STEPD_PORT_8080_TCP_ADDR"];
  const others = [...names, ...clientVariables, ...links].filter((name) => !Object.values(settings).some((setting) => setting.name === name));
  const env = Object.fromEntries(others.map((name) => [name, "http://127.0.0.1:8080"]));
  assert.deepEqual(readConfig(env), readConfig({}));
  await using service = run({ ...small, ...env });
  await service.listening();
});

test("STEPD_TOKEN, the clients' variable, gives a warning only on a server without tokens", () => {
  const misleading = (env: Env): readonly string[] => warningsFor(env, readConfig(env));
  assert.equal(misleading({ STEPD_TOKEN: "abc" }).length, 1);
  assert.deepEqual([misleading({}), misleading({ STEPD_TOKEN: "" }), misleading({ STEPD_TOKEN: "abc", STEPD_TOKENS_FILE: "tokens" })], [[], [], []]);
});

test("a port in use stops the start", async () => {
  const server = net.createServer();
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as net.AddressInfo;
  try {
    await requireRefusal({ STEPD_PORT: String(port) }, "STEPD_PORT", `${port} in use`);
  } finally {
    server.close();
  }
});

test("a socket in use stops the start; a stale socket is replaced", async () => {
  const path = join(scratch, "stepd.sock");
  {
    await using first = run({ ...small, STEPD_SOCKET: path });
    assert.equal(await first.listening(), `unix:${path}`);
    await requireRefusal({ STEPD_SOCKET: path }, "STEPD_SOCKET", "in use");
  }
  assert.ok(existsSync(path), "a killed service leaves its socket");
  await using second = run({ ...small, STEPD_SOCKET: path });
  await second.listening();
  assert.equal(await liveStatus(path), 200);
  second.child.kill("SIGTERM");
  assert.equal((await second.ended).code, 0);
  assert.ok(!existsSync(path), "a drained service takes its socket away");
});

test("port 0 chooses a free port and prints it", async () => {
  await using service = run(small);
  const address = await service.listening();
  assert.match(address, /^http:\/\/127\.0\.0\.1:[1-9]\d*$/);
  assert.equal((await fetch(`${address}/health/ready`)).status, 200);
});

test("workers, arena size and an IPv6 host take effect", async (t) => {
  const hosts = Object.values(os.networkInterfaces()).flat();
  const host = hosts.some((address) => address?.address === "::1") ? "::1" : "127.0.0.1";
  t.diagnostic(`host ${host}`);
  await using service = run({ ...small, STEPD_HOST: host, STEPD_WORKERS: "3", STEPD_ARENA_MIB: "8" });
  const address = await service.listening();
  assert.ok(address.startsWith(host === "::1" ? "http://[::1]:" : "http://127.0.0.1:"));
  const info = (await (await fetch(`${address}/v1`)).json()) as { workers: number; limits: { arena_bytes: number } };
  assert.equal(info.workers, 3);
  assert.ok(info.limits.arena_bytes <= 8 * 2 ** 20 && info.limits.arena_bytes > 7 * 2 ** 20, String(info.limits.arena_bytes));
});

test("STEPD_LOG_LEVEL=debug logs calls to stderr as JSON", async () => {
  await using service = run({ ...small, STEPD_LOG_LEVEL: "debug" });
  await fetch(`${await service.listening()}/v1/optimizers`);
  service.child.kill("SIGTERM");
  const lines = (await service.ended).stderr.trim().split("\n");
  assert.ok(
    lines.map((line) => JSON.parse(line) as { msg: string }).some(({ msg }) => msg === "call"),
    lines.join("\n"),
  );
});

test("STEPD_LOG_LEVEL=silent logs nothing, not even the start", async () => {
  const path = join(scratch, "silent.sock");
  await using service = run({ ...small, STEPD_LOG_LEVEL: "silent", STEPD_SOCKET: path });
  while ((await liveStatus(path).catch(() => undefined)) !== 200) await delay(20);
  service.child.kill("SIGTERM");
  assert.deepEqual(await service.ended, { code: 0, stdout: "", stderr: "" });
});

for (const signal of ["SIGTERM", "SIGINT"] as const) {
  test(`${signal} drains: a request in flight is answered, then the process exits with 0`, async () => {
    await using service = run(small);
    const address = new URL(await service.listening());
    const body = Buffer.from(JSON.stringify({ jsonrpc: "2.0", id: 1, method: "optimizer.list" }));
    const request = http.request({
      port: address.port,
      method: "POST",
      path: "/rpc",
      headers: { "Content-Type": "application/json", "Content-Length": body.length },
    });
    request.write(body.subarray(0, 10));
    await delay(200);
    service.child.kill(signal);
    service.child.kill(signal); // A terminal and npm both deliver the signal, so the process receives it twice.
    await delay(200);
    request.end(body.subarray(10));
    const [response] = (await once(request, "response")) as [http.IncomingMessage];
    assert.equal(response.statusCode, 200);
    const { code, stderr } = await service.ended;
    assert.equal(code, 0, stderr);
    assert.match(stderr, /"draining"/);
  });
}

test("a call that exceeds the drain timeout is cut, which the exit code shows", async () => {
  await using service = run({ ...small, STEPD_DRAIN_TIMEOUT_MS: "200" });
  const address = new URL(await service.listening());
  const request = http.request({ port: address.port, method: "POST", path: "/rpc", headers: { "Content-Type": "application/json", "Content-Length": 100 } });
  request.on("error", () => {});
  request.write("{");
  await delay(200);
  service.child.kill("SIGTERM");
  assert.equal((await service.ended).code, 1);
});

test("a later second signal ends the drain at once", async () => {
  await using service = run(small);
  const address = new URL(await service.listening());
  const request = http.request({ port: address.port, method: "POST", path: "/rpc", headers: { "Content-Type": "application/json", "Content-Length": 100 } });
  request.on("error", () => {});
  request.write("{");
  await delay(200);
  service.child.kill("SIGINT");
  await delay(900);
  service.child.kill("SIGINT");
  const { code, stderr } = await service.ended;
  assert.equal(code, 1);
  assert.match(stderr, /stopped by a second SIGINT/);
});

test("npm start listens, and SIGTERM to npm drains the service", async () => {
  await using npm = run({ ...small, HOME: scratch }, [], ["npm", "start"]);
  const address = await npm.listening();
  assert.equal((await fetch(`${address}/health/live`)).status, 200);
  npm.child.kill("SIGTERM");
  const { code, stderr } = await npm.ended;
  assert.equal(code, 0, stderr);
  assert.match(stderr, /"draining"/);
  await assert.rejects(fetch(`${address}/health/live`), "the service is gone with npm");
});

test("--help lists every setting with its default and exits with 0", async () => {
  for (const flag of ["--help", "-h"]) {
    await using process = run({}, [flag]);
    const { code, stdout, stderr } = await process.ended;
    assert.deepEqual({ code, stderr }, { code: 0, stderr: "" });
    for (const name of [...Object.keys(wholeNumbers), "STEPD_HOST", "STEPD_SOCKET", "STEPD_LOG_LEVEL"])
      assert.match(stdout, new RegExp(`^ {2}${name} +\\S.*$`, "m"));
    assert.match(stdout, /STEPD_PORT .*\(8080\)/);
    assert.match(stdout, /STEPD_HOST .*\(127\.0\.0\.1\)/);
    assert.equal(stdout.match(/^ {2}STEPD_/gm)?.length, Object.keys(readConfig({})).length);
  }
});

test("--help works despite an invalid setting", async () => {
  await using process = run({ STEPD_PORT: "x" }, ["--help"]);
  assert.equal((await process.ended).code, 0);
});

test("--version prints the version of package.json and exits with 0", async () => {
  await using process = run({}, ["--version"]);
  const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { version: string };
  assert.deepEqual(await process.ended, { code: 0, stdout: `${version}\n`, stderr: "" });
});

for (const args of [["--prot"], ["serve"], ["--help=yes"], ["--port"], ["--port", "x"], ["--check=yes"]]) {
  test(`the argument ${args} stops the start with a one-line error`, async () => {
    await using process = run(small, args);
    const { code, stdout, stderr } = await process.ended;
    assert.deepEqual({ code, stdout }, { code: 1, stdout: "" });
    assert.match(stderr, /^stepd: [^\n]+\n$/);
  });
}

test("incomplete combinations of settings and invalid origins are refused by name", () => {
  const refused: readonly (readonly [Env, RegExp])[] = [
    [{ STEPD_TLS_CERT_FILE: "c" }, /^STEPD_TLS_KEY_FILE: /],
    [{ STEPD_TLS_KEY_FILE: "k" }, /^STEPD_TLS_CERT_FILE: /],
    [{ STEPD_TLS_CLIENT_CA_FILE: "a" }, /^STEPD_TLS_CERT_FILE: /],
    [{ STEPD_CORS_ORIGINS: "train.example" }, /^STEPD_CORS_ORIGINS: .*"train.example"/],
    [{ STEPD_CORS_ORIGINS: "https://train.example/page" }, /^STEPD_CORS_ORIGINS: /],
    [{ STEPD_PAGE_REPLICAS: "http://a.example, b.example" }, /^STEPD_PAGE_REPLICAS: .*"b\.example"/],
    [{ STEPD_PAGE_REPLICAS: "http://user:secret@a.example" }, /^STEPD_PAGE_REPLICAS: /],
    [{ STEPD_PAGE_REPLICAS: "file:///metrics" }, /^STEPD_PAGE_REPLICAS: /],
    [{ STEPD_OTLP_URL: "collector:4318" }, /^STEPD_OTLP_URL: .*"collector:4318"/],
    [{ STEPD_OTLP_URL: "http://a.example,http://b.example" }, /^STEPD_OTLP_URL: expected one URL/],
    [{ STEPD_ADMIN_PORT: "x" }, /^STEPD_ADMIN_PORT: /],
  ];
  for (const [env, message] of refused) assert.throws(() => readConfig(env), { name: "ConfigError", message });
});

test("without settings the defaults apply, and other variables are ignored", () => {
  const config = readConfig({ PORT: "1", HOST: "x", stepd_port: "2" });
  const { workers, arenaMib, maxJsonMib, ...rest } = config;
  assert.deepEqual(rest, {
    settingsFile: "",
    host: "127.0.0.1",
    port: 8080,
    socket: "",
    wideVectors: "auto",
    logLevel: "info",
    accessLog: "off",
    otlpUrl: "",
    requestTimeoutMs: 300000,
    idleTimeoutMs: 60000,
    drainTimeoutMs: 30000,
    drainGraceMs: 0,
    minBodyRate: 4096,
    maxConnections: 1024,
    maxInFlight: 256,
    sharedDir: "",
    cacheMib: 0,
    tokensFile: "",
    tlsCertFile: "",
    tlsKeyFile: "",
    tlsClientCaFile: "",
    receiptKeyFile: "",
    adminPort: undefined,
    adminHost: "127.0.0.1",
    corsOrigins: [],
    page: "on",
    pageReplicas: [],
  });
  assert.equal(workers, Number(settings.workers.initial));
  assert.ok(Number.isInteger(arenaMib) && arenaMib >= 1 && arenaMib <= 4096);
  assert.ok(Number.isInteger(maxJsonMib) && maxJsonMib >= 1 && maxJsonMib <= 64);
});

test("the configuration is frozen", () => {
  const config = readConfig({});
  assert.ok(Object.isFrozen(config));
  assert.throws(() => Object.assign(config, { port: 1 }), TypeError);
});

test("the help names exactly the settings that are read", () => {
  const given = {
    STEPD_SETTINGS_FILE: settingsFile(""),
    STEPD_HOST: "h",
    STEPD_WIDE_VECTORS: "off",
    STEPD_LOG_LEVEL: "info",
    STEPD_ACCESS_LOG: "on",
    STEPD_PAGE: "off",
    STEPD_OTLP_URL: "http://127.0.0.1:4318",
    STEPD_PAGE_REPLICAS: "http://a.example:81/steps",
    STEPD_CORS_ORIGINS: "https://a.example, http://b.example:81",
  } as Env;
  // A certificate and its key need each other, so both are set.
  const others = { STEPD_TLS_CERT_FILE: "c", STEPD_TLS_KEY_FILE: "k" };
  for (const name of helpText().match(/STEPD_\w+/g) ?? []) assert.doesNotThrow(() => readConfig({ ...others, [name]: given[name] ?? "1" }));
});
