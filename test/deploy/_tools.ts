/** Programs from Go modules, built once into build/tools. */
import { execFile } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { goCommand } from "../support/go.ts";
import { root } from "../support/tree.ts";

const run = promisify(execFile);

const folder = join(root, "build/tools");

/** Runs go. Others on the machine go first: a build takes minutes of processor time. */
const go = async (values: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<string> =>
  (await run("nice", ["-n", "10", await goCommand(), ...values], { cwd: folder, maxBuffer: 2 ** 26, env: { ...process.env, ...env } })).stdout;

/** The path of a program of a module's package at a version. Two test files may build it at once: the last to finish gives it its name. */
export const goProgram = async (name: string, path: string, version: string): Promise<string> => {
  const program = join(folder, `${name}-${version}`);
  if (existsSync(program)) return program;
  const partial = join(folder, `${name}-${version}.${process.pid}`);
  mkdirSync(partial, { recursive: true });
  try {
    await go(["install", "-ldflags=-s", `${path}@${version}`], { GOBIN: partial, CGO_ENABLED: "0" });
    const [file = ""] = readdirSync(partial);
    renameSync(join(partial, file), program);
  } finally {
    rmSync(partial, { recursive: true, force: true });
  }
  return program;
};

/** The folder of a module's files. */
export const goModule = async (path: string, version: string): Promise<string> => {
  mkdirSync(folder, { recursive: true });
  return (JSON.parse(await go(["mod", "download", "-json", `${path}@${version}`])) as { Dir: string }).Dir;
};
