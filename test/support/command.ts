/** Runs a command to its end, for tests of commands that people run. */
import { type SpawnOptions, spawn } from "node:child_process";
import { once } from "node:events";

export interface Ended {
  readonly code: number;
  readonly out: string;
  /** The output on standard error: progress bars and errors. */
  readonly log: string;
}

export const runCommand = async (command: string, options: readonly string[], settings: SpawnOptions = {}): Promise<Ended> => {
  const child = spawn(command, options, { ...settings, stdio: ["ignore", "pipe", "pipe"] });
  const out: string[] = [];
  const log: string[] = [];
  child.stdout?.on("data", (chunk: Buffer) => out.push(chunk.toString()));
  child.stderr?.on("data", (chunk: Buffer) => log.push(chunk.toString()));
  const [code] = (await once(child, "close")) as [number];
  return { code, out: out.join(""), log: log.join("") };
};
