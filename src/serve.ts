/** Runs the service until a signal ends the process: what `npm start` and `stepd serve` have in common. */
import v8 from "node:v8";
import type { Config } from "./config.ts";
import { Service, version } from "./service.ts";

/** A signal within this time after the first is the same one, forwarded. */
const REPEAT_MS = 500;

/** Starts, says where it listens, and drains at SIGTERM and SIGINT. Throws ConfigError where it cannot start with these settings. */
export const serve = async (config: Config): Promise<void> => {
  // Every chunk of a body is a buffer outside the heap, and their sum starts a garbage collection about each 64 MB. Marking in
  // the background then takes the cores from the workers: a step of 1 Mi parameters on two cores took 26 ms with it and 18
  // without (measured). The heap itself is small, 15 MB, so marking it at once is short.
  v8.setFlagsFromString("--no-incremental-marking");
  const service = await Service.start(config);
  let drainStart: number | undefined;
  const stop = async (signal: string): Promise<void> => {
    if (drainStart !== undefined) {
      // Ctrl-C reaches this process twice, from the terminal and from npm; only a later signal means "now".
      if (performance.now() - drainStart <= REPEAT_MS) return;
      console.error(`stepd: stopped by a second ${signal}, with calls in flight`);
      process.exit(1);
    }
    drainStart = performance.now();
    service.telemetry.log.info({ signal }, "draining");
    process.exit((await service.drain()) ? 0 : 1);
  };
  process.on("SIGTERM", stop);
  process.on("SIGINT", stop);
  const { address, adminAddress } = service;
  if (adminAddress) console.log(`stepd ${version} has metrics and health on ${adminAddress}`);
  console.log(`stepd ${version} listens on ${address}`);
};
