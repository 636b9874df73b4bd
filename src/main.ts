/** The entry: flags, environment, signals. */
import { parseArgs } from "node:util";
import { ConfigError, help, readConfig } from "./config.ts";
import { Service, version } from "./service.ts";

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
    console.log(`stepd ${version} listens on ${service.address}`);
    const stop = async (signal: string): Promise<void> => {
      service.telemetry.log.info({ signal }, "draining");
      process.exit((await service.drain()) ? 0 : 1);
    };
    process.once("SIGTERM", stop);
    process.once("SIGINT", stop);
  } catch (error) {
    if (error instanceof ConfigError) fail(error.message);
    throw error;
  }
}
