/** One server over `fetch`: sends a call, again where that may help, and tells what is a reply of stepd from what is not. */
import { found, requireOptions } from "./checks.ts";
import { StepdError, TransportError } from "./errors.ts";
import { decode, encodeParts } from "./msgpack.ts";
import { isRefusal, Pauses, pause, type RetryOptions, requireRetries } from "./pauses.ts";
import type { ErrorData } from "./wire.gen.ts";

/** What is used of `fetch`. */
export type Fetch = (url: string, init: RequestInit) => Promise<Response>;

export interface ClientOptions extends RetryOptions {
  /** Bearer token. */
  readonly token?: string | undefined;
  /** Milliseconds for one attempt of a call with its reply; Infinity for no limit. */
  readonly timeoutMs?: number | undefined;
  /** A fetch of one's own, for instance one that uses a Unix socket. */
  readonly fetch?: Fetch | undefined;
  /**
   * A folder that a server on this host shares (its STEPD_SHARED_DIR), as this process sees it: tensors and states of 64 KiB and
   * more stand in files there instead of travelling. With tokens it is the folder of the token's name in the server's. Node only.
   */
  readonly sharedDir?: string | undefined;
}

/** Makes a result of a reply's value. */
export type Read<Result> = (reply: unknown) => Result | Promise<Result>;

/** Options of a single call. */
export interface CallOptions {
  /** Ends the call and its retries; the call then throws the signal's reason. */
  readonly signal?: AbortSignal | undefined;
  readonly timeoutMs?: number | undefined;
}

/** The names of options. */
export const CLIENT_OPTIONS = {
  token: true,
  timeoutMs: true,
  fetch: true,
  sharedDir: true,
  retries: true,
  refusedMs: true,
  warn: true,
} as const satisfies Record<keyof ClientOptions, true>;
const CALL_OPTIONS = { signal: true, timeoutMs: true } as const satisfies Record<keyof CallOptions, true>;

const MSGPACK = "application/vnd.msgpack";
const JSON_TYPE = "application/json";

const DEFAULT_TIMEOUT_MS = 60_000;
const LARGE_BYTES = 2 ** 20;
/** The first status of errors that are not the call's. */
const SERVER_FAULT = 500;
/** What a timer takes; it would fire at once beyond. */
const MAX_TIMER_MS = 2 ** 31 - 1;

export class Transport {
  readonly url: string;
  readonly #headers: Readonly<Record<string, string>>;
  readonly #timeoutMs: number;
  readonly #retries: RetryOptions;
  readonly #fetch: Fetch;

  constructor(url: string, { token, timeoutMs = DEFAULT_TIMEOUT_MS, fetch: send, ...retries }: ClientOptions) {
    this.url = rootOf(url);
    // Said here, without the token: fetch would put it into its message.
    if (token !== undefined && typeof token !== "string") throw new TypeError(`token: expected a string, found ${typeof token}`);
    if (token !== undefined && !/^[\x21-\x7e]+$/.test(token)) throw new TypeError("token: expected visible ASCII characters, found others");
    requireTimeout(timeoutMs);
    if (send !== undefined && typeof send !== "function") throw new TypeError(`fetch: expected a function, found ${found(send)}`);
    requireRetries(retries);
    this.#headers = { Accept: MSGPACK, ...(token !== undefined && { Authorization: `Bearer ${token}` }) };
    this.#timeoutMs = timeoutMs;
    this.#retries = retries;
    // Looked up at each call, because a test or a polyfill may replace the global.
    this.#fetch = send ?? ((url, init) => fetch(url, init));
  }

  /**
   * Calls a method of the REST twin: a POST where there are params. `read` makes the result, and throws for what is none. `onLost`
   * is told of each attempt after which the server may still be at work.
   */
  async call<Result>(path: string, params: object | undefined, read: Read<Result>, options: CallOptions = {}, onLost?: () => void): Promise<Result> {
    // Copied here, before anything waits: the caller may change the arrays while the call is under way.
    const body = params && new Blob(encodeParts(params));
    requireCallOptions(options);
    const pauses = new Pauses(this.#retries, `stepd at ${this.url}`);
    for (;;) {
      options.signal?.throwIfAborted();
      try {
        return await this.#send(path, body, read, options);
      } catch (error) {
        if (!(error instanceof StepdError && error.status < SERVER_FAULT)) onLost?.();
        const isPassing = (error instanceof TransportError || error instanceof StepdError) && error.isPassing;
        const wait = isPassing ? pauses.after(error) : undefined;
        if (wait === undefined) throw error;
        await pause(wait, options.signal);
      }
    }
  }

  /** Whether an address answers with a status of success. Asks once. */
  async isOk(path: string, options: CallOptions): Promise<boolean> {
    requireCallOptions(options);
    const { signal, timeoutMs = this.#timeoutMs } = options;
    const limits = limitsOf(timeoutMs, signal);
    try {
      const response = await this.#fetch(`${this.url}${path}`, { headers: this.#headers, ...limits });
      await response.arrayBuffer();
      return response.ok;
    } catch {
      signal?.throwIfAborted();
      return false;
    }
  }

  async #send<Result>(path: string, body: Blob | undefined, read: Read<Result>, { signal, timeoutMs = this.#timeoutMs }: CallOptions): Promise<Result> {
    const limits = limitsOf(timeoutMs, signal);
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

  /** The error of a problem body (RFC 9457); a proxy's own reply has none. */
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
      // Not stepd's.
    }
    return new TransportError(`${this.url}${path}: HTTP ${status}, and the reply is none of stepd`, { status, retryAfter });
  }
}

/** The three forms of an HTTP date (RFC 9110, 5.6.7). The last has no zone and means GMT as well. */
const HTTP_DATES = [
  /^[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT$/,
  /^[A-Z][a-z]+day, \d\d-[A-Z][a-z]{2}-\d\d \d\d:\d\d:\d\d GMT$/,
  /^[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}$/,
];

/** Seconds of a Retry-After, which is a number of them or a date; undefined for anything else. */
const secondsOf = (asked: unknown): number | undefined => {
  const text = String(asked).trim();
  const isDate = HTTP_DATES.some((form) => form.test(text));
  if (!isDate && !/^\d+(\.\d+)?$/.test(text)) return undefined;
  const seconds = isDate ? (Date.parse(text.endsWith("GMT") ? text : `${text} GMT`) - Date.now()) / 1000 : Number(text);
  return Number.isFinite(seconds) ? Math.max(seconds, 0) : undefined;
};

/** The root of a server, without the slash at its end. */
const rootOf = (url: string): string => {
  const { protocol, origin, pathname, search, hash, username, password } = URL.canParse(url) ? new URL(url) : ({} as Partial<URL>);
  if (!(protocol === "http:" || protocol === "https:") || search || hash || username || password) {
    // Not repeated where it may hold a password, also where it is too broken to say which part that is.
    const found = String(url).includes("@") ? "one with user information, which belongs into the option token" : JSON.stringify(url);
    throw new TypeError(`url: expected the server's root, such as http://127.0.0.1:8080, found ${found}`);
  }
  return `${origin}${pathname?.replace(/\/+$/, "")}`;
};

/** A body in one array. A large one is read into it piece by piece: arrayBuffer() would hold it twice, and takes a quarter longer (measured, 192 MiB). */
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

/** A message with that of its cause: fetch says only "fetch failed". */
const reasonOf = (error: unknown): string => {
  if (!(error instanceof Error)) return String(error);
  return error.cause instanceof Error && error.cause.message !== "" ? `${error.message}: ${error.cause.message}` : error.message;
};

/** The signal of an attempt: the caller's, and one that ends the attempt when its time is up. */
const limitsOf = (timeoutMs: number, caller: AbortSignal | undefined): { readonly signal?: AbortSignal } => {
  requireTimeout(timeoutMs);
  const signals = caller ? [caller] : [];
  if (timeoutMs <= MAX_TIMER_MS) signals.push(AbortSignal.timeout(Math.ceil(timeoutMs)));
  return signals.length > 0 ? { signal: AbortSignal.any(signals) } : {};
};

/** Throws TypeError for options of a call that are none. */
export const requireCallOptions = (options: CallOptions): void => {
  requireOptions(options, CALL_OPTIONS);
  const { signal } = options;
  if (signal !== undefined && typeof (signal as Partial<AbortSignal> | null)?.throwIfAborted !== "function")
    throw new TypeError(`signal: expected an AbortSignal, found ${found(signal)}`);
};

const requireTimeout = (timeoutMs: number): void => {
  if (!(typeof timeoutMs === "number" && timeoutMs > 0)) throw new TypeError(`timeoutMs: expected milliseconds, a number above 0, found ${String(timeoutMs)}`);
};
