/** Runs an example as a user does, for the tests of the examples that have the Python client. */
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { root } from "../support/tree.ts";

const python = process.env["PYTHON"] ?? "python3";

/** Why they cannot run here, if they cannot. A test gives it as its `skip`. */
export const pythonIsTooOld: string | false =
  spawnSync(python, ["-c", "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))"]).status === 0
    ? false
    : `${python} 3.11 or newer with venv is not installed`;

export interface Run {
  readonly code: number;
  readonly out: string;
  /** What went to standard error: progress bars, and what was wrong. */
  readonly log: string;
}

/** Without an address the example starts a server of its own. */
export const runExample = async (example: string, options: readonly string[], url = ""): Promise<Run> => {
  const env = { ...process.env, STEPD_URL: url };
  const child = spawn(join(root, "examples", example, "run"), options, { env, stdio: ["ignore", "pipe", "pipe"] });
  const out: string[] = [];
  const log: string[] = [];
  child.stdout.on("data", (chunk: Buffer) => out.push(chunk.toString()));
  child.stderr.on("data", (chunk: Buffer) => log.push(chunk.toString()));
  const [code] = (await once(child, "close")) as [number];
  return { code, out: out.join(""), log: log.join("") };
};
