/** Tests signals: SIGHUP drains as SIGTERM does, SIGUSR1 and SIGUSR2 change nothing, and launchers forward all signals. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { join } from "node:path";
import type { Readable } from "node:stream";
import { test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { systemNodes } from "../cli/_command.ts";
import { root } from "../support/tree.ts";
import { answerOf, type Env, LIST, SocketService } from "./_service.ts";

/** Returns the TCP ports on which a process listens. */
const portsOf = (pid: number): readonly number[] => {
  const inodes = new Set(
    readdirSync(`/proc/${pid}/fd`).flatMap((fd) => {
      try {
        return /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/${pid}/fd/${fd}`))?.[1] ?? [];
      } catch {
        return [];
      }
    }),
  );
  const LISTEN_STATE = "0A";
  return ["tcp", "tcp6"].flatMap((table) =>
    readFileSync(`/proc/${pid}/net/${table}`, "utf8")
      .trim()
      .split("\n")
      .slice(1)
      .map((line) => line.trim().split(/\s+/))
      .filter((fields) => fields[3] === LISTEN_STATE && inodes.has(fields[9] ?? ""))
      .map((fields) => Number.parseInt(fields[1]?.split(":")[1] ?? "", 16)),
  );
};

/** Reads the service's log, and returns a function that waits for a text in the log. */
const watchLog = (service: SocketService): ((text: string) => Promise<void>) => {
  let log = "";
  (service.child.stderr as Readable).on("data", (chunk: Buffer) => {
    log += chunk.toString();
  });
  return async (text) => {
    while (!log.includes(text)) await delay(10);
  };
};

const LAUNCHERS: Readonly<Record<string, readonly string[]>> = {
  "node src/main.ts": [process.execPath, join(root, "src/main.ts")],
  "node --disable-sigusr1 src/main.ts": [process.execPath, "--disable-sigusr1", join(root, "src/main.ts")],
  "stepd serve": [process.execPath, join(root, "src/cli/main.ts"), "serve"],
  // The launcher starts a second process if its Node differs from the pinned Node.
  ...Object.fromEntries(systemNodes.map((node) => [`stepd serve under ${node}`, [node, join(root, "bin/stepd.js"), "serve"]])),
};

for (const [way, command] of Object.entries(LAUNCHERS)) {
  test(`${way}: SIGUSR1 opens no inspector, SIGUSR2 ends nothing, SIGHUP drains`, async () => {
    await using service = new SocketService(["ignore", "ignore", "pipe"], {}, command);
    const inLog = watchLog(service);
    await service.ready();
    await inLog("listens on");
    for (const signal of ["SIGUSR1", "SIGUSR2"] as const) service.child.kill(signal);
    await inLog('"SIGUSR2","msg":"signal ignored"');
    const request = service.open("/rpc", LIST.length);
    const answer = answerOf(request);
    request.write(LIST.slice(0, 10));
    while ((await service.metric("stepd_in_flight_requests")) < 1) await delay(10);
    assert.deepEqual(portsOf(service.child.pid as number), []);
    service.child.kill("SIGHUP");
    while ((await service.ask("/health/ready")).status !== 503) await delay(10);
    request.end(LIST.slice(10));
    assert.equal((await answer).status, 200);
    assert.deepEqual(await service.ended, [0, null]);
  });
}

test("an explicitly requested inspector is available", async () => {
  const env: Env = { STEPD_LOG_LEVEL: "info" };
  await using service = new SocketService(["ignore", "ignore", "pipe"], env, [process.execPath, "--inspect=127.0.0.1:0", join(root, "src/main.ts")]);
  await service.ready();
  assert.equal(portsOf(service.child.pid as number).length, 1);
});
