/**
 * Makes docs/metrics.png: `node test/prometheus/picture.ts [minutes]`. Runs three replicas and a real Prometheus under a load
 * that operators meet: calls beyond the size of the arenas, gradients with NaN, and a replica that drains and restarts.
 */
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import { Presets, SingleBar } from "cli-progress";
import { sgdParams } from "../http/_client.ts";
import { MSGPACK, pack, TestService } from "../support/service.ts";
import { root } from "../support/tree.ts";
import { Prometheus } from "./_prometheus.ts";

const run = promisify(execFile);

const DEFAULT_MINUTES = 4;
const SCRAPE_MS = 1000;
const REPLICAS = 3;
const CALLERS = 4;
const RUSH_CALLERS = 12;
const PAUSE_MS = 50;

/** The times of events, as fractions of the whole duration. */
const RUSH_INTERVAL = [0.25, 0.4] as const;
const NON_FINITE_INTERVAL = [0.5, 0.6] as const;
const RESTART_AT = 0.7;

const grafana = join(root, "deploy/grafana");

/** Returns the interpreter of a Python environment with matplotlib. */
const python = async (): Promise<string> => {
  const home = join(root, "build/venv/picture");
  const interpreter = join(home, "bin/python");
  if (!existsSync(interpreter)) {
    await run("python3", ["-m", "venv", home]);
    await run(interpreter, ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement", join(grafana, "requirements.txt")]);
  }
  return interpreter;
};

const bodyOf = (name: string, elements: number, gradient = 1): Buffer => {
  const { params, grads } = sgdParams(elements, 1);
  // The last four bytes of the file are the last gradient.
  grads.writeFloatLE(gradient, grads.length - 4);
  return pack({ optimizer: { name }, params, grads });
};

const bodies = [bodyOf("adamw", 300_000), bodyOf("adamw", 20_000), bodyOf("lion", 200_000), bodyOf("qhadam", 150_000), bodyOf("sgd", 400_000)];
const nonFinite = bodyOf("adamw", 20_000, Number.NaN);
const large = bodyOf("lamb", 1_000_000);

const minutes = Number(process.argv[2] ?? DEFAULT_MINUTES);
const interpreter = await python();
const settings = (port = "0", adminPort = "0") => ({
  STEPD_ARENA_MIB: "64",
  STEPD_WORKERS: "2",
  STEPD_DRAIN_GRACE_MS: "5000",
  STEPD_PORT: port,
  STEPD_ADMIN_PORT: adminPort,
});
const services = await Promise.all(Array.from({ length: REPLICAS }, () => TestService.start(settings())));
const targets = services.map(({ admin }) => new URL(admin ?? "").host);
const prometheus = await Prometheus.start({ stepd: targets, haproxy: [], alertmanager: [] }, SCRAPE_MS);

const start = performance.now();
const part = (): number => (performance.now() - start) / 60_000 / minutes;
const isWithin = ([from, to]: readonly [number, number]): boolean => part() >= from && part() < to;

/** Calls the replicas in turn, and waits as long as refusals demand. */
const caller = async (index: number, next: (turn: number) => Buffer | undefined): Promise<void> => {
  for (let turn = index; part() < 1; turn++) {
    const body = next(turn);
    // A stopped replica refuses the connection.
    const reply = body && (await services[turn % REPLICAS]?.post("/v1/step", body, MSGPACK).catch(() => undefined));
    await reply?.arrayBuffer().catch(() => {});
    await delay(Number(reply?.headers.get("retry-after") ?? 0) * 1000 + PAUSE_MS);
  }
};

const restart = async (): Promise<void> => {
  while (part() < RESTART_AT) await delay(PAUSE_MS);
  const old = services[0] as TestService;
  const ports = [old.url, old.admin ?? ""].map((url) => new URL(url).port);
  await old.stop();
  await delay(5 * SCRAPE_MS);
  services[0] = await TestService.start(settings(...ports));
};

const bar = new SingleBar({ format: "{bar} {percentage} % of {minutes} min" }, Presets.shades_classic);
bar.start(100, 0, { minutes });
const timer = setInterval(() => bar.update(Math.min(100, Math.round(part() * 100))), SCRAPE_MS);
try {
  const normal = (turn: number): Buffer | undefined => (turn % 4 === 0 && isWithin(NON_FINITE_INTERVAL) ? nonFinite : bodies[turn % bodies.length]);
  const rush = (): Buffer | undefined => (isWithin(RUSH_INTERVAL) ? large : undefined);
  await Promise.all([
    restart(),
    ...Array.from({ length: CALLERS }, (_, index) => caller(index, normal)),
    ...Array.from({ length: RUSH_CALLERS }, (_, index) => caller(index, rush)),
  ]);
  await run(interpreter, [
    join(grafana, "picture.py"),
    prometheus.url,
    "--minutes",
    `${minutes}`,
    "--window",
    "10s",
    "--output",
    join(root, "docs/metrics.png"),
  ]);
} finally {
  clearInterval(timer);
  bar.stop();
  await prometheus[Symbol.asyncDispose]();
  for (const service of services) await service[Symbol.asyncDispose]();
}
