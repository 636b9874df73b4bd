/** The entry point of `npm start` and of the image: `stepd serve` with a help that lists the variables. */
import { type Command, CommandError, type Option, parseArguments, UsageError } from "./cli/_command.ts";
import { serve } from "./cli/serve.ts";
import { helpText } from "./config.ts";
import { version } from "./version.ts";

const fail = (message: string): never => {
  console.error(`stepd: ${message}`);
  process.exit(1);
};

const VERSION: Option = { help: "print the version" };

process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code !== "EPIPE") fail(`standard output: ${error.message}`);
});

const service = serve(process.env);
const command: Command = { ...service, options: { ...service.options, version: VERSION } };

try {
  const { isHelp, values, args } = parseArguments(command, process.argv.slice(2));
  if (isHelp) console.log(helpText());
  else if (values["version"]) console.log(version);
  else process.exitCode = await service.run(values, args);
} catch (error) {
  if (error instanceof UsageError || error instanceof CommandError) fail(error.message);
  throw error;
}
