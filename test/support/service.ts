/** Runs a real stepd process for a test: starts it on a free port or a socket, calls it over HTTP, and stops it at the end. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import type { Readable } from "node:stream";
import { Packr, Unpackr } from "msgpackr";
import { childEnv } from "./env.ts";

const main = new URL("../../src/main.ts", import.meta.url).pathname;

const packr = new Packr({ useRecords: false });
const unpackr = new Unpackr({ useRecords: false, mapsAsObjects: true });

export const MSGPACK = "application/vnd.msgpack";
export const JSON_TYPE = "application/json";

export const pack = (value: unknown): Buffer => Buffer.from(packr.pack(value));
export const unpack = (bytes: Uint8Array): unknown => unpackr.unpack(bytes);

/** Decodes a reply's body by its content type. */
export const readReply = async (response: Response): Promise<unknown> => {
  const bytes = Buffer.from(await response.arrayBuffer());
  if (bytes.length === 0) return undefined;
  return (response.headers.get("content-type") ?? "").includes("msgpack") ? unpack(bytes) : JSON.parse(bytes.toString());
};

export interface RpcError {
  readonly code: number;
  readonly message: string;
  readonly data: { readonly name: string; readonly field?: string; readonly expected?: string; readonly found?: string; readonly request_id: string };
}

/** The addresses in the log line that the service writes at its start. */
export interface Started {
  readonly address: string;
  readonly admin_address?: string;
  readonly settings: Readonly<Record<string, unknown>>;
}

/** Waits until the log contains the line with the service's address. `text` returns the log so far. */
export const started = async (child: ChildProcess, text: () => string): Promise<Started> => {
  const closed = once(child, "close");
  for (;;) {
    const line = /^\{.*"msg":"stepd \S+ listens on .*\}$/m.exec(text())?.[0];
    if (line !== undefined) return JSON.parse(line) as Started;
    const isOver = await Promise.race([closed.then(() => true), once(child.stderr as Readable, "data").then(() => false)]);
    if (isOver) throw new Error(`the service did not start: ${text()}`);
  }
};

export class TestService implements AsyncDisposable {
  readonly url: string;
  /** The address of metrics and health. Set only with STEPD_ADMIN_PORT. */
  readonly admin: string | undefined;
  readonly process: ReturnType<typeof spawn>;
  /** The lines of the log so far. */
  readonly log: string[];

  private constructor(url: string, admin: string | undefined, process: ReturnType<typeof spawn>, log: string[]) {
    this.url = url;
    this.admin = admin;
    this.process = process;
    this.log = log;
  }

  /**
   * Starts `node src/main.ts` with settings and Node flags, and waits for its address. `program` is a command that runs another
   * Node. `entry` is the main.ts of another tree.
   */
  static async start(
    env: Readonly<Record<string, string>> = {},
    nodeFlags: readonly string[] = [],
    [program, ...args]: readonly [string, ...string[]] = [process.execPath],
    entry = main,
  ): Promise<TestService> {
    const child = spawn(program, [...args, ...nodeFlags, entry], {
      env: { ...childEnv, STEPD_PORT: "0", STEPD_ARENA_MIB: "256", STEPD_LOG_LEVEL: "warn", ...env },
      // Modules loaded with --import, such as turns.ts, use the IPC channel.
      stdio: ["ignore", "ignore", "pipe", "ipc"],
    });
    const log: string[] = [];
    child.stderr?.on("data", (chunk: Buffer) => log.push(chunk.toString()));
    const { address, admin_address: admin } = await started(child, () => log.join(""));
    return new TestService(address, admin, child, log);
  }

  /** Posts a body unchanged. */
  post(path: string, body: Uint8Array | string, type: string, headers: Readonly<Record<string, string>> = {}): Promise<Response> {
    return fetch(`${this.url}${path}`, { method: "POST", body: body as BodyInit, headers: { "Content-Type": type, ...headers } });
  }

  /** Calls a method over MessagePack and returns its result. Throws the error object of the reply. */
  async call<T>(method: string, params: unknown): Promise<T> {
    const response = await this.post("/rpc", pack({ jsonrpc: "2.0", id: 1, method, params }), MSGPACK);
    const { result, error } = (await readReply(response)) as { result?: T; error?: RpcError };
    if (error) throw Object.assign(new Error(error.message), error);
    return result as T;
  }

  /** Returns the value of a metric, from the first line that starts with `name`. */
  async metric(name: string): Promise<number> {
    const text = await (await fetch(`${this.url}/metrics`)).text();
    const line = text.split("\n").find((candidate) => candidate.startsWith(`${name} `) || candidate.startsWith(`${name}{`));
    return Number(line?.slice(line.lastIndexOf(" ") + 1));
  }

  /** Sends a signal and returns the exit code. */
  async stop(signal: NodeJS.Signals = "SIGTERM"): Promise<number | null> {
    if (this.process.exitCode === null && this.process.signalCode === null) {
      this.process.kill(signal);
      await once(this.process, "exit");
    }
    return this.process.exitCode;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop("SIGKILL");
  }
}
