/** When a call is sent again, and after which pause. */
import { type StepdError, TransportError } from "./errors.ts";

export const DEFAULT_RETRIES = 4;
export const DEFAULT_REFUSED_MS = 30_000;
const FIRST_BACKOFF_MS = 50;
const MAX_BACKOFF_MS = 5_000;
/** Asking an address at which nobody listens costs nothing, and the server may be back any moment. */
const MAX_REFUSED_BACKOFF_MS = 1_000;
/** The longest pause that a server may ask for. */
const MAX_ASKED_S = 60;

export interface RetryOptions {
  /** How often a call is sent again after 408, 429, 502, 503, 504, a lost connection or a timeout. Steps are pure: sending again is safe. */
  readonly retries?: number | undefined;
  /**
   * Milliseconds in which refused connections are tried again, as while a server starts anew; 30,000 by default. Such attempts do
   * not count as retries. 0 turns it off, as does `retries: 0`. A browser does not tell a page that a connection was refused.
   */
  readonly refusedMs?: number | undefined;
  /** Takes a sentence when an address begins to refuse connections; `console.warn` by default. */
  readonly warn?: ((sentence: string) => void) | undefined;
}

/** The pauses of one call. */
export class Pauses {
  readonly #retries: number;
  readonly #refusedMs: number;
  readonly #warn: (sentence: string) => void;
  readonly #server: string;
  #attempt = 0;
  /** Refused connections in a row, and when trying them ends. */
  #refusals = 0;
  #refusedUntil = 0;

  /** `server` is what a warning calls it. */
  constructor({ retries = DEFAULT_RETRIES, refusedMs = DEFAULT_REFUSED_MS, warn = (sentence) => console.warn(sentence) }: RetryOptions, server: string) {
    this.#retries = retries;
    this.#refusedMs = retries > 0 ? refusedMs : 0;
    this.#warn = warn;
    this.#server = server;
  }

  /** Milliseconds before the next attempt; undefined where the call is to be given up. `asked` are the seconds that a server wants. */
  after(error: StepdError | TransportError, asked = error.retryAfter): number | undefined {
    if (error instanceof TransportError && error.isRefused) return this.#whileRefused();
    this.#refusals = 0;
    if (this.#attempt >= this.#retries) return undefined;
    const own = growing(this.#attempt++, MAX_BACKOFF_MS);
    return own + (asked !== undefined && asked > 0 ? Math.min(asked, MAX_ASKED_S) * 1000 : 0);
  }

  #whileRefused(): number | undefined {
    if (this.#refusedMs <= 0) return undefined;
    const now = performance.now();
    if (this.#refusals === 0) {
      this.#refusedUntil = now + this.#refusedMs;
      this.#warn(`${this.#server} refuses connections; trying again for ${this.#refusedMs / 1000} s`);
    }
    const left = this.#refusedUntil - now;
    return left > 0 ? Math.min(growing(this.#refusals++, MAX_REFUSED_BACKOFF_MS), left) : undefined;
  }
}

/** Longer with each attempt, with jitter, so that callers that failed together do not come back together. */
const growing = (attempt: number, longest: number): number => Math.min(FIRST_BACKOFF_MS * 2 ** attempt, longest) * (0.5 + Math.random() / 2);

/** Throws TypeError for options that are none. */
export const requireRetries = ({ retries = DEFAULT_RETRIES, refusedMs = DEFAULT_REFUSED_MS, warn }: RetryOptions): void => {
  for (const [name, value] of Object.entries({ retries, refusedMs }))
    if (!(typeof value === "number" && value >= 0)) throw new TypeError(`${name}: expected a number from 0 on, found ${String(value)}`);
  if (warn !== undefined && typeof warn !== "function") throw new TypeError(`warn: expected a function, found ${String(warn)}`);
};

/** What fetch says where nobody listens at an address, or where a Unix socket has no file. */
const REFUSED = ["ECONNREFUSED", "ENOENT"];

/** Whether a failed fetch was a refused connection. Of a host with several addresses each was, and its causes are in a list. */
export const isRefusal = (error: unknown): boolean => {
  const { code, cause, errors } = (typeof error === "object" && error !== null ? error : {}) as { code?: unknown; cause?: unknown; errors?: unknown };
  if (Array.isArray(errors) && errors.length > 0) return errors.every(isRefusal);
  return REFUSED.includes(code as string) || (cause !== undefined && isRefusal(cause));
};

/** Waits. Throws the signal's reason where that comes first. */
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
