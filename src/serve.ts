/** Runs the service until a signal ends the process: what `npm start` and `stepd serve` have in common. */
import v8 from "node:v8";
import type { Config } from "./config.ts";
import { Service, version } from "./service.ts";

/** A signal within this time after the first is the same one, forwarded. */
const REPEAT_MS = 500;

/** Starts, says where it listens, and drains at SIGTERM and SIGINT. Throws ConfigError where it cannot start with these settings. */
export const serve = async (config: Config): Promise<void> => {
  // Young objects get no more room than the start took. Under overload it grew to 128 MiB, which bought nothing (measured).
  v8.setFlagsFromString("--semi-space-growth-factor=1");
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
