/** Finds the Go toolchain with clients/go/toolchain.sh, which may install it, and builds Go programs once into build/tools. */
import { execFile, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { promisify } from "node:util";
import { preparing } from "./prepared.ts";
import { root } from "./tree.ts";

const run = promisify(execFile);

const tools = join(root, "build/tools");

const findGo = async (): Promise<string> => {
  // The script announces the packages that it installs.
  const child = spawn("bash", ["-c", "source ./toolchain.sh && use_go >&2 && command -v go"], {
    cwd: join(root, "clients/go"),
    stdio: ["ignore", "pipe", "inherit"],
  });
  const [path, [code]] = await Promise.all([text(child.stdout), once(child, "exit")]);
  if (code !== 0) throw new Error("there is no Go; see above");
  return path.trim();
};

let found: Promise<string> | undefined;

/** Returns the path of a go command that is new enough for the Go client. */
export const goCommand = (): Promise<string> => {
  found ??= findGo();
  return found;
};

/** Runs go at low priority, because a build takes minutes of processor time. */
const go = async (cwd: string, values: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<string> =>
  (await run("nice", ["-n", "10", await goCommand(), ...values], { cwd, maxBuffer: 2 ** 26, env: { ...process.env, ...env } })).stdout;

/**
 * Builds a program once, in build/tools. If two test files build it at once, the last to finish replaces the other's program.
 */
const tool = async (name: string, build: (folder: string) => Promise<unknown>): Promise<string> => {
  const program = join(tools, name);
  if (existsSync(program)) return program;
  const partial = `${program}.${process.pid}`;
  mkdirSync(partial, { recursive: true });
  try {
    await preparing(`Building ${name} with Go`, () => build(partial));
    const [file = ""] = readdirSync(partial);
    renameSync(join(partial, file), program);
  } finally {
    rmSync(partial, { recursive: true, force: true });
  }
  return program;
};

/** Returns the path of a program from a published module. */
const published = (name: string, path: string, version: string): Promise<string> =>
  tool(`${name}-${version}`, (folder) => go(folder, ["install", "-ldflags=-s", `${path}@${version}`], { GOBIN: folder, CGO_ENABLED: "0" }));

/**
 * Returns the path of a program built from a folder of this tree. `parts` are the other folders that the program depends on.
 */
const goProgram = (name: string, folder: string, parts: readonly string[] = []): Promise<string> => {
  const hash = createHash("sha256");
  for (const part of [folder, ...parts]) {
    for (const file of readdirSync(join(root, part)).sort())
      if (/\.go$|^go\.(mod|sum)$/.test(file)) hash.update(file).update(readFileSync(join(root, part, file)));
  }
  return tool(`${name}-${hash.digest("hex").slice(0, 12)}`, (partial) => go(join(root, folder), ["build", "-o", partial, "."]));
};

/** Returns the folder with a module's files. */
const moduleFiles = async (path: string, version: string): Promise<string> => {
  mkdirSync(tools, { recursive: true });
  const folder = join((await go(tools, ["env", "GOMODCACHE"])).trim(), `${path}@${version}`);
  if (!existsSync(folder)) await preparing(`Fetching ${path} ${version}`, () => go(tools, ["mod", "download", `${path}@${version}`]));
  return folder;
};

/** Returns the path of Helm, in a version that needs no newer Go than the Go client. */
export const helm = (): Promise<string> => published("helm", "helm.sh/helm/v3/cmd/helm", "v3.19.5");

/** Returns the path of Compose's own loader. */
export const composeSpec = (): Promise<string> => published("compose-spec", "github.com/compose-spec/compose-go/v2/cmd", "v2.16.2");

/** Returns the folder with prometheus-operator's files, such as its custom resource definitions. */
export const prometheusOperator = (): Promise<string> => moduleFiles("github.com/prometheus-operator/prometheus-operator", "v0.85.0");

/** Returns the folder with the Gateway API's files. */
export const gatewayApi = (): Promise<string> => moduleFiles("sigs.k8s.io/gateway-api", "v1.3.0");

/** Returns the folder with KEDA's files. */
export const keda = (): Promise<string> => moduleFiles("github.com/kedacore/keda/v2", "v2.17.2");

/** Returns the path of the program that validates a dashboard with Grafana's schema. */
export const dashboardSchema = (): Promise<string> => goProgram("dashboard-schema", "test/prometheus/schema");

export const goTrainer = (): Promise<string> => goProgram("go-trainer", "examples/go-trainer", ["clients/go"]);

export const goCoordinator = (): Promise<string> => goProgram("go-coordinator", "examples/go-coordinator", ["clients/go"]);

/** Returns the path of the Go trainer for the container tests. */
export const containerTrainer = (): Promise<string> => goProgram("container-trainer", "test/container/go", ["clients/go"]);
