/** Runs third-party packages, which ./prepare has installed. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { root } from "../support/tree.ts";

export const here = import.meta.dirname;

export const python = join(here, "python/.venv/bin/python");
export const goEthereum = join(root, "build/interop/go-ethereum");

/** Returns the path of a command that a Python or JavaScript package installs. */
export const pythonCommand = (name: string): string => join(here, "python/.venv/bin", name);
export const nodeCommand = (name: string): string => join(here, "node_modules/.bin", name);

if (!existsSync(goEthereum)) throw new Error("expected the packages of test/interop, found none: run test/interop/prepare, as npm run test:interop does");

/** The time limit in ms is longer than any of the packages needs. */
const TIME_LIMIT = 240_000;

/** These variables disable colours, telemetry and update checks. */
const QUIET = { NO_COLOR: "1", CI: "true", REDOCLY_TELEMETRY: "off", REDOCLY_SUPPRESS_UPDATE_NOTICE: "true" };

interface Options {
  readonly input?: string;
  readonly cwd?: string;
  readonly env?: Readonly<Record<string, string>>;
}

/** Runs a command and returns its output. If the command fails, throws with its output. */
export const run = async (command: string, values: readonly string[], options: Options = {}): Promise<string> => {
  const env = { ...process.env, ...QUIET, ...options.env };
  const child = spawn(command, values, { cwd: options.cwd ?? here, timeout: TIME_LIMIT, env });
  child.stdin.end(options.input);
  const [stdout, stderr, [code, signal]] = await Promise.all([text(child.stdout), text(child.stderr), once(child, "exit")]);
  if (code !== 0) throw new Error(`${command} ${values.join(" ")} ended with ${code ?? signal}:\n${stdout}${stderr}`);
  return stdout;
};
