/**
 * Finds or starts a Docker engine for the container tests. Everything that the tests create is removed at the end, even if the
 * tests are killed.
 */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { promisify } from "node:util";

const run = promisify(execFile);

const keeper = new URL("./_keeper.ts", import.meta.url).pathname;

interface Place {
  /** The value for DOCKER_HOST. Empty means docker's default. */
  readonly host: string;
  /** A folder for the files of the tests. */
  readonly folder: string;
  readonly isOwn: boolean;
}

export class Engine implements AsyncDisposable {
  readonly folder: string;
  /** True if these tests started the engine. */
  readonly isOwn: boolean;
  /** The label of all images, networks and containers of this run. */
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
    // A process in its own session does not receive Ctrl-C. The keeper ends when its input closes.
    const child = spawn(process.execPath, [keeper, label], { detached: true, stdio: ["pipe", "pipe", "pipe"] });
    const errors: string[] = [];
    child.stderr.on("data", (chunk: Buffer) => errors.push(chunk.toString()));
    for await (const line of createInterface({ input: child.stdout })) {
      const place = JSON.parse(line) as Place;
      // Both docker and testcontainers read DOCKER_HOST.
      if (place.host !== "") process.env["DOCKER_HOST"] = place.host;
      process.env["TESTCONTAINERS_RYUK_DISABLED"] = "true"; // The keeper replaces Ryuk, whose image may not be available.
      if (place.isOwn) process.env["TESTCONTAINERS_HOST_OVERRIDE"] = "127.0.0.1";
      child.stderr.pipe(process.stderr);
      return new Engine(place, label, child);
    }
    throw new Error(`no Docker engine: ${errors.join("")}`);
  }

  /** Runs docker and returns its output. */
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
