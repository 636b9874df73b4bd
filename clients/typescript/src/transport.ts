/** Sends calls to one server over `fetch`, retries them, and rejects replies that are not stepd's. */
import { describeValue, requireOptions } from "./checks.ts";
import { StepdError, TransportError } from "./errors.ts";
import { decode, encodeParts } from "./msgpack.ts";
import { Backoff, isRefusal, pause, type RetryOptions, requireRetries } from "./retries.ts";
import type { ErrorData } from "./wire.gen.ts";

/** The part of `fetch` that the client uses. */
export type Fetch = (url: string, init: RequestInit) => Promise<Response>;

export interface ClientOptions extends RetryOptions {
  /** The bearer token that the client sends with each call. */
  readonly token?: string | undefined;
  /** Milliseconds for one attempt, from sending to the end of the reply. Infinity means no limit. */
  readonly timeoutMs?: number | undefined;
  /** A replacement for `fetch`, for instance over a Unix socket. */
  readonly fetch?: Fetch | undefined;
  /**
   * The folder that a server on this host shares (its STEPD_SHARED_DIR), as this process sees it. Calls of 64 KiB and more put
   * their tensors and states into files in the folder. With tokens, pass the subfolder with the token's name. Node only.
   */
  readonly sharedDir?: string | undefined;
  /**
   * The connections that carry the parts of a step of 4 MiB or more, so that results arrive while inputs leave. By default 2, but 1
   * to a server on this host, which has no link to wait for; with 1 each step is one call.
   */
  readonly connections?: number | undefined;
}

/** Builds a result from a decoded reply. */
export type Read<Result> = (reply: unknown) => Result | Promise<Result>;

/** Options of a single call. */
export interface CallOptions {
  /** Aborts the call and its retries. The call then throws the signal's reason. */
  readonly signal?: AbortSignal | undefined;
  readonly timeoutMs?: number | undefined;
}

/** The names of all client options, for requireOptions. */
export const CLIENT_OPTIONS = {
  token: true,
  timeoutMs: true,
  fetch: true,
  sharedDir: true,
  connections: true,
  retries: true,
  refusedMs: true,
  warn: true,
} as const satisfies Record<keyof ClientOptions, true>;
const CALL_OPTIONS = { signal: true, timeoutMs: true } as const satisfies Record<keyof CallOptions, true>;

const MSGPACK = "application/vnd.msgpack";
const JSON_TYPE = "application/json";

const DEFAULT_TIMEOUT_MS = 60_000;
const ROUND_TRIP_TIMEOUT_MS = 5_000;
const LARGE_BYTES = 2 ** 20;
/** An error below this status is final: the server no longer works on the call. */
const SERVER_FAULT = 500;
/** The longest delay of a timer. A timer with a longer delay would fire at once. */
const MAX_TIMER_MS = 2 ** 31 - 1;

export class Transport {
  readonly url: string;
  readonly #headers: Readonly<Record<string, string>>;
  readonly #timeoutMs: number;
  readonly #retries: RetryOptions;
  readonly #fetch: Fetch;

  /** The milliseconds of a round trip; undefined before the first measurement. */
  #roundTrip: Promise<number> | undefined;

  constructor(url: string, { token, timeoutMs = DEFAULT_TIMEOUT_MS, fetch: send, ...retries }: ClientOptions) {
    this.url = serverRoot(url);
    // The token is checked here, because fetch would put an invalid token into its error message.
    if (token !== undefined && typeof token !== "string") throw new TypeError(`token: expected a string, found ${typeof token}`);
    if (token !== undefined && !/^[\x21-\x7e]+$/.test(token)) throw new TypeError("token: expected visible ASCII characters, found others");
    requireTimeout(timeoutMs);
    if (send !== undefined && typeof send !== "function") throw new TypeError(`fetch: expected a function, found ${describeValue(send)}`);
    requireRetries(retries);
    this.#headers = { Accept: MSGPACK, ...(token !== undefined && { Authorization: `Bearer ${token}` }) };
    this.#timeoutMs = timeoutMs;
    this.#retries = retries;
    // The global fetch is read at each call, because a test or a polyfill may replace it.
    this.#fetch = send ?? ((url, init) => fetch(url, init));
  }

  /**
   * Calls a REST method: POST with `params`, GET without. `read` builds the result, and throws for an invalid reply. `onLost`
   * runs after each attempt that the server may still be working on.
   */
  async call<Result>(path: string, params: object | undefined, read: Read<Result>, options: CallOptions = {}, onLost?: () => void): Promise<Result> {
    // The body is copied before the first await, because the caller may change the arrays during the call.
    const body = params && new Blob(encodeParts(params));
    requireCallOptions(options);
    const backoff = new Backoff(this.#retries, `stepd at ${this.url}`);
    for (;;) {
      options.signal?.throwIfAborted();
      try {
        return await this.#send(path, body, read, options);
      } catch (error) {
        if (!(error instanceof StepdError && error.status < SERVER_FAULT)) onLost?.();
        const isPassing = (error instanceof TransportError || error instanceof StepdError) && error.isPassing;
        const wait = isPassing ? backoff.delayAfter(error) : undefined;
        if (wait === undefined) throw error;
        await pause(wait, options.signal);
      }
    }
  }

  /** Returns whether a GET succeeds. Asks once, without retries. */
  async isOk(path: string, options: CallOptions): Promise<boolean> {
    requireCallOptions(options);
    const { signal, timeoutMs = this.#timeoutMs } = options;
    const limits = signalOf(timeoutMs, signal);
    try {
      const response = await this.#fetch(`${this.url}${path}`, { headers: this.#headers, ...limits });
      await response.arrayBuffer();
      return response.ok;
    } catch {
      signal?.throwIfAborted();
      return false;
    }
  }

  /** Whether the server is on this host. */
  get isLocal(): boolean {
    const { hostname } = new URL(this.url);
    return hostname === "localhost" || hostname === "[::1]" || /^127\.\d+\.\d+\.\d+$/.test(hostname);
  }

  /** Returns the milliseconds of a round trip, which the first call measures on an open connection; 0 if the server does not answer. */
  roundTrip(): Promise<number> {
    const measure = async (): Promise<number> => {
      const start = performance.now();
      return (await this.isOk("/health/ready", { timeoutMs: ROUND_TRIP_TIMEOUT_MS })) ? performance.now() - start : 0;
    };
    this.#roundTrip ??= measure();
    return this.#roundTrip;
  }

  async #send<Result>(path: string, body: Blob | undefined, read: Read<Result>, { signal, timeoutMs = this.#timeoutMs }: CallOptions): Promise<Result> {
    const limits = signalOf(timeoutMs, signal);
    let response: Response;
    let bytes: Uint8Array<ArrayBuffer>;
    try {
      response = await this.#fetch(`${this.url}${path}`, {
        method: body ? "POST" : "GET",
        headers: { ...this.#headers, ...(body && { "Content-Type": MSGPACK }) },
        ...(body && { body }),
        ...limits,
      });
      bytes = await readBody(response);
    } catch (cause) {
      signal?.throwIfAborted();
      if (limits.signal?.aborted) throw new TransportError(`${this.url}${path}: no whole reply within ${timeoutMs} ms`, { cause });
      throw new TransportError(`${this.url}${path} was not reached: ${reasonOf(cause)}`, { cause, isRefused: isRefusal(cause) });
    }
    if (!response.ok) throw this.#problem(path, response, bytes);
    try {
      return await read(decodeAs(response.headers.get("content-type") ?? "none", bytes));
    } catch (cause) {
      throw new TransportError(`${this.url}${path}: the reply is none of stepd: ${reasonOf(cause)}`, { cause, status: response.status });
    }
  }

  /** Returns the error in a problem body (RFC 9457), or a TransportError if the reply came from a proxy. */
  #problem(path: string, response: Response, bytes: Uint8Array): Error {
    const { status } = response;
    const retryAfter = secondsOf(response.headers.get("retry-after"));
    try {
      const isMsgpack = response.headers.get("content-type")?.startsWith(MSGPACK);
      const body: unknown = isMsgpack ? decode(bytes) : JSON.parse(new TextDecoder().decode(bytes));
      const { detail, code, ...data } = body as Partial<ErrorData> & { detail?: unknown; code?: unknown };
      if (typeof detail === "string" && typeof code === "number" && typeof data.name === "string")
        return new StepdError(detail, code, status, { ...(data as ErrorData), retry_after: secondsOf(data.retry_after) ?? retryAfter });
    } catch {
      // A body that cannot be read as a problem is not stepd's.
    }
    return new TransportError(`${this.url}${path}: HTTP ${status}, and the reply is none of stepd`, { status, retryAfter });
  }
}

/** The three forms of an HTTP date (RFC 9110, 5.6.7). The last form has no time zone, and means GMT as well. */
const HTTP_DATES = [
  /^[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT$/,
  /^[A-Z][a-z]+day, \d\d-[A-Z][a-z]{2}-\d\d \d\d:\d\d:\d\d GMT$/,
  /^[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}$/,
];

/** Returns the seconds of a Retry-After header, a number or a date; undefined for any other text. */
const secondsOf = (asked: unknown): number | undefined => {
  const text = String(asked).trim();
  const isDate = HTTP_DATES.some((form) => form.test(text));
  if (!isDate && !/^\d+(\.\d+)?$/.test(text)) return undefined;
  const seconds = isDate ? (Date.parse(text.endsWith("GMT") ? text : `${text} GMT`) - Date.now()) / 1000 : Number(text);
  return Number.isFinite(seconds) ? Math.max(seconds, 0) : undefined;
};

/** Returns the server's root without a trailing slash. Throws TypeError for an invalid URL. */
const serverRoot = (url: string): string => {
  const { protocol, origin, pathname, search, hash, username, password } = URL.canParse(url) ? new URL(url) : ({} as Partial<URL>);
  if (!(protocol === "http:" || protocol === "https:") || search || hash || username || password) {
    // A URL with an @ may hold a password, even if the URL is malformed, so the error does not repeat the URL.
    const found = String(url).includes("@") ? "one with user information, which belongs into the option token" : JSON.stringify(url);
    throw new TypeError(`url: expected the server's root, such as http://127.0.0.1:8080, found ${found}`);
  }
  return `${origin}${pathname?.replace(/\/+$/, "")}`;
};

/**
 * Reads a body into one array. Large bodies are read in chunks: arrayBuffer() would need twice the memory and 25 % more time
 * (measured, 192 MiB).
 */
const readBody = async (response: Response): Promise<Uint8Array<ArrayBuffer>> => {
  const length = Number(response.headers.get("content-length"));
  if (!response.body || !(length >= LARGE_BYTES) || response.headers.has("content-encoding")) return new Uint8Array(await response.arrayBuffer());
  const bytes = new Uint8Array(length);
  const reader = response.body.getReader();
  let at = 0;
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
    bytes.set(piece.value, at);
    at += piece.value.length;
  }
  if (at < length) throw new RangeError(`the reply ended after ${at} of ${length} bytes`);
  return bytes;
};

const decodeAs = (type: string, bytes: Uint8Array<ArrayBuffer>): unknown => {
  if (type.startsWith(MSGPACK)) return decode(bytes);
  if (type.startsWith(JSON_TYPE)) return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  throw new RangeError(`Content-Type: expected ${MSGPACK}, found ${type}`);
};

/** Returns an error's message with its cause's message, because fetch alone reports only "fetch failed". */
const reasonOf = (error: unknown): string => {
  if (!(error instanceof Error)) return String(error);
  return error.cause instanceof Error && error.cause.message !== "" ? `${error.message}: ${error.cause.message}` : error.message;
};

/** Returns the signal of one attempt, which combines the caller's signal and the timeout. */
const signalOf = (timeoutMs: number, caller: AbortSignal | undefined): { readonly signal?: AbortSignal } => {
  requireTimeout(timeoutMs);
  const signals = caller ? [caller] : [];
  if (timeoutMs <= MAX_TIMER_MS) signals.push(AbortSignal.timeout(Math.ceil(timeoutMs)));
  return signals.length > 0 ? { signal: AbortSignal.any(signals) } : {};
};

/** Throws TypeError for invalid options of a call. */
export const requireCallOptions = (options: CallOptions): void => {
  requireOptions(options, CALL_OPTIONS);
  const { signal } = options;
  if (signal !== undefined && typeof (signal as Partial<AbortSignal> | null)?.throwIfAborted !== "function")
    throw new TypeError(`signal: expected an AbortSignal, found ${describeValue(signal)}`);
};

export const requireConnections = (connections: number): void => {
  if (!(Number.isInteger(connections) && connections >= 1))
    throw new TypeError(`connections: expected a whole number of at least 1, found ${String(connections)}`);
};

const requireTimeout = (timeoutMs: number): void => {
  if (!(typeof timeoutMs === "number" && timeoutMs > 0)) throw new TypeError(`timeoutMs: expected milliseconds, a number above 0, found ${String(timeoutMs)}`);
};
