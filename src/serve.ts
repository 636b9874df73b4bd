/** Runs the service until a signal ends the process, for `npm start` and for `stepd serve`. */
import v8 from "node:v8";
import { type Config, namedSettings } from "./config.ts";
import { Service } from "./service.ts";
import type { Telemetry } from "./telemetry/telemetry.ts";
import { version } from "./version.ts";

/** A second signal within this time is the first one, forwarded by a parent process. */
const FORWARDED_SIGNAL_MS = 500;

const STOP_SIGNALS = ["SIGTERM", "SIGINT", "SIGHUP"] as const;

/** Ignored signals need a listener. Without one, SIGUSR1 opens the port of Node's inspector and SIGUSR2 ends the process. */
const IGNORED_SIGNALS = ["SIGUSR1", "SIGUSR2"] as const;

/** Starts the service, logs its address and the warnings, and drains on a signal. Throws ConfigError if the settings prevent a start. */
export const serve = async (config: Config, warnings: readonly string[]): Promise<void> => {
  let telemetry: Telemetry | undefined;
  for (const signal of IGNORED_SIGNALS) process.on(signal, () => telemetry?.log.warn({ signal }, "signal ignored"));
  // Under overload V8's young generation grew to 128 MiB without any gain (measured), so it keeps its initial size.
  v8.setFlagsFromString("--semi-space-growth-factor=1");
  const service = await Service.start(config);
  telemetry = service.telemetry;
  logFailures(service.telemetry);
  stopAtSignals(service);
  const { address, adminAddress } = service;
  const facts = { version, node: process.version, pid: process.pid, address, admin_address: adminAddress, settings: namedSettings(config) };
  service.telemetry.logStart(`stepd ${version} listens on ${address}`, facts);
  for (const warning of warnings) telemetry.log.warn(warning);
};

/** Logs the exit status with its reason and ends the process. */
const exitWith = async ({ log, flushed }: Telemetry, status: 0 | 1, facts: Readonly<Record<string, unknown>>, message: string): Promise<never> => {
  log[status === 0 ? "info" : "error"]({ ...facts, exit_status: status }, message);
  await flushed();
  return process.exit(status);
};

const stopAtSignals = (service: Service): void => {
  const { telemetry } = service;
  let drainStart: number | undefined;
  const secondsSince = (start: number): number => Math.round(performance.now() - start) / 1000;
  const stop = async (signal: string): Promise<void> => {
    if (drainStart !== undefined) {
      // Ctrl-C arrives twice, from the terminal and from npm. Only a later signal requests an immediate stop.
      if (performance.now() - drainStart <= FORWARDED_SIGNAL_MS) return;
      await exitWith(telemetry, 1, { signal, in_flight: telemetry.inFlight, seconds: secondsSince(drainStart) }, `stopped by a second ${signal} in the drain`);
    }
    const start = performance.now();
    drainStart = start;
    telemetry.log.info({ signal, in_flight: telemetry.inFlight }, "draining");
    const unfinished = await service.drain();
    const facts = { signal, in_flight: unfinished, seconds: secondsSince(start) };
    if (unfinished === 0) await exitWith(telemetry, 0, facts, "drained: all calls in flight are finished");
    else await exitWith(telemetry, 1, facts, "the drain time is over: calls in flight were cut off");
  };
  for (const signal of STOP_SIGNALS) process.on(signal, stop);
};

/** Logs warnings of Node.js and uncaught exceptions. Node.js itself would write plain text, and would wait for a slow reader. */
const logFailures = (telemetry: Telemetry): void => {
  process.removeAllListeners("warning");
  process.on("warning", (warning) => telemetry.log.warn({ err: warning }, "Node.js warns"));
  process.on("uncaughtException", (error) => void exitWith(telemetry, 1, { err: error }, "the process failed"));
};
