/**
 * Runs a real Prometheus and a real Alertmanager: the programs of Debian's packages, with the files of deploy. The packages are
 * unpacked into build/ instead of installed, so that their system services never start.
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
import { parse, stringify } from "yaml";
import { updateLists } from "../support/debian.ts";
import { preparing } from "../support/prepared.ts";
import { root } from "../support/tree.ts";

const run = promisify(execFile);

const PACKAGES = ["prometheus", "prometheus-alertmanager"];

const home = join(root, "build/prometheus-alertmanager");
const programs = join(home, "usr/bin");

export const deployed = join(root, "deploy/prometheus");

/**
 * Returns the folder with prometheus and promtool, unpacked at first use. If two test files unpack it at once, the first to
 * finish wins.
 */
const unpack = async (): Promise<string> => {
  const partial = await mkdtemp(`${home}.`);
  const download = () => run("apt-get", ["-qq", "-o", "APT::Sandbox::User=root", "download", ...PACKAGES], { cwd: partial });
  try {
    await download().catch(async () => {
      await updateLists();
      await download();
    });
    const archives = await readdir(partial);
    if (archives.length !== PACKAGES.length) throw new Error(`apt-get download left ${archives.length} files`);
    for (const archive of archives) {
      await run("dpkg-deb", ["-x", join(partial, archive), partial]);
      await rm(join(partial, archive));
    }
    await rename(partial, home);
  } catch (error) {
    await rm(partial, { recursive: true, force: true });
    if (!existsSync(programs)) throw new Error(`Debian's packages ${PACKAGES.join(", ")} cannot be unpacked into build`, { cause: error });
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

/** The targets by the name of their job, or "alertmanager". */
export type Targets = Readonly<Record<"stepd" | "haproxy" | "alertmanager", readonly string[]>>;

/** Replaces the targets and the interval in the deployed configuration. */
const configure = (text: string, targets: Targets, intervalMs: number): string => {
  const config = parse(text);
  config.global = { scrape_interval: `${intervalMs}ms`, evaluation_interval: `${intervalMs}ms` };
  for (const job of config.scrape_configs) job.static_configs = [{ targets: targets[job.job_name as "stepd" | "haproxy"] }];
  config.alerting.alertmanagers = [{ static_configs: [{ targets: targets.alertmanager }] }];
  return stringify(config);
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
  static async start(targets: Targets, intervalMs: number): Promise<Prometheus> {
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

/** A running Alertmanager with deploy/alertmanager. */
export class Alertmanager implements AsyncDisposable {
  readonly host: string;
  readonly #process: ReturnType<typeof spawn>;
  readonly #folder: string;

  private constructor(host: string, process: ReturnType<typeof spawn>, folder: string) {
    this.host = host;
    this.#process = process;
    this.#folder = folder;
  }

  static async start(): Promise<Alertmanager> {
    const folder = await mkdtemp(join(os.tmpdir(), "stepd-alertmanager-"));
    const host = `127.0.0.1:${await freePort()}`;
    const config = join(root, "deploy/alertmanager/alertmanager.yml");
    const flags = [`--config.file=${config}`, `--storage.path=${folder}`, "--cluster.listen-address=", `--web.listen-address=${host}`];
    await program("promtool"); // The packages are unpacked together.
    // Debian's program wants its templates in /usr/share. It sees the package's own in a mount namespace.
    const mounted = 'mount --bind "$0/usr/share" /usr/share && exec "$0/usr/bin/prometheus-alertmanager" "$@"';
    const child = spawn("unshare", ["--mount", "sh", "-c", mounted, home, ...flags], { stdio: ["ignore", "ignore", "pipe"] });
    const log: string[] = [];
    child.stderr?.on("data", (chunk: Buffer) => log.push(chunk.toString()));
    const alertmanager = new Alertmanager(host, child, folder);
    const deadline = performance.now() + START_MS;
    while (!(await fetch(`http://${host}/-/ready`).catch(() => undefined))?.ok) {
      if (child.exitCode !== null || performance.now() > deadline) {
        await alertmanager[Symbol.asyncDispose]();
        throw new Error(`Alertmanager did not start: ${log.join("")}`);
      }
      await delay(50);
    }
    return alertmanager;
  }

  /** Returns the active alerts by name, with the link of each. */
  async alerts(): Promise<ReadonlyMap<string, string>> {
    const list = (await (await fetch(`http://${this.host}/api/v2/alerts`)).json()) as readonly Alert[];
    return new Map(list.map(({ labels, annotations }) => [labels["alertname"] ?? "", annotations["runbook_url"] ?? ""]));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#process.exitCode === null && this.#process.signalCode === null) {
      this.#process.kill("SIGTERM");
      await once(this.#process, "exit");
    }
    await rm(this.#folder, { recursive: true, force: true });
  }
}

interface Alert {
  readonly labels: Readonly<Record<string, string>>;
  readonly annotations: Readonly<Record<string, string>>;
}
