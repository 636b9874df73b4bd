/** Runs the real `stepd` command as a child process. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import { join } from "node:path";
import { childEnv } from "../support/env.ts";
import { started } from "../support/service.ts";
import { root } from "../support/tree.ts";

export const COMMANDS: readonly string[] = ["serve", "inspect", "convert", "plan", "verify", "bench"];

export const main = join(root, "src/cli/main.ts");

/** Node binaries that the system installed. Their versions differ from that of the Node from npm. */
export const systemNodes = ["/usr/bin/node", "/usr/local/bin/node"].filter((path) => existsSync(path));

export interface Ended {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** A running command and its output so far. The end of the scope kills the command. */
export class Command implements AsyncDisposable {
  readonly child: ChildProcess;
  readonly ended: Promise<Ended>;
  stdout = "";
  stderr = "";

  /** Starts a program, by default `node src/cli/main.ts`. */
  constructor(args: readonly string[], env: Readonly<Record<string, string>> = {}, program: readonly string[] = [process.execPath, main], cwd = root) {
    const [file = "", ...rest] = program;
    this.child = spawn(file, [...rest, ...args], { cwd, env: { ...childEnv, ...env }, stdio: ["ignore", "pipe", "pipe"] });
    this.child.stdout?.on("data", (chunk) => {
      this.stdout += chunk;
    });
    this.child.stderr?.on("data", (chunk) => {
      this.stderr += chunk;
    });
    this.ended = once(this.child, "close").then(([code]) => ({ code: code as number | null, stdout: this.stdout, stderr: this.stderr }));
  }

  /** Waits for the line with the address, and returns the address. */
  async listening(): Promise<string> {
    return (await started(this.child, () => this.stderr)).address;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.child.exitCode === null && this.child.signalCode === null) this.child.kill("SIGKILL");
    await this.ended;
  }
}

/** Runs a command and waits for its end. */
export const stepd = async (...args: readonly string[]): Promise<Ended> => {
  await using command = new Command(args);
  return await command.ended;
};

/** A temporary folder, removed at the end of the scope. */
export class Folder implements Disposable {
  readonly path = mkdtempSync(join(os.tmpdir(), "stepd-cli-"));

  /** Writes a file and returns its path. */
  write(name: string, content: Uint8Array | string): string {
    writeFileSync(this.at(name), content);
    return this.at(name);
  }

  at(name: string): string {
    return join(this.path, name);
  }

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true, force: true });
  }
}
