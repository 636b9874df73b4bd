/**
 * Runs the tests of the service: `node test/run.ts own` those that need nothing beside Node and take a few minutes, as `npm test`
 * does; `node test/run.ts tools` the others, and the TypeScript client's. The tests in containers, under overload and of
 * interoperability have commands of their own.
 */
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { globSync } from "node:fs";
import { join } from "node:path";
import { childEnv } from "./support/env.ts";
import { root } from "./support/tree.ts";

/** Folders whose tests have commands of their own. */
const SEPARATE: readonly string[] = ["test/container", "test/interop", "test/overload"];

/** The folders and files that `npm test` leaves out, with the reason: what they need beside Node, or that they take minutes. */
export const TOOLS: Readonly<Record<string, string>> = {
  "test/cli/bench.test.ts": "OpenSSL",
  "test/cli/package.test.ts": "npm and other versions of Node",
  "test/cli/serve.test.ts": "OpenSSL",
  "test/deploy": "HAProxy, Helm, Go, Python and systemd",
  "test/examples": "Python, Go and Chromium",
  "test/fuzz": "minutes",
  "test/hostile/floods.test.ts": "minutes",
  "test/hostile/many.test.ts": "minutes",
  "test/hostile/memory.test.ts": "minutes",
  "test/http/security.test.ts": "OpenSSL",
  "test/http/tls.test.ts": "OpenSSL",
  "test/http/turns.test.ts": "minutes",
  "test/optimizers/determinism.test.ts": "minutes",
  "test/optimizers/dtypes.test.ts": "minutes",
  "test/page/page.test.ts": "Chromium",
  "test/pins/arm64.test.ts": "an emulator of arm64",
  "test/pins/nodes.test.ts": "other versions of Node",
  "test/pool/wide.test.ts": "minutes",
  "test/prometheus": "Prometheus and Go",
  "test/python": "Python",
  "test/repository/commands.test.ts": "curl",
  "test/repository/documentation.test.ts": "Python",
  "test/repository/prepare.test.ts": "everything that test/prepare.ts prepares",
  "test/repository/vectors.test.ts": "Python",
  "test/site": "the packages of the documentation's site",
};

const isIn = (file: string, places: readonly string[]): boolean => places.some((place) => file === place || file.startsWith(`${place}/`));

const files = globSync("test/**/*.test.ts", { cwd: root })
  .filter((file) => !isIn(file, SEPARATE))
  .sort();
const others = Object.keys(TOOLS);

/** The test files of each part. */
export const parts: Readonly<Record<string, readonly string[]>> = {
  own: files.filter((file) => !isIn(file, others)),
  tools: [...globSync("clients/typescript/test/*.test.ts", { cwd: root }).sort(), ...files.filter((file) => isIn(file, others))],
};

if (import.meta.main) {
  const [name = ""] = process.argv.slice(2);
  const part = parts[name];
  if (!part) throw new Error(`expected ${Object.keys(parts).join(" or ")}, found ${name || "nothing"}`);
  // A server that a test kills writes nothing to the cache of compiled sources, so these processes fill it.
  for (const entry of ["src/main.ts", "src/cli/main.ts"]) spawnSync(process.execPath, [join(root, entry), "--version"], { env: childEnv });
  console.log(`Running ${part.length} test files, two at a time. Each prints a line at its end; the first may take a minute.`);
  const options = ["--test-concurrency=2", "--test-timeout=600000", `--test-reporter=${join(root, "test/support/reporter.ts")}`];
  const runner = spawn(process.execPath, ["--import", join(root, "test/support/watchdog.ts"), "--test", ...options, ...part], { cwd: root, stdio: "inherit" });
  const [code] = await once(runner, "exit");
  process.exitCode = code ?? 1;
}
