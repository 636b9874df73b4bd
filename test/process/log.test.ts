/** Tests a log whose output fails, is closed, or is not read: lines are lost and counted, but calls and drains continue. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { once } from "node:events";
import { closeSync, constants, mkdtempSync, openSync, readSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import { join } from "node:path";
import type { Readable } from "node:stream";
import { test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { LogStream } from "../../src/telemetry/_stream.ts";
import { root } from "../support/tree.ts";
import { answerOf, LIST, SocketService } from "./_service.ts";

const TOKEN = "trainer-0123456789abcdef";
const BEARER = { Authorization: `Bearer ${TOKEN}` };

/** Sends SIGTERM in the middle of a call's body, and requires an answer and exit status 0. */
const requireDrain = async (service: SocketService, headers = {}): Promise<void> => {
  const request = service.open("/rpc", LIST.length, headers);
  const answer = answerOf(request);
  request.write(LIST.slice(0, 10));
  while ((await service.metric("stepd_in_flight_requests").catch(() => 0)) < 1) await delay(10);
  service.child.kill("SIGTERM");
  while ((await service.ask("/health/ready")).status !== 503) await delay(10);
  request.end(LIST.slice(10));
  assert.equal((await answer).status, 200);
  assert.deepEqual(await service.ended, [0, null]);
};

for (const output of ["standard output", "standard error", "both"] as const) {
  test(`calls and drains continue with ${output} on a full file system`, async () => {
    const full = openSync("/dev/full", "w");
    const stdio = ["ignore", output === "standard error" ? "ignore" : full, output === "standard output" ? "ignore" : full] as const;
    await using service = new SocketService([...stdio], { STEPD_LOG_LEVEL: "info" });
    closeSync(full);
    await service.ready();
    const lost = await service.metric("stepd_log_lines_lost_total");
    assert.equal(lost > 0, output !== "standard output", "the line of the start");
    assert.equal((await service.ask("/rpc", LIST)).status, 200);
    await requireDrain(service);
  });
}

test("a renewed tokens file takes effect although its log line is lost", async () => {
  const folder = mkdtempSync(join(os.tmpdir(), "stepd-log-"));
  const tokens = join(folder, "tokens");
  writeFileSync(tokens, `old ${TOKEN}-old\n`);
  const full = openSync("/dev/full", "w");
  try {
    await using service = new SocketService(["ignore", "ignore", full], { STEPD_TOKENS_FILE: tokens, STEPD_ADMIN_PORT: "0" });
    await service.ready();
    assert.equal((await service.ask("/rpc", LIST, BEARER)).status, 401);
    writeFileSync(tokens, `trainer ${TOKEN}\n`);
    while ((await service.ask("/rpc", LIST, BEARER)).status === 401) await delay(50);
    service.child.kill("SIGTERM");
    assert.deepEqual(await service.ended, [0, null]);
  } finally {
    closeSync(full);
    rmSync(folder, { recursive: true });
  }
});

/** A named pipe, which the test may read or leave unread. */
class Fifo implements Disposable {
  readonly #folder = mkdtempSync(join(os.tmpdir(), "stepd-log-"));
  readonly reader: number;
  readonly writer: number;

  constructor() {
    const path = join(this.#folder, "fifo");
    assert.equal(spawnSync("mkfifo", [path]).status, 0);
    this.reader = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    this.writer = openSync(path, constants.O_WRONLY);
  }

  [Symbol.dispose](): void {
    rmSync(this.#folder, { recursive: true });
  }
}

// Node connects its child processes by sockets, and a shell connects them by pipes.
for (const kind of ["socket", "pipe"] as const) {
  test(`calls and drains continue after the log's reader disconnects: ${kind}`, async () => {
    using fifo = new Fifo();
    await using service = new SocketService(["ignore", "ignore", kind === "socket" ? "pipe" : fifo.writer], { STEPD_LOG_LEVEL: "debug" });
    closeSync(fifo.writer);
    await service.ready();
    service.child.stderr?.destroy();
    closeSync(fifo.reader);
    while ((await service.metric("stepd_log_lines_lost_total")) === 0) assert.equal((await service.ask("/rpc", LIST)).status, 200);
    await requireDrain(service);
  });

  test(`calls and drains continue if the log is never read: ${kind}`, async () => {
    using fifo = new Fifo();
    await using service = new SocketService(["ignore", "ignore", kind === "socket" ? "pipe" : fifo.writer], { STEPD_LOG_LEVEL: "debug" });
    closeSync(fifo.writer);
    await service.ready();
    // The lines exceed the buffer of a pipe (about 64 KiB) and of a socket (about 200 KiB), but not the limit of waiting lines.
    const id = { "X-Request-Id": "r".repeat(128), traceparent: `00-${"1".repeat(32)}-${"2".repeat(16)}-01` };
    for (let i = 0; i < 600; i++) assert.equal((await service.ask("/rpc", LIST, id)).status, 200);
    assert.equal(await service.metric("stepd_log_lines_lost_total"), 0);
    await requireDrain(service);
    closeSync(fifo.reader);
  });
}

/** The line is a tenth as long as the limit for waiting lines. */
const LONG_LINE = `${"x".repeat(100_000)}\n`;

test("a full pipe keeps lines up to a limit, and loses only whole lines", async () => {
  using fifo = new Fifo();
  using stream = new LogStream(fifo.writer);
  for (let i = 0; i < 20; i++) stream.write(LONG_LINE);
  assert.ok(stream.lost > 0 && stream.lost < 20, `${stream.lost}`);
  const chunk = Buffer.alloc(2 ** 16);
  /** Reads until the given number of bytes has arrived. */
  const read = async (bytes: number): Promise<string> => {
    let text = "";
    while (text.length < bytes) {
      try {
        text += chunk.toString("latin1", 0, readSync(fifo.reader, chunk));
      } catch (error) {
        assert.equal((error as NodeJS.ErrnoException).code, "EAGAIN");
        await delay(5);
      }
    }
    return text;
  };
  const kept = 20 - stream.lost;
  assert.equal(await read(kept * LONG_LINE.length), LONG_LINE.repeat(kept));
  stream.write("again\n");
  await stream.flushed(1000);
  assert.equal(await read(6), "again\n");
  closeSync(fifo.writer);
  closeSync(fifo.reader);
});

test("a command that cannot write its output fails with one line, and an unwritable error keeps its exit status", () => {
  const full = openSync("/dev/full", "w");
  const commands = [
    ["src/cli/main.ts", "--help"],
    ["src/cli/main.ts", "--version"],
    ["src/cli/main.ts", "serve", "--help"],
    ["src/cli/main.ts", "plan", "--tensor", "w=10", "--arena-mib", "16"],
    ["src/cli/main.ts", "inspect", "test/fixtures/adamw.safetensors"],
    ["src/main.ts", "--help"],
    ["src/main.ts", "--version"],
  ];
  for (const args of commands) {
    const { status, stderr } = spawnSync(process.execPath, args, { cwd: root, stdio: ["ignore", full, "pipe"], encoding: "utf8" });
    assert.deepEqual([status, stderr], [1, "stepd: standard output: ENOSPC: no space left on device, write\n"], args.join(" "));
  }
  for (const [args, code] of [
    [["src/cli/main.ts", "no-such-command"], 2],
    [["src/cli/main.ts", "inspect", "no-such-file"], 1],
    [["src/main.ts", "--no-such-option"], 1],
  ] as const) {
    assert.equal(spawnSync(process.execPath, args, { cwd: root, stdio: ["ignore", "pipe", full] }).status, code, args.join(" "));
  }
  closeSync(full);
});

test("every log line is JSON: the start with its settings, the drain, and the exit status with its reason", async () => {
  const lines = async (env: Readonly<Record<string, string>>, during: (service: SocketService) => Promise<void>): Promise<Record<string, unknown>[]> => {
    await using service = new SocketService(["ignore", "pipe", "pipe"], env);
    const texts = { stdout: "", stderr: "" };
    for (const name of ["stdout", "stderr"] as const) {
      service.child[name]?.on("data", (chunk: Buffer) => {
        texts[name] += chunk.toString();
      });
    }
    const closed = once(service.child, "close");
    await service.ready();
    await during(service);
    await closed;
    assert.equal(texts.stdout, "");
    return texts.stderr
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as Record<string, unknown>);
  };

  const [start, drain, end, ...rest] = await lines({ STEPD_DRAIN_TIMEOUT_MS: "12345" }, async (service) => void service.child.kill("SIGTERM"));
  assert.match(String(start?.["msg"]), /^stepd \S+ listens on unix:/);
  const settings = start?.["settings"] as Record<string, unknown>;
  assert.deepEqual([settings["STEPD_DRAIN_TIMEOUT_MS"], settings["STEPD_WORKERS"], settings["STEPD_PORT"]], [12345, 1, 8080]);
  assert.deepEqual([drain?.["msg"], drain?.["signal"]], ["draining", "SIGTERM"]);
  assert.deepEqual([end?.["level"], end?.["exit_status"], end?.["in_flight"], rest], [30, 0, 0, []]);

  const held = async (service: SocketService): Promise<void> => {
    const request = service.open("/rpc", LIST.length).on("error", () => {});
    request.write("{");
    while ((await service.metric("stepd_in_flight_requests")) < 1) await delay(10);
    service.child.kill("SIGTERM");
  };
  // Every level except silent logs the start, and the reason for exit status 1.
  const late = await lines({ STEPD_DRAIN_TIMEOUT_MS: "100", STEPD_LOG_LEVEL: "error" }, held);
  assert.deepEqual(
    late.map(({ level, exit_status: status, in_flight: calls }) => [level, status, calls]),
    [
      [30, undefined, undefined],
      [50, 1, 1],
    ],
  );
  assert.match(String(late[1]?.["msg"]), /drain time is over/);
});

test("the settings in the start's log line contain no tokens and keys", async () => {
  const folder = mkdtempSync(join(os.tmpdir(), "stepd-log-"));
  try {
    const tokens = join(folder, "tokens");
    writeFileSync(tokens, `trainer ${TOKEN}\n`);
    await using service = new SocketService(["ignore", "ignore", "pipe"], { STEPD_TOKENS_FILE: tokens });
    const [chunk] = (await once(service.child.stderr as Readable, "data")) as [Buffer];
    assert.ok(chunk.includes(tokens) && !chunk.includes(TOKEN), chunk.toString());
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("STEPD_TOKEN in the server's environment gives a warning that says what is in force", async () => {
  const warnings = async (env: Readonly<Record<string, string>>): Promise<readonly string[]> => {
    await using service = new SocketService(["ignore", "ignore", "pipe"], env);
    let text = "";
    service.child.stderr?.on("data", (chunk) => {
      text += chunk;
    });
    const closed = once(service.child, "close");
    await service.ready();
    service.child.kill("SIGTERM");
    await closed;
    assert.ok(!text.includes(TOKEN), text);
    const lines = text.trim().split("\n");
    return lines.map((line) => JSON.parse(line) as { level: number; msg: string }).flatMap(({ level, msg }) => (level === 40 ? [msg] : []));
  };
  assert.deepEqual(await warnings({ STEPD_TOKEN: TOKEN }), [
    "STEPD_TOKEN is a setting of clients: calls to this server need no token, because STEPD_TOKENS_FILE names no file of tokens",
  ]);
  assert.deepEqual(await warnings({}), []);
});
