/** Tests deploy/systemd: systemd accepts the unit and rates it as confined, and the service runs under the unit. */
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import http from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { readConfig } from "../../src/config.ts";
import { sgdBody } from "../http/_client.ts";
import { debianPrograms } from "../support/debian.ts";
import { MSGPACK, started } from "../support/service.ts";
import { root } from "../support/tree.ts";

/** The highest exposure allowed, on the scale of 0 to 100 of systemd-analyze security. */
const MAX_EXPOSURE = 15;

const text = readFileSync(join(root, "deploy/systemd/stepd.service"), "utf8");
const scratch = mkdtempSync(join(tmpdir(), "stepd-systemd-"));
after(() => rmSync(scratch, { recursive: true }));

/** The unit names this tree as the installation, because systemd checks that the program exists. */
const unit = join(scratch, "stepd.service");
before(() => writeFileSync(unit, text.replaceAll("/opt/stepd", root)));

const {
  "systemd-analyze": analyzer,
  "systemd-sysusers": sysusers,
  strace,
} = await debianPrograms({
  "systemd-analyze": "systemd",
  "systemd-sysusers": "systemd",
  strace: "strace",
});

const analyze = (...values: readonly string[]) => spawnSync(analyzer, ["--no-pager", ...values], { encoding: "utf8" });

const valuesOf = (key: string): readonly string[] => [...text.matchAll(new RegExp(`^${key}=(.*)$`, "gm"))].map(([, value = ""]) => value);
const environment = Object.fromEntries(valuesOf("Environment").map((entry) => entry.split("=") as [string, string]));

test("systemd-analyze verify accepts the unit", () => {
  const { status, stdout, stderr } = analyze("verify", unit);
  assert.deepEqual({ status, stdout, stderr }, { status: 0, stdout: "", stderr: "" });
});

test("systemd-analyze verify finds a misspelt setting", () => {
  const wrong = join(scratch, "wrong.service");
  writeFileSync(wrong, text.replaceAll("/opt/stepd", root).replace("ProtectClock", "ProtectClocks"));
  assert.match(analyze("verify", wrong).stderr, /ProtectClocks/);
});

test("systemd-analyze security rates the unit's exposure below the limit", () => {
  const { status, stdout } = analyze("security", "--offline=true", `--threshold=${MAX_EXPOSURE}`, unit);
  assert.equal(status, 0, stdout);
});

test("systemd-sysusers can create the callers' group", () => {
  const folder = mkdtempSync(join(scratch, "root-"));
  mkdirSync(join(folder, "etc"));
  const file = join(root, "deploy/systemd/sysusers.conf");
  const { status, stderr } = spawnSync(sysusers, [`--root=${folder}`, file], { encoding: "utf8" });
  assert.equal(status, 0, stderr);
  assert.match(readFileSync(join(folder, "etc/group"), "utf8"), new RegExp(`^${valuesOf("Group")[0]}:`, "m"));
});

test("the unit's settings are valid, and its memory and stop time suffice", () => {
  const { NODE_ENV, ...settings } = environment;
  assert.equal(NODE_ENV, "production");
  const config = readConfig(settings);
  assert.equal(config.socket, `/run/${valuesOf("RuntimeDirectory")[0]}/stepd.sock`);
  assert.ok(config.arenaMib + 128 + 10 * config.maxJsonMib <= Number.parseInt(valuesOf("MemoryMax")[0] ?? "", 10));
  assert.ok((config.drainGraceMs + config.drainTimeoutMs + 5000) / 1000 < Number(valuesOf("TimeoutStopSec")[0]));
});

/** Returns the system calls in one of systemd's sets, including nested sets. */
const callsOf = (name: string): ReadonlySet<string> => {
  const lines = analyze("syscall-filter", name)
    .stdout.split("\n")
    .map((line) => line.trim());
  const names = lines.slice(1).filter((line) => line !== "" && !line.startsWith("#"));
  return new Set(names.flatMap((entry) => (entry.startsWith("@") ? [...callsOf(entry)] : entry)));
};

test("the service works with the system calls that the unit allows, on a socket for its group", async () => {
  const trace = join(scratch, "trace");
  const socket = join(scratch, "stepd.sock");
  const [program = "", ...values] = (valuesOf("ExecStart")[0] ?? "").replaceAll("/opt/stepd", root).split(" ");
  const shell = `umask ${valuesOf("UMask")[0]} && exec "$@"`;
  const child = spawn("bash", ["-c", shell, "bash", strace, "-f", "-qq", "-c", "-S", "name", "-U", "name", "-o", trace, program, ...values], {
    env: { ...environment, PATH: process.env["PATH"], STEPD_SOCKET: socket, STEPD_ADMIN_PORT: "0", STEPD_ARENA_MIB: "64", STEPD_LOG_LEVEL: "warn" },
    stdio: ["ignore", "inherit", "pipe"],
    detached: true,
  });
  try {
    let log = "";
    child.stderr.on("data", (chunk) => {
      log += chunk;
    });
    assert.equal((await started(child, () => log)).address, `unix:${socket}`);
    const body = sgdBody(1_000_000, 2);
    const response = await new Promise<http.IncomingMessage>((resolve, reject) => {
      const headers = { "Content-Type": MSGPACK };
      http.request({ socketPath: socket, path: "/v1/step", method: "POST", headers }, resolve).on("error", reject).end(body);
    });
    assert.equal(response.statusCode, 200);
    for await (const _ of response);
    assert.equal((statSync(socket).mode & 0o777).toString(8), "770");
    // The signal goes to the whole process group, because strace itself ignores SIGTERM while its program runs.
    process.kill(-(child.pid as number), "SIGTERM");
    assert.deepEqual(await once(child, "exit"), [0, null]);
  } finally {
    if (child.exitCode === null) process.kill(-(child.pid as number), "SIGKILL");
  }
  const used = readFileSync(trace, "utf8")
    .split("\n")
    .map((line) => line.trim())
    .filter((name) => /^[a-z]\w+$/.test(name) && !["syscall", "total"].includes(name));
  assert.ok(used.includes("epoll_pwait") || used.includes("epoll_wait"), used.join(" "));
  const permitted = new Set<string>();
  for (const filter of valuesOf("SystemCallFilter")) {
    const isRefusal = filter.startsWith("~");
    for (const name of filter.replace("~", "").split(" ")) for (const call of callsOf(name)) isRefusal ? permitted.delete(call) : permitted.add(call);
  }
  assert.ok(permitted.size > 200 && !permitted.has("reboot"));
  assert.deepEqual(
    used.filter((name) => !permitted.has(name)),
    [],
  );
});
