/** Makes a Python environment with the packages of test/python/requirements.txt. */
import { execFile, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { installPackages } from "./debian.ts";
import { preparing } from "./prepared.ts";
import { root } from "./tree.ts";

const run = promisify(execFile);

const requirements = join(root, "test/python/requirements.txt");
const system = process.env["PYTHON"] ?? "python3";

// The examples and the Python client need Python 3.11 with venv too. A bare Debian has Python without venv, or no Python.
if (spawnSync(system, ["-c", "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))"]).status !== 0) {
  if (system !== "python3") throw new Error(`expected Python 3.11 or newer with venv as PYTHON, found ${system}`);
  await installPackages("python3", "python3-venv");
}

/**
 * Makes the environment build/venv/<digest of the requirements>, and returns its interpreter. If two test files make it at
 * once, each builds under a temporary name. The first to finish renames its copy, and the other deletes its own.
 */
const makeEnvironment = async (): Promise<string> => {
  const folder = join(root, "build/venv");
  const digest = createHash("sha256").update(readFileSync(requirements)).digest("hex").slice(0, 12);
  const home = join(folder, digest);
  const interpreter = join(home, "bin/python");
  if (existsSync(interpreter)) return interpreter;
  mkdirSync(folder, { recursive: true });
  const partial = join(folder, `${digest}.${process.pid}`);
  try {
    await preparing("Making a Python environment of test/python/requirements.txt", async () => {
      await run(system, ["-m", "venv", partial]);
      await run(join(partial, "bin/python"), ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement", requirements]);
      renameSync(partial, home);
    });
  } catch (error) {
    rmSync(partial, { recursive: true, force: true });
    if (!existsSync(interpreter)) throw error;
  }
  return interpreter;
};

let environment: Promise<string> | undefined;

/** Returns the path of the interpreter. Makes the environment at first use. */
export const python = (): Promise<string> => {
  environment ??= makeEnvironment();
  return environment;
};

/** Runs a script of the tree and returns its output. If the script fails, throws with its standard error. */
export const runPython = async (script: string, ...values: readonly string[]): Promise<string> =>
  (await run(await python(), [join(root, script), ...values])).stdout;
