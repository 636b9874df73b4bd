/** A Docker engine for a suite: the one that answers, or one of its own. All that is made on it goes away with it, also if the suite is killed. */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { promisify } from "node:util";

const run = promisify(execFile);

const keeper = new URL("./_keeper.ts", import.meta.url).pathname;

interface Place {
  /** As DOCKER_HOST has it; empty for docker's own choice. */
  readonly host: string;
  /** A folder for whatever the suite writes. */
  readonly folder: string;
  readonly isOwn: boolean;
}

export class Engine implements AsyncDisposable {
  readonly folder: string;
  /** Whether it was started for this suite. */
  readonly isOwn: boolean;
  /** What images, networks and containers bear. */
  readonly label: string;
  readonly #keeper: ChildProcess;

  private constructor({ folder, isOwn }: Place, label: string, keeper: ChildProcess) {
    this.folder = folder;
    this.isOwn = isOwn;
    this.label = label;
    this.#keeper = keeper;
  }

  static async start(): Promise<Engine> {
    const label = `stepd.test=${process.pid}-${Date.now()}`;
    // In a session of its own, where Ctrl-C does not reach it. It ends when its input does.
    const child = spawn(process.execPath, [keeper, label], { detached: true, stdio: ["pipe", "pipe", "pipe"] });
    const errors: string[] = [];
    child.stderr.on("data", (chunk: Buffer) => errors.push(chunk.toString()));
    for await (const line of createInterface({ input: child.stdout })) {
      const place = JSON.parse(line) as Place;
      // docker and testcontainers both read it.
      if (place.host !== "") process.env["DOCKER_HOST"] = place.host;
      process.env["TESTCONTAINERS_RYUK_DISABLED"] = "true"; // The keeper does its work, and its image is not to be had everywhere.
      if (place.isOwn) process.env["TESTCONTAINERS_HOST_OVERRIDE"] = "127.0.0.1";
      child.stderr.pipe(process.stderr);
      return new Engine(place, label, child);
    }
    throw new Error(`no Docker engine: ${errors.join("")}`);
  }

  /** Runs docker and returns what it printed. */
  async docker(...args: readonly string[]): Promise<string> {
    const { stdout } = await run("docker", args, { maxBuffer: 2 ** 28 });
    return stdout.trim();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const exit = once(this.#keeper, "exit");
    this.#keeper.stdin?.end();
    const [code] = await exit;
    if (code !== 0) throw new Error("the container suite left something behind; see above");
  }
}
