/** The entry point of `npm start`. It reads the flags and the environment and runs the service. */
import { parseArgs } from "node:util";
import { ConfigError, helpText, readConfig, warningsFor } from "./config.ts";
import { serve } from "./serve.ts";
import { version } from "./service.ts";

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

process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code !== "EPIPE") fail(`standard output: ${error.message}`);
});

const flags = readFlags();
if (flags.help) console.log(helpText());
else if (flags.version) console.log(version);
else {
  try {
    const config = readConfig(process.env);
    await serve(config, warningsFor(process.env, config));
  } catch (error) {
    if (error instanceof ConfigError) fail(error.message);
    throw error;
  }
}
