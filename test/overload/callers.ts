/**
 * Measures what one caller that misbehaves takes from the others: 18 callers step all the time while another one trickles its
 * bodies, floods the server with calls, or sends bombs. `node test/overload/callers.ts [seconds of each attack [attacks [haproxy]]]`;
 * with `haproxy`, through HAProxy. It is no test, because the share depends on what else the machine does.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import http from "node:http";
import os from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { Haproxy } from "../deploy/_haproxy.ts";
import { sgdBody } from "../http/_client.ts";
import { MSGPACK, TestService } from "../support/service.ts";

const CALLERS = 18;
const seconds = Number(process.argv[2] ?? 8);
/** Windows with and without the attack alternate, because the load of the machine changes. */
const WINDOW_S = 4;
const ROUNDS = Math.max(1, Math.round(seconds / WINDOW_S));
const isBalanced = process.argv[4] === "haproxy";
/** The main thread of each replica may take a core, and the callers take one. A replica then stands behind several names of HAProxy. */
const REPLICAS = Math.max(1, Math.min(3, os.availableParallelism() - 1));
const PAUSE_MS = 60;
const BODY = sgdBody(2 ** 16, 2);

/** What the callers saw in several windows of time. */
class Tally {
  readonly #times: number[] = [];
  #seconds = 0;
  #refused = 0;
  /** The CPU seconds of the callers, the servers and the attacker. */
  readonly #cpu = [0, 0, 0];

  addCall(status: number, ms: number): void {
    if (status === 200) this.#times.push(ms);
    else this.#refused++;
  }

  addWindow(duration: number, cpu: readonly number[]): void {
    this.#seconds += duration;
    for (const [index, used] of cpu.entries()) this.#cpu[index] = (this.#cpu[index] ?? 0) + used;
  }

  /** Steps per second. */
  get rate(): number {
    return this.#times.length / this.#seconds;
  }

  get text(): string {
    const sorted = this.#times.toSorted((a, b) => a - b);
    const at = (part: number): string => (sorted[Math.floor(sorted.length * part)] ?? 0).toFixed(0);
    const cores = this.#cpu.map((used) => (used / this.#seconds).toFixed(2)).join(", ");
    return `${this.rate.toFixed(0)} steps/s, median ${at(0.5)} ms, p99 ${at(0.99)} ms, ${this.#refused} refused; cores of callers, servers, attacker: ${cores}`;
  }
}

const bearer = (name: string) => ({ Authorization: `Bearer ${name}-0123456789abcdef` });

/** Sends a step and returns its status and time in ms. */
const step = (url: string, name: string, agent: http.Agent): Promise<{ readonly status: number; readonly ms: number }> =>
  new Promise((resolve, reject) => {
    const start = performance.now();
    const headers = { "Content-Type": MSGPACK, "Content-Length": BODY.length, ...bearer(name) };
    const request = http.request(`${url}/v1/step`, { method: "POST", agent, headers }, (response) => {
      response.resume();
      response.on("end", () => resolve({ status: response.statusCode ?? 0, ms: performance.now() - start }));
    });
    request.on("error", reject);
    request.end(BODY);
  });

const TICKS_PER_SECOND = 100;

/** Returns the CPU seconds of processes so far, in user and kernel mode (proc_pid_stat(5), fields 14 and 15). */
const cpuSeconds = (processes: readonly ChildProcess[]): number =>
  processes.reduce((sum, { pid }) => {
    const fields = readFileSync(`/proc/${pid}/stat`, "utf8")
      .replace(/^.*\) /s, "")
      .split(" ");
    return sum + (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
  }, 0);

/** Lets all callers step for some seconds, each with a pause between its steps. */
const watch = async (tally: Tally, url: string, duration: number, servers: readonly ChildProcess[], attackers: readonly ChildProcess[] = []): Promise<void> => {
  const cpu = (): readonly number[] => {
    const { user, system } = process.cpuUsage();
    return [(user + system) / 1e6, cpuSeconds(servers), cpuSeconds(attackers)];
  };
  const before = cpu();
  const agent = new http.Agent({ keepAlive: true });
  const end = performance.now() + duration * 1000;
  const run = async (name: string): Promise<void> => {
    while (performance.now() < end) {
      const { status, ms } = await step(url, name, agent);
      tally.addCall(status, ms);
      await delay(PAUSE_MS);
    }
  };
  await Promise.all(Array.from({ length: CALLERS }, (_, index) => run(`caller${index}`)));
  agent.destroy();
  tally.addWindow(
    duration,
    cpu().map((used, index) => used - (before[index] ?? 0)),
  );
};

/** Starts an attack in a process of its own. */
const attack = async (kind: string, url: string): Promise<ChildProcess> => {
  const child = spawn(process.execPath, [new URL("_attacker.ts", import.meta.url).pathname, kind, url, "attacker-0123456789abcdef"], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  await once(child.stdout as NodeJS.ReadableStream, "data");
  return child;
};

const scratch = mkdtempSync(join(os.tmpdir(), "stepd-callers-"));
try {
  const tokens = join(scratch, "tokens");
  const names = [...Array.from({ length: CALLERS }, (_, index) => `caller${index}`), "attacker"];
  writeFileSync(tokens, names.map((name) => `${name} ${name}-0123456789abcdef\n`).join(""));
  for (const kind of process.argv[3]?.split(",") ?? ["trickle", "flood", "bombs"]) {
    await using stack = new AsyncDisposableStack();
    const services: TestService[] = [];
    for (let replica = 0; replica < (isBalanced ? REPLICAS : 1); replica++) {
      services.push(stack.use(await TestService.start({ STEPD_ARENA_MIB: "64", STEPD_WORKERS: "2", STEPD_TOKENS_FILE: tokens })));
    }
    const haproxy = isBalanced ? stack.use(await Haproxy.start([0, 1, 2].map((index) => services[index % REPLICAS]?.url ?? ""))) : undefined;
    const servers = services.map((service) => service.process);
    const url = haproxy?.url ?? services[0]?.url ?? "";
    await watch(new Tally(), url, 2, servers);
    const [alone, beside] = [new Tally(), new Tally()];
    for (let round = 0; round < ROUNDS; round++) {
      await watch(alone, url, WINDOW_S, servers);
      const attacker = await attack(kind, url);
      await watch(beside, url, WINDOW_S, servers, [attacker]);
      attacker.kill("SIGKILL");
      await once(attacker, "exit");
    }
    console.log(`${kind}: share ${(beside.rate / alone.rate).toFixed(2)}\n  alone:  ${alone.text}\n  beside: ${beside.text}`);
  }
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
