/**
 * Keeps a Docker engine for the container tests, in a separate process that ends after the tests. Starts an engine if none
 * answers, prints its address, and waits for standard input to close. Then removes everything with the run's label, the run's
 * folder, and the engine if the keeper started it.
 */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import os from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { debianProgram } from "../support/debian.ts";

const execute = promisify(execFile);

const START_MS = 60_000;
const STOP_MS = 30_000;

const label = process.argv[2] as string;
const folder = mkdtempSync(join(os.tmpdir(), "stepd-container-"));
const socket = join(folder, "docker.sock");

let engine: ChildProcess | undefined;
let host = process.env["DOCKER_HOST"];

const docker = async (...args: readonly string[]): Promise<string> =>
  (await execute("docker", args, { env: { ...process.env, ...(host === undefined ? {} : { DOCKER_HOST: host }) } })).stdout.trim();

const isAnswering = async (): Promise<boolean> => {
  try {
    await docker("version");
    return true;
  } catch {
    return false;
  }
};

/**
 * Starts an engine that is isolated from any other engine on the machine. It has its own socket, data and containerd, and does
 * not change bridges, firewall or forwarding. The network of the tests needs none of these, because its ports are published on
 * loopback.
 */
const startEngine = async (): Promise<void> => {
  await debianProgram("dockerd", "docker.io");
  host = `unix://${socket}`;
  const log = join(folder, "log");
  const output = openSync(log, "w");
  const paths = ["--host", host, "--data-root", join(folder, "data"), "--exec-root", join(folder, "exec"), "--pidfile", join(folder, "pid")];
  const network = ["--bridge=none", "--ip=127.0.0.1", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"];
  engine = spawn("dockerd", [...paths, ...network], { stdio: ["ignore", output, output] });
  const deadline = performance.now() + START_MS;
  while (!(await isAnswering())) {
    if (engine.exitCode !== null || performance.now() > deadline) throw new Error(`dockerd does not answer:\n${readFileSync(log, "utf8").slice(-4000)}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
};

/** Runs one docker command on all the names that another docker command lists. */
const runOnEach = async (list: readonly string[], act: readonly string[]): Promise<void> => {
  const names = (await docker(...list)).split("\n").filter(Boolean);
  if (names.length > 0) await docker(...act, ...new Set(names));
};

const stopEngine = async (): Promise<void> => {
  if (engine === undefined) return;
  if (engine.exitCode === null && engine.signalCode === null) {
    const exit = once(engine, "exit");
    const timer = setTimeout(() => engine?.kill("SIGKILL"), STOP_MS);
    engine.kill("SIGTERM");
    await exit;
    clearTimeout(timer);
  }
};

const cleanUp = async (): Promise<void> => {
  // An engine that the keeper started keeps nothing, not even containers of an interrupted build.
  const filter = engine === undefined ? ["--filter", `label=${label}`] : [];
  const steps = [
    () => runOnEach(["ps", "--all", "--quiet", ...filter], ["rm", "--force", "--volumes"]),
    () => runOnEach(["network", "ls", "--quiet", "--filter", `label=${label}`], ["network", "rm"]),
    async () => {
      if (engine === undefined) await runOnEach(["images", "--quiet", ...filter], ["rmi", "--force"]);
    },
    stopEngine,
    async () => {
      // Killed containers may leave mounts. Inner mounts come later in the list, so the last mount is unmounted first.
      const mounts = readFileSync("/proc/mounts", "utf8")
        .split("\n")
        .map((line) => line.split(" ")[1] ?? "");
      for (const mount of mounts.filter((path) => path.startsWith(`${folder}/`)).reverse()) await execute("umount", ["--lazy", mount]);
    },
    async () => rmSync(folder, { recursive: true, force: true, maxRetries: 10 }),
  ];
  // A failed step does not prevent the next step.
  for (const step of steps) {
    await step().catch((error: Error) => {
      process.exitCode = 1;
      console.error(`container suite, cleaning up: ${error.message}`);
    });
  }
};

let cleaning: Promise<void> | undefined;
const finish = async (): Promise<void> => {
  cleaning ??= cleanUp();
  await cleaning;
  process.exit();
};

// A write fails once the process at the other end of the pipe has ended.
for (const stream of [process.stdout, process.stderr]) stream.on("error", () => {});
process.stdin.on("end", finish).on("error", finish).resume();
process.on("SIGTERM", finish).on("SIGINT", finish);

try {
  if (!(await isAnswering())) await startEngine();
  console.log(JSON.stringify({ host: host ?? "", folder, isOwn: engine !== undefined }));
} catch (error) {
  console.error((error as Error).message);
  process.exitCode = 1;
  await finish();
}
