/**
 * Tests the memory and processor limits that the service reads from control groups (versions 1 and 2), the defaults that it
 * derives from them, and its refusals of settings beyond them.
 */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from "node:fs";
import os from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { readConfig } from "../../src/config.ts";
import { type Machine, readMachine } from "../../src/machine.ts";
import { started } from "../support/service.ts";
import { root } from "../support/tree.ts";

const GIB = 2 ** 30;
const MIB = 2 ** 20;

const machineOf = (files: Readonly<Record<string, string>>): Machine => readMachine((path) => files[path], 64 * GIB, 16);

const V1_GROUPS = "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n";

const groups: Readonly<Record<string, readonly [Readonly<Record<string, string>>, Omit<Machine, "memory">]>> = {
  "no groups": [{}, { memoryLimit: undefined, processors: 16 }],
  "version 2 without limits": [
    { "/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/memory.max": "max\n", "/sys/fs/cgroup/cpu.max": "max 100000\n" },
    { memoryLimit: undefined, processors: 16 },
  ],
  "a container of version 2": [
    { "/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/memory.max": "536870912\n", "/sys/fs/cgroup/cpu.max": "50000 100000\n" },
    { memoryLimit: 512 * MIB, processors: 1 },
  ],
  "a service of version 2, limited by a group around it": [
    {
      "/proc/self/cgroup": "0::/system.slice/stepd.service\n",
      "/sys/fs/cgroup/system.slice/stepd.service/memory.max": "max\n",
      "/sys/fs/cgroup/system.slice/stepd.service/cpu.max": "300000 100000\n",
      "/sys/fs/cgroup/system.slice/memory.max": "2147483648\n",
      "/sys/fs/cgroup/system.slice/cpu.max": "150000 100000\n",
    },
    { memoryLimit: 2 * GIB, processors: 2 },
  ],
  "version 1 without limits": [
    {
      "/proc/self/cgroup": V1_GROUPS,
      "/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": "9223372036854771712\n",
      "/sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us": "-1\n",
      "/sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us": "100000\n",
    },
    { memoryLimit: undefined, processors: 16 },
  ],
  "a container of version 1, whose path is the host's": [
    {
      "/proc/self/cgroup": V1_GROUPS,
      "/sys/fs/cgroup/memory/memory.limit_in_bytes": "536870912\n",
      "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "250000\n",
      "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    },
    { memoryLimit: 512 * MIB, processors: 3 },
  ],
  "version 1 beside an empty tree of version 2": [
    {
      "/proc/self/cgroup": "4:memory:/a\n0::/\n",
      "/sys/fs/cgroup/memory/a/memory.limit_in_bytes": "1073741824\n",
      "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    },
    { memoryLimit: GIB, processors: 16 },
  ],
  "a limit above what there is": [
    { "/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/memory.max": `${128 * GIB}\n`, "/sys/fs/cgroup/cpu.max": "9000000 100000\n" },
    { memoryLimit: undefined, processors: 16 },
  ],
};

for (const [name, [files, expected]] of Object.entries(groups))
  test(`limits are right with ${name}`, () => assert.deepEqual(machineOf(files), { memory: 64 * GIB, ...expected }));

const limited = (mebibytes: number, processors = 2): Machine => ({ memory: 64 * GIB, memoryLimit: mebibytes * MIB, processors });

test("defaults fit into any memory limit with room for Node.js", () => {
  for (const mebibytes of [192, 256, 512, 1024, 2048, 16384]) {
    for (const processors of [1, 2, 64]) {
      const { arenaMib, workers, maxJsonMib } = readConfig({}, limited(mebibytes, processors));
      assert.ok(arenaMib >= 1 && 110 + 20 * workers + 10 * maxJsonMib + arenaMib <= mebibytes, `${mebibytes}: ${arenaMib}, ${workers}, ${maxJsonMib}`);
    }
  }
  const { arenaMib, workers } = readConfig({ STEPD_MAX_JSON_MIB: "20" }, limited(512));
  assert.deepEqual([arenaMib, workers], [512 - 110 - 2 * 20 - 200, 2]);
  assert.equal(readConfig({}, { memory: 64 * GIB, memoryLimit: undefined, processors: 3 }).workers, 3);
});

test("settings above the memory limit are refused in one line with the values that fit", () => {
  const refused: readonly (readonly [Readonly<Record<string, string>>, number, string])[] = [
    [{ STEPD_ARENA_MIB: "1024" }, 512, "found STEPD_ARENA_MIB=1024, where 322 MiB are left"],
    [{ STEPD_MAX_JSON_MIB: "64" }, 512, "STEPD_MAX_JSON_MIB=64 and the arena, found no room for STEPD_ARENA_MIB, where 0 MiB are left"],
    [{ STEPD_WORKERS: "64" }, 512, "20 for each of 64 workers"],
    [{}, 100, "memory limit of 100 MiB: expected room for 110 for Node.js"],
  ];
  for (const [env, mebibytes, text] of refused) {
    assert.throws(
      () => readConfig(env, limited(mebibytes)),
      (error: Error) => error.name === "ConfigError" && error.message.includes(text) && !error.message.includes("\n"),
      text,
    );
  }
  assert.equal(readConfig({ STEPD_ARENA_MIB: "322" }, limited(512)).arenaMib, 322);
});

/**
 * Creates control groups of version 1 for this test. Returns undefined if the machine does not support version 1, or does not
 * permit this process to create groups.
 */
const createGroups = () => {
  const folders = ["memory", "cpu"].map((controller) => {
    const own = new RegExp(`^\\d+:(?:\\S*,)?${controller}(?:,\\S*)?:(.*)$`, "m").exec(readFileSync("/proc/self/cgroup", "utf8"))?.[1] ?? "";
    const base = join("/sys/fs/cgroup", controller, own);
    return join(existsSync(base) ? base : join("/sys/fs/cgroup", controller), `stepd-test-${process.pid}`);
  });
  const remove = (): void => {
    for (const folder of folders) if (existsSync(folder)) rmdirSync(folder);
  };
  try {
    for (const folder of folders) mkdirSync(folder);
    writeFileSync(join(folders[0] ?? "", "memory.limit_in_bytes"), String(512 * MIB));
    writeFileSync(join(folders[1] ?? "", "cpu.cfs_quota_us"), "50000");
    return { folders, [Symbol.dispose]: remove };
  } catch {
    remove();
    return undefined;
  }
};

test("the service respects real control groups of half a processor and 512 MiB", async (t) => {
  using groups = createGroups();
  if (!groups) return t.skip("no control groups of version 1 that this user may make");
  const start = (env: Readonly<Record<string, string>>) => {
    // The shell joins the groups, then becomes the service.
    const script = `${groups.folders.map((folder) => `echo $$ > ${folder}/cgroup.procs`).join(" && ")} && exec "$0" "$1"`;
    const child = spawn("sh", ["-c", script, process.execPath, join(root, "src/main.ts")], {
      env: { PATH: process.env["PATH"], STEPD_PORT: "0", ...env },
      stdio: ["ignore", "ignore", "pipe"],
    });
    let log = "";
    child.stderr.on("data", (chunk) => {
      log += chunk;
    });
    return { child, closed: once(child, "close"), log: () => log };
  };
  const refused = start({ STEPD_ARENA_MIB: "1024" });
  assert.deepEqual(await refused.closed, [1, null]);
  assert.match(refused.log(), /^stepd: memory limit of 512 MiB: expected [^\n]* found STEPD_ARENA_MIB=1024, where \d+ MiB are left\n$/);
  const running = start({});
  try {
    const { settings } = await started(running.child, running.log);
    assert.deepEqual([settings["STEPD_WORKERS"], settings["STEPD_ARENA_MIB"]], [1, 256]);
  } finally {
    running.child.kill("SIGTERM");
    await running.closed;
  }
});

test("without control groups, Node.js's values for the machine apply", () => {
  const { memory, processors } = readMachine(() => undefined);
  assert.deepEqual([memory, processors], [os.totalmem(), os.availableParallelism()]);
});
