/** The environment and the flags, checked once and frozen. No other file reads the environment. */
import os from "node:os";
import { closest } from "fastest-levenshtein";

const MIB = 2 ** 20;
const MAX_ARENA_MIB = 4096;

export interface Config {
  readonly host: string;
  readonly port: number;
  /** Path of a Unix socket to listen on instead of TCP; empty for TCP. */
  readonly socket: string;
  readonly workers: number;
  readonly arenaMib: number;
  readonly logLevel: string;
  readonly requestTimeoutMs: number;
  readonly idleTimeoutMs: number;
  readonly drainTimeoutMs: number;
  readonly drainGraceMs: number;
}

/** A setting that does not make sense. Its message is one line. */
export class ConfigError extends Error {
  override readonly name = "ConfigError";
}

interface Setting<T> {
  readonly name: string;
  readonly help: string;
  /** The default as the help prints it. */
  readonly initial: string;
  parse(text: string, name: string): T;
}

const wholeNumber =
  (least: number, most: number) =>
  (text: string, name: string): number => {
    const value = Number(text);
    if (!/^\d+$/.test(text) || value < least || value > most)
      throw new ConfigError(`${name}: expected a whole number from ${least} to ${most}, found ${JSON.stringify(text)}`);
    return value;
  };

const oneOf =
  (choices: readonly string[]) =>
  (text: string, name: string): string => {
    if (!choices.includes(text)) throw new ConfigError(`${name}: expected one of ${choices.join(", ")}, found ${JSON.stringify(text)}`);
    return text;
  };

const address = (text: string, name: string): string => {
  if (text === "") throw new ConfigError(`${name}: expected an address, found ""`);
  return text;
};

/** Half of the memory that this process may use, in MiB, within what WebAssembly can address. */
const defaultArena = (): number => {
  const limit = process.constrainedMemory();
  const memory = limit > 0 && limit < os.totalmem() ? limit : os.totalmem();
  return Math.max(1, Math.min(MAX_ARENA_MIB, Math.floor(memory / 2 / MIB)));
};

const MAX_WORKERS = 256;
const MAX_TIMEOUT_MS = 24 * 3600 * 1000;

const settings = {
  host: { name: "STEPD_HOST", help: "address to listen on", initial: "127.0.0.1", parse: address },
  port: { name: "STEPD_PORT", help: "TCP port; 0 picks a free one and prints it", initial: "8080", parse: wholeNumber(0, 65535) },
  socket: { name: "STEPD_SOCKET", help: "path of a Unix socket to listen on instead of TCP", initial: "", parse: (text: string) => text },
  workers: {
    name: "STEPD_WORKERS",
    help: "worker threads",
    initial: String(Math.min(os.availableParallelism(), MAX_WORKERS)),
    parse: wholeNumber(1, MAX_WORKERS),
  },
  arenaMib: {
    name: "STEPD_ARENA_MIB",
    help: "memory for bodies and replies of all calls together, in MiB",
    initial: String(defaultArena()),
    parse: wholeNumber(1, MAX_ARENA_MIB),
  },
  logLevel: {
    name: "STEPD_LOG_LEVEL",
    help: "trace, debug, info, warn, error, fatal or silent",
    initial: "info",
    parse: oneOf(["trace", "debug", "info", "warn", "error", "fatal", "silent"]),
  },
  requestTimeoutMs: {
    name: "STEPD_REQUEST_TIMEOUT_MS",
    help: "time for a whole request to come in, in ms",
    initial: "300000",
    parse: wholeNumber(1, MAX_TIMEOUT_MS),
  },
  idleTimeoutMs: {
    name: "STEPD_IDLE_TIMEOUT_MS",
    help: "time without a byte until a connection is cut, in ms",
    initial: "60000",
    parse: wholeNumber(1, MAX_TIMEOUT_MS),
  },
  drainTimeoutMs: {
    name: "STEPD_DRAIN_TIMEOUT_MS",
    help: "time that calls in flight have to finish after SIGTERM, in ms",
    initial: "30000",
    parse: wholeNumber(1, MAX_TIMEOUT_MS),
  },
  drainGraceMs: {
    name: "STEPD_DRAIN_GRACE_MS",
    help: "time after SIGTERM in which calls are served as before and only /health/ready says no, so that balancers notice, in ms",
    initial: "0",
    parse: wholeNumber(0, MAX_TIMEOUT_MS),
  },
} satisfies { readonly [K in keyof Config]: Setting<Config[K]> };

/** Reads the configuration. Throws ConfigError. */
export const readConfig = (env: Readonly<Record<string, string | undefined>>): Config => {
  const known = Object.values(settings).map(({ name }) => name);
  const unknown = Object.keys(env).find((name) => name.startsWith("STEPD_") && !known.includes(name));
  if (unknown) throw new ConfigError(`${unknown}: expected a setting that --help lists, for instance ${closest(unknown, known)}, found an unknown name`);
  const values = Object.entries(settings).map(([key, { name, initial, parse }]) => [key, parse(env[name] ?? initial, name)]);
  return Object.freeze(Object.fromEntries(values) as Config);
};

export const help = (): string => {
  const lines = Object.values(settings).map(({ name, help, initial }) => `  ${name.padEnd(26)} ${help}${initial === "" ? "" : ` (${initial})`}`);
  return ["stepd: a stateless optimizer service", "", "Usage: npm start [-- --help | --version]", "", "Environment (defaults in brackets):", ...lines, ""].join(
    "\n",
  );
};
