/** The entry point of the `stepd` command. It runs a subcommand and exits with 0 on success, 1 on failure, 2 for wrong usage. */
import { StepdError } from "../errors/errors.ts";
import { version } from "../version.ts";
import { type Command, CommandError, helpOf, listChoices, parseArguments, UsageError } from "./_command.ts";
import { heading } from "./terminal.ts";

/** Commands are imported on use, because loading the service's libraries takes longer than most commands. */
const commands: Readonly<Record<string, { readonly summary: string; load(): Promise<Command> }>> = {
  serve: { summary: "run the service", load: async () => (await import("./serve.ts")).serve(process.env) },
  inspect: { summary: "print the contents of a state or another safetensors file", load: async () => (await import("./inspect.ts")).inspect },
  convert: {
    summary: "convert a state to or from torch, qhoptim or optax, or to another optimizer",
    load: async () => (await import("./convert.ts")).convert,
  },
  plan: { summary: "print the cost of a step: bytes, memory, calls, network time", load: async () => (await import("./plan.ts")).plan },
  verify: { summary: "check a ledger of receipts, and repeat its steps", load: async () => (await import("./verify.ts")).verify },
  bench: { summary: "measure a running server with real steps", load: async () => (await import("./bench.ts")).bench },
};

const helpText = (): string => {
  const width = Math.max(...Object.keys(commands).map((name) => name.length));
  return [
    `${heading("Usage:")} stepd COMMAND [arguments]`,
    "",
    "A stateless optimizer service, and tools for its states.",
    "",
    heading("Commands:"),
    ...Object.entries(commands).map(([name, { summary }]) => `  ${name.padEnd(width)}  ${summary}`),
    "",
    "stepd COMMAND --help explains a command; stepd --version prints the version.",
    "Exit codes: 0 success, 1 failure, 2 wrong usage.",
  ].join("\n");
};

const run = async (argv: readonly string[]): Promise<number> => {
  const [name, ...rest] = argv;
  if (name === undefined) throw new UsageError(`expected a command: ${Object.keys(commands).join(", ")}; found none`);
  if (name === "--help" || name === "-h") console.log(helpText());
  else if (name === "--version") console.log(version);
  else {
    const found = Object.hasOwn(commands, name) ? commands[name] : undefined;
    if (!found) throw new UsageError(`expected ${listChoices(name, Object.keys(commands))}, found ${JSON.stringify(name)}`);
    const command = await found.load();
    const { isHelp, values, args } = parseArguments(command, rest);
    if (!isHelp) return await command.run(values, args);
    console.log(helpOf(command));
  }
  return 0;
};

/** Returns the message for an error, with the stack if the error is unexpected. */
const textOf = (error: unknown): string => {
  if (!(error instanceof Error)) return String(error);
  const isKnown = error instanceof UsageError || error instanceof CommandError || error instanceof StepdError;
  return isKnown || "syscall" in error ? error.message : (error.stack ?? error.message);
};

// bin/stepd.js starts this process. If that parent is killed, this process must end, too.
process.once("disconnect", () => process.kill(process.pid, "SIGTERM"));
process.channel?.unref();

process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  // A reader such as `head` closes the pipe early, which is not a failure.
  if (error.code === "EPIPE") process.exit(0);
  console.error(`stepd: standard output: ${error.message}`);
  process.exit(1);
});

try {
  process.exitCode = await run(process.argv.slice(2));
} catch (error) {
  console.error(`stepd: ${textOf(error)}`);
  process.exitCode = error instanceof UsageError ? 2 : 1;
}
