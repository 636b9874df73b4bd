/** Programs from Go modules, built once into build/tools. */
import { execFile, execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { root } from "../support/tree.ts";

const run = promisify(execFile);

const folder = join(root, "build/tools");

/** Runs go, which the Go client's script finds or installs. Others on the machine go first: a build takes minutes of processor time. */
const go = (...values: readonly string[]) => ["-c", 'source ./toolchain.sh && use_go >&2 && exec nice -n 10 go "$@"', "go", ...values];
const goClient = { cwd: join(root, "clients/go"), encoding: "utf8", maxBuffer: 2 ** 26 } as const;

/** The path of a program of a module's package at a version. Two test files may build it at once: the last to finish gives it its name. */
export const goProgram = async (name: string, path: string, version: string): Promise<string> => {
  const program = join(folder, `${name}-${version}`);
  if (existsSync(program)) return program;
  const partial = join(folder, `${name}-${version}.${process.pid}`);
  mkdirSync(partial, { recursive: true });
  try {
    const env = { ...process.env, GOBIN: partial, CGO_ENABLED: "0" };
    await run("bash", go("install", "-ldflags=-s", `${path}@${version}`), { ...goClient, env });
    const [file = ""] = readdirSync(partial);
    renameSync(join(partial, file), program);
  } finally {
    rmSync(partial, { recursive: true, force: true });
  }
  return program;
};

/** The folder of a module's files. */
export const goModule = (path: string, version: string): string => {
  // From outside of the Go client's module, which does not have it.
  const answer = execFileSync("bash", go("mod", "download", "-json", `${path}@${version}`), { ...goClient, stdio: ["ignore", "pipe", "ignore"] });
  return (JSON.parse(answer) as { Dir: string }).Dir;
};
