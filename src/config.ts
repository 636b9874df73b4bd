/** Reads the configuration from the environment and a file of settings, checks and freezes it. No other file reads the environment. */
import { readFileSync } from "node:fs";
import { parseEnv } from "node:util";
import { nearest } from "./errors/nearest.ts";
import { type Machine, readMachine } from "./machine.ts";
import { LOG_LEVELS } from "./telemetry/levels.ts";

const MIB = 2 ** 20;
const MAX_ARENA_MIB = 4096;
const DEFAULT_JSON_MIB = 64;
/** V8 limits a string to 512 MiB, and a JSON body is decoded through a string. */
const MAX_JSON_MIB = 256;

export interface Config {
  readonly settingsFile: string;
  readonly host: string;
  readonly port: number;
  /** The path of a Unix socket to listen on instead of TCP. Empty for TCP. */
  readonly socket: string;
  readonly workers: number;
  readonly wideVectors: string;
  readonly arenaMib: number;
  readonly logLevel: string;
  /** "on" logs a line for each call. */
  readonly accessLog: string;
  /** The base URL of the collector for traces, which ends with a slash. Empty for none. */
  readonly otlpUrl: string;
  readonly requestTimeoutMs: number;
  readonly idleTimeoutMs: number;
  readonly drainTimeoutMs: number;
  readonly drainGraceMs: number;
  /** A body's minimum average rate in bytes per second, after a grace period. */
  readonly minBodyRate: number;
  readonly maxConnections: number;
  /** The server rejects calls above this number of concurrent calls. */
  readonly maxInFlight: number;
  readonly maxJsonMib: number;
  /** The size of the cache of results; 0 turns the cache off. */
  readonly cacheMib: number;
  /** Settings that end in Dir or File are paths. An empty path turns the feature off. */
  readonly sharedDir: string;
  readonly tokensFile: string;
  readonly tlsCertFile: string;
  readonly tlsKeyFile: string;
  readonly tlsClientCaFile: string;
  /** The port of the admin server for /metrics and health; undefined for none. */
  readonly adminPort: number | undefined;
  readonly adminHost: string;
  readonly receiptKeyFile: string;
  readonly corsOrigins: readonly string[];
  /** "on" serves the page for browsers at /. */
  readonly page: string;
  /** The URLs of the replicas whose metrics the page shows. Each ends with a slash. */
  readonly pageReplicas: readonly string[];
}

/** Thrown for an invalid setting. Its message is one line. */
export class ConfigError extends Error {
  override readonly name = "ConfigError";
}

interface Setting<T> {
  readonly name: string;
  readonly help: string;
  /** The default value as text. */
  readonly initial: string;
  readonly kind: Kind<T>;
}

/** The values of a setting: how its text is parsed, and the JSON Schema of its values for files such as the Helm chart's values. */
interface Kind<T> {
  readonly schema: Readonly<Record<string, unknown>>;
  parse(text: string, name: string): T;
}

const wholeNumber = (minimum: number, maximum: number): Kind<number> => ({
  schema: { type: "integer", minimum, maximum },
  parse: (text, name) => {
    const value = Number(text);
    if (!/^\d+$/.test(text) || value < minimum || value > maximum)
      throw new ConfigError(`${name}: expected a whole number from ${minimum} to ${maximum}, found ${JSON.stringify(text)}`);
    return value;
  },
});

const oneOf = (choices: readonly string[]): Kind<string> => ({
  schema: { enum: choices },
  parse: (text, name) => {
    if (!choices.includes(text)) throw new ConfigError(`${name}: expected one of ${choices.join(", ")}, found ${JSON.stringify(text)}`);
    return text;
  },
});

const optional = <T>({ schema, parse }: Kind<T>): Kind<T | undefined> => ({
  schema,
  parse: (text, name) => (text === "" ? undefined : parse(text, name)),
});

const path: Kind<string> = { schema: { type: "string" }, parse: (text) => text };

/** Parses a list of origins as browsers send them: scheme and host, and a port unless it is the scheme's default. */
const parseOrigins = (text: string, name: string): readonly string[] => {
  const list = text.split(",").flatMap((part) => part.trim() || []);
  for (const origin of list) {
    if (origin === "*") continue;
    const isOrigin = URL.canParse(origin) && new URL(origin).origin === origin;
    if (!isOrigin) throw new ConfigError(`${name}: expected origins such as https://train.example:8443, or *, found ${JSON.stringify(origin)}`);
  }
  return list;
};

/** Parses a list of base URLs. Returns each with a slash at its end. */
const parseUrls = (text: string, name: string): readonly string[] =>
  text.split(",").flatMap((part) => {
    const given = part.trim();
    if (given === "") return [];
    const url = URL.canParse(given) ? new URL(given) : undefined;
    const isBase = url && /^https?:$/.test(url.protocol) && `${url.username}${url.password}${url.search}${url.hash}` === "";
    if (!isBase) throw new ConfigError(`${name}: expected URLs such as http://10.0.0.2:8080, found ${JSON.stringify(given)}`);
    return [url.href.replace(/\/?$/, "/")];
  });

const origins: Kind<readonly string[]> = { schema: { type: "string" }, parse: parseOrigins };

const optionalUrl: Kind<string> = {
  schema: { type: "string" },
  parse: (text, name) => {
    const [url = "", ...more] = parseUrls(text, name);
    if (more.length > 0) throw new ConfigError(`${name}: expected one URL, found ${JSON.stringify(text)}`);
    return url;
  },
};

const urls: Kind<readonly string[]> = { schema: { type: "string" }, parse: parseUrls };

const address: Kind<string> = {
  schema: { type: "string", minLength: 1 },
  parse: (text, name) => {
    if (text === "") throw new ConfigError(`${name}: expected an address, found ""`);
    return text;
  },
};

/** An idle Node.js process takes this much memory, in MiB (measured). */
const NODE_MIB = 110;

/** A worker thread takes this much memory, in MiB (measured). */
const WORKER_MIB = 20;

/** Decoding JSON takes this multiple of its length in memory (measured). */
const JSON_MEMORY_FACTOR = 10;

const usableMemoryMib = ({ memory, memoryLimit = memory }: Machine): number => memoryLimit / MIB;

/** Returns one worker per processor. All workers together take at most an eighth of the memory limit. */
const defaultWorkers = ({ processors, memoryLimit = Number.POSITIVE_INFINITY }: Machine): number =>
  Math.max(1, Math.min(processors, MAX_WORKERS, Math.floor(memoryLimit / MIB / 8 / WORKER_MIB)));

/** Returns half of the memory, up to WebAssembly's limit. */
const defaultArenaMib = (machine: Machine): number => Math.max(1, Math.min(MAX_ARENA_MIB, Math.floor(usableMemoryMib(machine) / 2)));

/** Returns 1/128 of the memory, because JSON takes up to ten times its length. */
const defaultJsonMib = (machine: Machine): number => Math.max(1, Math.min(DEFAULT_JSON_MIB, Math.floor(usableMemoryMib(machine) / 128)));

const MAX_WORKERS = 256;
const MAX_TIMEOUT_MS = 24 * 3600 * 1000;
const MAX_CACHE_MIB = 2 ** 20;
const MAX_RATE = 2 ** 30;
const MAX_CONNECTIONS = 65536;

/** Matches STEPD_ variables that are no settings: those of clients, examples and deployments, and those that Kubernetes sets for a service named stepd. */
const FOREIGN_VARIABLES = /^STEPD_(?:URLS?|TOKEN|IMAGE|BIND|BIND_ADMIN|RUNBOOK|\d|SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP)(?:_\w+)?)$/;

const settingsOf = (machine: Machine) =>
  ({
    settingsFile: {
      name: "STEPD_SETTINGS_FILE",
      help: "file of settings, one `NAME=value` per line; a variable or an option overrides its line",
      initial: "",
      kind: path,
    },
    host: { name: "STEPD_HOST", help: "address to listen on", initial: "127.0.0.1", kind: address },
    port: { name: "STEPD_PORT", help: "TCP port; 0 picks a free port, which the log shows", initial: "8080", kind: wholeNumber(0, 65535) },
    socket: { name: "STEPD_SOCKET", help: "path of a Unix socket to listen on instead of TCP", initial: "", kind: path },
    workers: {
      name: "STEPD_WORKERS",
      help: "worker threads",
      initial: String(defaultWorkers(machine)),
      kind: wholeNumber(1, MAX_WORKERS),
    },
    wideVectors: {
      name: "STEPD_WIDE_VECTORS",
      help: "auto or off; auto uses 256-bit vectors if the processor and this version of Node support them, with the same results",
      initial: "auto",
      kind: oneOf(["auto", "off"]),
    },
    arenaMib: {
      name: "STEPD_ARENA_MIB",
      help: "memory for bodies and replies of all calls together, in MiB",
      initial: String(defaultArenaMib(machine)),
      kind: wholeNumber(1, MAX_ARENA_MIB),
    },
    logLevel: {
      name: "STEPD_LOG_LEVEL",
      help: "trace, debug, info, warn, error, fatal or silent",
      initial: "info",
      kind: oneOf(LOG_LEVELS),
    },
    accessLog: {
      name: "STEPD_ACCESS_LOG",
      help: "on or off; on logs a line for each call at level info: caller, method, outcome, bytes and seconds by phase",
      initial: "off",
      kind: oneOf(["on", "off"]),
    },
    otlpUrl: {
      name: "STEPD_OTLP_URL",
      help: "base URL of an OpenTelemetry collector, such as http://127.0.0.1:4318; it gets a trace of each call by OTLP over HTTP",
      initial: "",
      kind: optionalUrl,
    },
    requestTimeoutMs: {
      name: "STEPD_REQUEST_TIMEOUT_MS",
      help: "time to receive a whole request, and to send its reply, in ms",
      initial: "300000",
      kind: wholeNumber(1, MAX_TIMEOUT_MS),
    },
    idleTimeoutMs: {
      name: "STEPD_IDLE_TIMEOUT_MS",
      help: "time without traffic after which a connection is closed, in ms",
      initial: "60000",
      kind: wholeNumber(1, MAX_TIMEOUT_MS),
    },
    drainTimeoutMs: {
      name: "STEPD_DRAIN_TIMEOUT_MS",
      help: "time for calls in flight to finish after SIGTERM, in ms",
      initial: "30000",
      kind: wholeNumber(1, MAX_TIMEOUT_MS),
    },
    drainGraceMs: {
      name: "STEPD_DRAIN_GRACE_MS",
      help: "time after SIGTERM in which calls are still accepted but /health/ready reports false, so that load balancers notice, in ms",
      initial: "0",
      kind: wholeNumber(0, MAX_TIMEOUT_MS),
    },
    minBodyRate: {
      name: "STEPD_MIN_BODY_RATE",
      help: "minimum average rate of a body and of a reply after 10 s, in bytes per second; large ones must keep their length divided by STEPD_REQUEST_TIMEOUT_MS",
      initial: "4096",
      kind: wholeNumber(0, MAX_RATE),
    },
    maxConnections: {
      name: "STEPD_MAX_CONNECTIONS",
      help: "maximum number of connections; calls on 64 more connections get 429, further connections are closed",
      initial: "1024",
      kind: wholeNumber(1, MAX_CONNECTIONS),
    },
    maxInFlight: {
      name: "STEPD_MAX_IN_FLIGHT",
      help: "maximum number of concurrent calls; further calls get 429",
      initial: "256",
      kind: wholeNumber(1, MAX_CONNECTIONS),
    },
    maxJsonMib: {
      name: "STEPD_MAX_JSON_MIB",
      help: "memory for JSON, values and headers of blobs of all calls at once, in MiB of JSON text; each takes up to ten times as much memory beside the arena",
      initial: String(defaultJsonMib(machine)),
      kind: wholeNumber(1, MAX_JSON_MIB),
    },
    sharedDir: {
      name: "STEPD_SHARED_DIR",
      help: "shared folder, for instance under /dev/shm; calls from this host may name its files instead of sending bytes",
      initial: "",
      kind: path,
    },
    cacheMib: {
      name: "STEPD_CACHE_MIB",
      help: "cache for results that callers later name by handle instead of sending them, in MiB of the arena; calls that need the memory get it; 0 turns it off",
      initial: "0",
      kind: wholeNumber(0, MAX_CACHE_MIB),
    },
    tokensFile: {
      name: "STEPD_TOKENS_FILE",
      help: "file of bearer tokens, one `name token` per line; if set, every call needs a token",
      initial: "",
      kind: path,
    },
    tlsCertFile: {
      name: "STEPD_TLS_CERT_FILE",
      help: "certificate chain in PEM; with a certificate and a key, the server uses TLS",
      initial: "",
      kind: path,
    },
    tlsKeyFile: { name: "STEPD_TLS_KEY_FILE", help: "private key in PEM", initial: "", kind: path },
    tlsClientCaFile: {
      name: "STEPD_TLS_CLIENT_CA_FILE",
      help: "certificate authorities in PEM; if set, every caller needs a certificate that one of them signed",
      initial: "",
      kind: path,
    },
    receiptKeyFile: {
      name: "STEPD_RECEIPT_KEY_FILE",
      help: "private Ed25519 key in PEM; if set, receipts are signed with it",
      initial: "",
      kind: path,
    },
    adminPort: {
      name: "STEPD_ADMIN_PORT",
      help: "port of an admin server for /metrics and health, without TLS and tokens; if set, only this server has /metrics; 0 picks a free port",
      initial: "",
      kind: optional(wholeNumber(0, 65535)),
    },
    adminHost: { name: "STEPD_ADMIN_HOST", help: "address for that port", initial: "127.0.0.1", kind: address },
    corsOrigins: { name: "STEPD_CORS_ORIGINS", help: "comma-separated origins whose web pages may call, or *", initial: "", kind: origins },
    page: { name: "STEPD_PAGE", help: "on or off; on shows browsers a page at /", initial: "on", kind: oneOf(["on", "off"]) },
    pageReplicas: {
      name: "STEPD_PAGE_REPLICAS",
      help: "comma-separated URLs of replicas whose metrics the page also shows; STEPD_CORS_ORIGINS of each replica must list the page's origin",
      initial: "",
      kind: urls,
    },
  }) satisfies { readonly [K in keyof Config]: Setting<Config[K]> };

const PREFIX = "STEPD_";

const thisMachine = readMachine();

/** The settings with this machine's defaults. */
export const settings = settingsOf(thisMachine);

type Variables = Readonly<Record<string, string | undefined>>;

/** Reads the configuration. Throws one ConfigError with a line for each setting that is wrong. */
export const readConfig = (env: Variables, machine = thisMachine): Config => {
  const settings = settingsOf(machine);
  const known = Object.values(settings).map(({ name }) => name);
  const file = env[settings.settingsFile.name] ?? "";
  const fileValues = file === "" ? {} : readSettingsFile(file);
  const given: Variables = { ...fileValues, ...env };
  const problems: string[] = [];
  const check = <T>(name: string, body: () => T): T | undefined => {
    try {
      return body();
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      problems.push(env[name] === undefined && name in fileValues ? `${file}: ${error.message}` : error.message);
      return undefined;
    }
  };
  const unknown = Object.keys(given).filter((name) => name.startsWith(PREFIX) && !known.includes(name) && !FOREIGN_VARIABLES.test(name));
  for (const name of unknown) check(name, () => throwUnknownSetting(name, known));
  const values = Object.entries(settings).map(([key, { name, initial, kind }]) => [key, check(name, () => kind.parse(given[name] ?? initial, name))]);
  const config = Object.fromEntries(values) as Config;
  check(settings.tlsCertFile.name, () => requireTlsComplete(config));
  if (problems.length > 0) throw new ConfigError(problems.join("\n"));
  const arenaMib = fitArena(config, given[settings.arenaMib.name] !== undefined, machine);
  return Object.freeze({ ...config, arenaMib });
};

const SETTING_LINE = /^\s*(?:export\s+)?(STEPD_\w+)\s*=/;

/**
 * Reads a file of settings, in the form of an environment file: `NAME=value`, # for comments. Throws ConfigError. An error gives the line's
 * number but not its content, because the path could name a file of secrets by mistake.
 */
export const readSettingsFile = (file: string): Variables => {
  const setting = settings.settingsFile.name;
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (error) {
    throw new ConfigError(`${setting}: expected a file that can be read, found ${(error as Error).message}`);
  }
  const lines = new Map<string, number>();
  for (const [index, line] of text.split(/\r?\n/).entries()) {
    if (/^\s*(?:#|$)/.test(line)) continue;
    const name = SETTING_LINE.exec(line)?.[1];
    const place = `${file}, line ${index + 1}`;
    if (name === undefined) throw new ConfigError(`${place}: expected ${PREFIX}NAME=value, found something else`);
    if (name === setting) throw new ConfigError(`${place}: expected no file of settings inside of another, found ${name}`);
    const first = lines.get(name);
    if (first !== undefined) throw new ConfigError(`${place}: expected each setting once, found ${name} already in line ${first}`);
    lines.set(name, index + 1);
  }
  return parseEnv(text) as Variables;
};

/** Fits the arena into the memory limit: reduces a default size, or throws ConfigError for an explicit size that does not fit. */
const fitArena = ({ arenaMib, workers, maxJsonMib }: Config, isExplicit: boolean, { memoryLimit }: Machine): number => {
  if (memoryLimit === undefined) return arenaMib;
  const limit = Math.floor(memoryLimit / MIB);
  const others = NODE_MIB + WORKER_MIB * workers + JSON_MEMORY_FACTOR * maxJsonMib;
  const room = limit - others;
  if (arenaMib <= room) return arenaMib;
  if (room >= 1 && !isExplicit) return room;
  const parts = `${NODE_MIB} for Node.js, ${WORKER_MIB} for each of ${workers} workers, ${JSON_MEMORY_FACTOR} times STEPD_MAX_JSON_MIB=${maxJsonMib}`;
  const found = isExplicit ? `STEPD_ARENA_MIB=${arenaMib}` : "no room for STEPD_ARENA_MIB";
  throw new ConfigError(`memory limit of ${limit} MiB: expected room for ${parts} and the arena, found ${found}, where ${Math.max(room, 0)} MiB are left`);
};

/** Throws the error for an unknown setting. Compares names without their common prefix, which would make all names similar. */
const throwUnknownSetting = (unknown: string, known: readonly string[]): never => {
  const near = nearest(
    unknown.slice(PREFIX.length),
    known.map((name) => name.slice(PREFIX.length)),
  );
  throw new ConfigError(
    `${unknown}: expected a setting that --help lists${near === undefined ? "" : ` (the nearest is ${PREFIX}${near})`}, found an unknown name`,
  );
};

const requireTlsComplete = ({ tlsCertFile, tlsKeyFile, tlsClientCaFile }: Config): void => {
  if (tlsCertFile !== "" && tlsKeyFile === "") throw new ConfigError("STEPD_TLS_KEY_FILE: expected the key of STEPD_TLS_CERT_FILE, found none");
  if (tlsKeyFile !== "" && tlsCertFile === "") throw new ConfigError("STEPD_TLS_CERT_FILE: expected the certificate of STEPD_TLS_KEY_FILE, found none");
  if (tlsClientCaFile !== "" && tlsCertFile === "")
    throw new ConfigError("STEPD_TLS_CERT_FILE: expected a certificate beside STEPD_TLS_CLIENT_CA_FILE, found none");
};

/** Returns warnings about environment variables that have no effect on the server. */
export const warningsFor = (env: Variables, { tokensFile }: Config): readonly string[] =>
  env["STEPD_TOKEN"] && tokensFile === ""
    ? ["STEPD_TOKEN is a setting of clients: calls to this server need no token, because STEPD_TOKENS_FILE names no file of tokens"]
    : [];

/** Returns the settings by variable name, for the log. They contain no secrets, only the paths of files with secrets. */
export const namedSettings = (config: Config): Readonly<Record<string, unknown>> =>
  Object.fromEntries(Object.entries(settings).map(([key, { name }]) => [name, config[key as keyof Config]]));

export const helpText = (): string => {
  const lines = Object.values(settings).map(({ name, help, initial }) => `  ${name.padEnd(26)} ${help}${initial === "" ? "" : ` (${initial})`}`);
  return [
    "stepd: a stateless optimizer service",
    "",
    "Usage: npm start [-- --help | --version | --check | settings as options, such as --port 8081]",
    "",
    "Environment (defaults in brackets). Each variable is also an option, which overrides it:",
    ...lines,
    "",
  ].join("\n");
};
