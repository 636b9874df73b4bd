/**
 * Runs a real Prometheus: the programs of Debian's package, and a server with the rules of deploy/prometheus. The package is
 * unpacked into build/ instead of installed, so that its system service never starts.
 */
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { cp, mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import net, { type AddressInfo } from "node:net";
import os from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import { updateLists } from "../support/debian.ts";
import { preparing } from "../support/prepared.ts";
import { root } from "../support/tree.ts";

const run = promisify(execFile);

const home = join(root, "build/prometheus");
const programs = join(home, "usr/bin");

export const deployed = join(root, "deploy/prometheus");

/**
 * Returns the folder with prometheus and promtool, unpacked at first use. If two test files unpack it at once, the first to
 * finish wins.
 */
const unpack = async (): Promise<string> => {
  const partial = await mkdtemp(`${home}.`);
  const download = () => run("apt-get", ["-qq", "-o", "APT::Sandbox::User=root", "download", "prometheus"], { cwd: partial });
  try {
    await download().catch(async () => {
      await updateLists();
      await download();
    });
    const [archive] = await readdir(partial);
    if (!archive) throw new Error("apt-get download left no file");
    await run("dpkg-deb", ["-x", join(partial, archive), partial]);
    await rm(join(partial, archive));
    await rename(partial, home);
  } catch (error) {
    await rm(partial, { recursive: true, force: true });
    if (!existsSync(programs)) throw new Error("Debian's package prometheus cannot be unpacked into build/prometheus", { cause: error });
  }
  return programs;
};

let unpacked: Promise<string> | undefined;

/** Returns the path of one of the package's programs. */
export const program = async (name: "prometheus" | "promtool"): Promise<string> => {
  await mkdir(join(root, "build"), { recursive: true });
  unpacked ??= existsSync(programs) ? Promise.resolve(programs) : preparing("Unpacking Debian's prometheus", unpack);
  return join(await unpacked, name);
};

export interface ToolResult {
  readonly status: number;
  readonly output: string;
}

/** Runs promtool with a text as its standard input. */
export const promtool = async (values: readonly string[], input = "", cwd: string = deployed): Promise<ToolResult> => {
  const child = spawn(await program("promtool"), values, { cwd, stdio: ["pipe", "pipe", "pipe"] });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.on("data", (chunk: Buffer) => {
      output += chunk.toString();
    });
  }
  child.stdin.on("error", () => {}); // promtool may end without reading its input.
  child.stdin.end(input);
  const [status] = (await once(child, "close")) as [number];
  return { status, output };
};

const freePort = async (): Promise<number> => {
  const server = net.createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
};

/** A time series of an answer: its labels, and its values as Prometheus writes them. */
export interface Series {
  readonly metric: Readonly<Record<string, string>>;
  readonly value?: readonly [number, string];
}

const START_MS = 60_000;

/** Replaces the targets and the interval in the deployed configuration. */
const configure = (text: string, targets: readonly string[], intervalMs: number): string => {
  const replaced = text
    .replace(/targets: \[.*?\]/s, `targets: ${JSON.stringify(targets)}`)
    .replace(/scrape_interval: \S+/, `scrape_interval: ${intervalMs}ms`)
    .replace(/evaluation_interval: \S+/, `evaluation_interval: ${intervalMs}ms`);
  if (!replaced.includes(`targets: ${JSON.stringify(targets)}`)) throw new Error("deploy/prometheus/prometheus.yml has no list of targets");
  return replaced;
};

export class Prometheus implements AsyncDisposable {
  readonly url: string;
  readonly #process: ReturnType<typeof spawn>;
  readonly #folder: string;

  private constructor(url: string, process: ReturnType<typeof spawn>, folder: string) {
    this.url = url;
    this.#process = process;
    this.#folder = folder;
  }

  /** Starts Prometheus with the deployed configuration and rules, but with the given targets and interval. */
  static async start(targets: readonly string[], intervalMs: number): Promise<Prometheus> {
    const folder = await mkdtemp(join(os.tmpdir(), "stepd-prometheus-"));
    const port = await freePort();
    for (const file of await readdir(deployed)) await cp(join(deployed, file), join(folder, file), { recursive: true });
    const config = join(folder, "prometheus.yml");
    await writeFile(config, configure(await readFile(config, "utf8"), targets, intervalMs));
    const child = spawn(
      await program("prometheus"),
      [`--config.file=${config}`, `--storage.tsdb.path=${join(folder, "data")}`, `--web.listen-address=127.0.0.1:${port}`, "--log.level=warn"],
      { cwd: folder, stdio: ["ignore", "ignore", "pipe"] },
    );
    const log: string[] = [];
    child.stderr?.on("data", (chunk: Buffer) => log.push(chunk.toString()));
    const prometheus = new Prometheus(`http://127.0.0.1:${port}`, child, folder);
    const deadline = performance.now() + START_MS;
    while (!(await fetch(`${prometheus.url}/-/ready`).catch(() => undefined))?.ok) {
      if (child.exitCode !== null || performance.now() > deadline) {
        await prometheus[Symbol.asyncDispose]();
        throw new Error(`Prometheus did not start: ${log.join("")}`);
      }
      await delay(50);
    }
    return prometheus;
  }

  /** Returns an answer of the HTTP API. Throws the error that Prometheus reports. */
  async get<T>(path: string, values: Readonly<Record<string, string>> = {}): Promise<T> {
    const response = await fetch(`${this.url}/api/v1/${path}?${new URLSearchParams(values)}`);
    const { data, error } = (await response.json()) as { data?: T; error?: string };
    if (error !== undefined) throw new Error(`${JSON.stringify(values)}: ${error}`);
    return data as T;
  }

  /** Evaluates a query at the present time. */
  async query(query: string): Promise<readonly Series[]> {
    return (await this.get<{ result: readonly Series[] }>("query", { query })).result;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#process.exitCode === null && this.#process.signalCode === null) {
      this.#process.kill("SIGTERM");
      await once(this.#process, "exit");
    }
    await rm(this.#folder, { recursive: true, force: true });
  }
}
