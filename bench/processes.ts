/** Runs the measured processes: servers, which print their address, and Python scripts, which read one command per line. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import os from "node:os";
import { join } from "node:path";
import { createInterface, type Interface } from "node:readline";
import type { Readable, Writable } from "node:stream";

const peers = join(import.meta.dirname, "peers");

/** Returns the interpreter of the environment made from peers/requirements.txt, or undefined if that environment is missing. */
export const findPython = (): string | undefined => {
  const interpreter = join(peers, ".venv/bin/python");
  return existsSync(join(peers, ".venv/requirements")) ? interpreter : undefined;
};

export const HOW_TO_GET_PYTHON = "no Python environment in bench/peers/.venv; `clients/python/environment bench/peers/requirements.txt` makes it";

/** Functions that remove temporary files at exit, however this process ends. */
export const leftovers = new Set<() => void>();
process.on("exit", () => {
  for (const remove of leftovers) remove();
});
for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => process.exit(1));

type Output = "stdout" | "stderr";

/** Starts a process and pipes one of its outputs. */
const start = (command: string, args: readonly string[], env: Readonly<Record<string, string>>, input: "ignore" | "pipe", read: Output): ChildProcess => {
  const outputs = (["stdout", "stderr"] as const).map((output) => (output === read ? "pipe" : "inherit"));
  const child = spawn(command, args, { env: { PATH: process.env["PATH"], ...env }, stdio: [input, ...outputs] });
  const remove = (): void => void child.kill("SIGKILL");
  leftovers.add(remove);
  child.once("exit", () => leftovers.delete(remove));
  return child;
};

const end = async (child: ChildProcess): Promise<void> => {
  if (child.exitCode !== null || child.signalCode !== null) return;
  child.kill("SIGKILL");
  await once(child, "exit");
};

/** Where a server runs: the words before its command, and the address on which it listens. */
export interface Place {
  readonly prefix: readonly string[];
  readonly address: string;
}

export class Server implements AsyncDisposable {
  readonly address: string;
  readonly #child: ChildProcess;

  private constructor(address: string, child: ChildProcess) {
    this.address = address;
    this.#child = child;
  }

  static async #start(command: string, args: readonly string[], env: Readonly<Record<string, string>>, read: Output = "stdout"): Promise<Server> {
    const child = start(command, args, env, "ignore", read);
    for await (const line of createInterface({ input: child[read] as Readable })) {
      const address = / listens on ([^\s"]+)/.exec(line)?.[1];
      if (address) return new Server(address, child);
    }
    throw new Error(`${args[0]} did not start`);
  }

  /** Starts stepd on a free port or on the given socket, behind a link if given one. */
  static stepd(env: Readonly<Record<string, string>>, place?: Place): Promise<Server> {
    const host = place === undefined ? {} : { STEPD_HOST: place.address };
    const settings = { STEPD_LOG_LEVEL: "warn", ...("STEPD_SOCKET" in env ? {} : { STEPD_PORT: "0" }), ...host, ...env };
    return Server.#node("../src/main.ts", [], settings, "stderr", place);
  }

  /** Starts the echo server, which uses the same stack as stepd. */
  static echo(arenaMib: string, socket = "", place?: Place): Promise<Server> {
    return Server.#node("echo-server.ts", [arenaMib, socket, place?.address ?? ""], {}, "stdout", place);
  }

  static #node(script: string, args: readonly string[], env: Readonly<Record<string, string>>, read: Output, place: Place | undefined): Promise<Server> {
    const [command = process.execPath, ...before] = place?.prefix ?? [];
    const runtime = place === undefined ? [] : [process.execPath];
    return Server.#start(command, [...before, ...runtime, join(import.meta.dirname, script), ...args], env, read);
  }

  /** Starts the FastAPI service with torch. */
  static fastapi(python: string, form: "functional" | "object", threads: number): Promise<Server> {
    return Server.#start(python, [join(peers, "service.py"), form, String(threads)], { OMP_NUM_THREADS: String(threads) });
  }

  /** Reads a value of /proc/PID/status in bytes: VmRSS is the present resident memory, VmHWM its peak. */
  memory(line: "VmRSS" | "VmHWM"): number {
    const text = readFileSync(`/proc/${this.#child.pid}/status`, "utf8");
    return Number(new RegExp(`^${line}:\\s+(\\d+) kB$`, "m").exec(text)?.[1]) * 1024;
  }

  /** Returns the processor time of all threads in milliseconds. Linux counts in hundredths of a second. */
  processorMs(): number {
    const text = readFileSync(`/proc/${this.#child.pid}/stat`, "utf8");
    const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
    return (Number(fields[11]) + Number(fields[12])) * 10;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await end(this.#child);
  }
}

/** A Python script in peers/ that answers each line of input with one line. */
export class Peer implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #lines: NodeJS.AsyncIterator<string>;
  readonly #input: Writable;
  readonly #name: string;

  private constructor(name: string, child: ChildProcess, input: Writable, lines: Interface) {
    this.#name = name;
    this.#child = child;
    this.#input = input;
    this.#lines = lines[Symbol.asyncIterator]();
  }

  /** Starts the script and waits until it reports that it is ready. */
  static async start(python: string, script: string, args: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<Peer> {
    const child = start(python, [join(peers, script), ...args], env, "pipe", "stdout");
    const peer = new Peer(script, child, child.stdin as Writable, createInterface({ input: child.stdout as Readable }));
    await peer.#line();
    return peer;
  }

  async #line(): Promise<string> {
    const { value, done } = await this.#lines.next();
    if (done) throw new Error(`${this.#name} ended early`);
    return value;
  }

  ask(command: string): Promise<string> {
    this.#input.write(`${command}\n`);
    return this.#line();
  }

  /** Sends a command whose answer is a time in milliseconds. */
  async time(command: string): Promise<number> {
    const answer = await this.ask(command);
    const value = Number(answer);
    if (!(value > 0)) throw new Error(`${this.#name}, ${command}: expected milliseconds, found ${answer}`);
    return value;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await end(this.#child);
  }
}

/** A temporary folder for sockets. Disposing it removes the folder. */
export class Folder implements Disposable {
  readonly path: string;
  readonly #remove = (): void => rmSync(this.path, { recursive: true, force: true });

  constructor(parent = os.tmpdir()) {
    this.path = mkdtempSync(join(parent, "stepd-bench-"));
    leftovers.add(this.#remove);
  }

  [Symbol.dispose](): void {
    leftovers.delete(this.#remove);
    this.#remove();
  }
}
