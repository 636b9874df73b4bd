/** Decides whether to retry a call, and how long to wait before each retry. */
import { type StepdError, TransportError } from "./errors.ts";

export const DEFAULT_RETRIES = 4;
export const DEFAULT_REFUSED_MS = 30_000;
const FIRST_BACKOFF_MS = 50;
const MAX_BACKOFF_MS = 5_000;
/** This limit is short, because a refused attempt costs nothing and the server may be back at any moment. */
const MAX_REFUSED_BACKOFF_MS = 1_000;
/** The longest Retry-After that the client obeys. */
const MAX_RETRY_AFTER_S = 60;

export interface RetryOptions {
  /**
   * Number of retries after 408, 429, 502, 503, 504, a lost connection or a timeout. Retries are safe, because a step is a pure
   * function.
   */
  readonly retries?: number | undefined;
  /**
   * How many milliseconds the client retries while the server refuses connections, as during a restart; 30,000 by default.
   * These attempts do not count as retries. 0 or `retries: 0` turns them off. Has no effect in browsers, which do not report
   * refused connections.
   */
  readonly refusedMs?: number | undefined;
  /** Receives a warning when a server starts to refuse connections. The default is `console.warn`. */
  readonly warn?: ((sentence: string) => void) | undefined;
}

/** Counts the retries of one call, and computes the waits between them. */
export class Backoff {
  readonly #retries: number;
  readonly #refusedMs: number;
  readonly #warn: (sentence: string) => void;
  readonly #server: string;
  #attempt = 0;
  /** Refused connections in a row, and the time at which the client gives up. */
  #refusals = 0;
  #refusedUntil = 0;

  /** `server` names the server in warnings. */
  constructor({ retries = DEFAULT_RETRIES, refusedMs = DEFAULT_REFUSED_MS, warn = (sentence) => console.warn(sentence) }: RetryOptions, server: string) {
    this.#retries = retries;
    this.#refusedMs = retries > 0 ? refusedMs : 0;
    this.#warn = warn;
    this.#server = server;
  }

  /** Returns the milliseconds to wait before the next attempt; undefined means to give up. `retryAfter` is in seconds. */
  delayAfter(error: StepdError | TransportError, retryAfter = error.retryAfter): number | undefined {
    if (error instanceof TransportError && error.isRefused) return this.#refusedDelay();
    this.#refusals = 0;
    if (this.#attempt >= this.#retries) return undefined;
    const delay = exponentialDelay(this.#attempt++, MAX_BACKOFF_MS);
    return delay + (retryAfter !== undefined && retryAfter > 0 ? Math.min(retryAfter, MAX_RETRY_AFTER_S) * 1000 : 0);
  }

  #refusedDelay(): number | undefined {
    if (this.#refusedMs <= 0) return undefined;
    const now = performance.now();
    if (this.#refusals === 0) {
      this.#refusedUntil = now + this.#refusedMs;
      this.#warn(`${this.#server} refuses connections; trying again for ${this.#refusedMs / 1000} s`);
    }
    const left = this.#refusedUntil - now;
    return left > 0 ? Math.min(exponentialDelay(this.#refusals++, MAX_REFUSED_BACKOFF_MS), left) : undefined;
  }
}

/** Returns an exponential wait with jitter, so that callers that failed together do not retry together. */
const exponentialDelay = (attempt: number, longest: number): number => Math.min(FIRST_BACKOFF_MS * 2 ** attempt, longest) * (0.5 + Math.random() / 2);

/** Throws TypeError for invalid options. */
export const requireRetries = ({ retries = DEFAULT_RETRIES, refusedMs = DEFAULT_REFUSED_MS, warn }: RetryOptions): void => {
  for (const [name, value] of Object.entries({ retries, refusedMs }))
    if (!(typeof value === "number" && value >= 0)) throw new TypeError(`${name}: expected a number from 0 on, found ${String(value)}`);
  if (warn !== undefined && typeof warn !== "function") throw new TypeError(`warn: expected a function, found ${String(warn)}`);
};

/** Error codes of a refused connection, and of a Unix socket whose file is missing. */
const REFUSED_CODES = ["ECONNREFUSED", "ENOENT"];

/**
 * Returns whether a fetch failed because the connection was refused. If a host has several addresses, all of them must have
 * refused.
 */
export const isRefusal = (error: unknown): boolean => {
  const { code, cause, errors } = (typeof error === "object" && error !== null ? error : {}) as { code?: unknown; cause?: unknown; errors?: unknown };
  if (Array.isArray(errors) && errors.length > 0) return errors.every(isRefusal);
  return REFUSED_CODES.includes(code as string) || (cause !== undefined && isRefusal(cause));
};

/** Resolves after `ms`. Rejects with the signal's reason if the signal aborts first. */
export const pause = (ms: number, signal: AbortSignal | undefined): Promise<void> =>
  new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const stop = (): void => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, ms);
    signal?.addEventListener("abort", stop, { once: true });
  });
