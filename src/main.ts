/** The entry: flags, environment, signals. */
import { parseArgs } from "node:util";
import v8 from "node:v8";
import { ConfigError, help, readConfig } from "./config.ts";
import { Service, version } from "./service.ts";

// Every chunk of a body is a buffer outside the heap, and their sum starts a garbage collection about each 64 MB. Marking in
// the background then takes the cores from the workers: a step of 1 Mi parameters on two cores took 26 ms with it and 18
// without (measured). The heap itself is small, 15 MB, so marking it at once is short.
v8.setFlagsFromString("--no-incremental-marking");

/** A signal within this time after the first is the same one, forwarded. */
const REPEAT_MS = 500;

const fail = (message: string): never => {
  console.error(`stepd: ${message}`);
  process.exit(1);
};

const readFlags = () => {
  try {
    return parseArgs({ options: { help: { type: "boolean", short: "h" }, version: { type: "boolean" } } }).values;
  } catch (error) {
    return fail((error as Error).message);
  }
};

const flags = readFlags();
if (flags.help) console.log(help());
else if (flags.version) console.log(version);
else {
  try {
    const service = await Service.start(readConfig(process.env));
    let drainStart: number | undefined;
    const stop = async (signal: string): Promise<void> => {
      if (drainStart !== undefined) {
        // Ctrl-C reaches this process twice, from the terminal and from npm; only a later signal means "now".
        if (performance.now() - drainStart > REPEAT_MS) fail(`stopped by a second ${signal}, with calls in flight`);
        return;
      }
      drainStart = performance.now();
      service.telemetry.log.info({ signal }, "draining");
      process.exit((await service.drain()) ? 0 : 1);
    };
    process.on("SIGTERM", stop);
    process.on("SIGINT", stop);
    console.log(`stepd ${version} listens on ${service.address}`);
  } catch (error) {
    if (error instanceof ConfigError) fail(error.message);
    throw error;
  }
}
