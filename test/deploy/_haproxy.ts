/** Runs a real HAProxy with deploy/haproxy/haproxy.cfg in front of replicas on this machine. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import net from "node:net";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { debianProgram } from "../support/debian.ts";
import { root } from "../support/tree.ts";

export const configuration = join(root, "deploy/haproxy/haproxy.cfg");

export const runbook = join(root, "deploy/haproxy/runbook.html");

const START_MS = 10_000;

/** Returns the numbers of free ports on this machine. */
const freePorts = async (count: number): Promise<readonly number[]> => {
  const servers = await Promise.all(
    Array.from({ length: count }, async () => {
      const server = net.createServer().listen(0, "127.0.0.1");
      await once(server, "listening");
      return server;
    }),
  );
  const ports = servers.map((server) => (server.address() as net.AddressInfo).port);
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
  return ports;
};

export class Haproxy implements AsyncDisposable {
  readonly url: string;
  /** The URL of the frontend for operators. */
  readonly admin: string;
  readonly #process: ChildProcess;
  readonly log: readonly string[];

  private constructor(url: string, admin: string, process: ChildProcess, log: readonly string[]) {
    this.url = url;
    this.admin = admin;
    this.#process = process;
    this.log = log;
  }

  /** Starts HAProxy in front of three replicas, and waits until it is ready. */
  static async start(replicas: readonly string[]): Promise<Haproxy> {
    const [bind, admin] = (await freePorts(2)).map((port) => `127.0.0.1:${port}`) as [string, string];
    const hosts = replicas.map((url, index) => [`STEPD_${index + 1}`, new URL(url).host] as const);
    const child = spawn(await debianProgram("haproxy"), ["-db", "-f", configuration], {
      env: { STEPD_BIND: bind, STEPD_BIND_ADMIN: admin, STEPD_RUNBOOK: runbook, ...Object.fromEntries(hosts) },
      stdio: ["ignore", "pipe", "pipe"],
    });
    const log: string[] = [];
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk: Buffer) => log.push(chunk.toString()));
    const haproxy = new Haproxy(`http://${bind}`, `http://${admin}`, child, log);
    const deadline = performance.now() + START_MS;
    while (!(await haproxy.#isReady())) {
      if (child.exitCode !== null || performance.now() > deadline) {
        await haproxy[Symbol.asyncDispose]();
        throw new Error(`HAProxy did not start: ${log.join("")}`);
      }
      await pause(50);
    }
    return haproxy;
  }

  async #isReady(): Promise<boolean> {
    try {
      const response = await fetch(`${this.url}/health/ready`);
      await response.arrayBuffer();
      return response.ok;
    } catch {
      return false;
    }
  }

  /** Waits until HAProxy reports a replica (numbered from 1) as UP or DOWN. */
  async waitFor(replica: number, state: "UP" | "DOWN", withinMs = START_MS): Promise<void> {
    const deadline = performance.now() + withinMs;
    while ((await this.metric("haproxy_server_status", `proxy="stepd",server="stepd-${replica}",state="${state}"`)) !== 1) {
      if (performance.now() > deadline) throw new Error(`HAProxy did not see replica ${replica} ${state} within ${withinMs} ms`);
      await pause(50);
    }
  }

  /** Reads a value from HAProxy's metrics. */
  async metric(name: string, labels: string): Promise<number> {
    const lines = (await (await fetch(`${this.admin}/metrics`)).text()).split("\n");
    const line = lines.find((candidate) => candidate.startsWith(`${name}{${labels}} `));
    if (line === undefined) throw new Error(`HAProxy has no ${name}{${labels}}`);
    return Number(line.slice(line.lastIndexOf(" ") + 1));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#process.exitCode !== null || this.#process.signalCode !== null) return;
    this.#process.kill("SIGKILL");
    await once(this.#process, "exit");
  }
}
