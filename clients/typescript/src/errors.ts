/** What a call can fail with. Tell them apart by `name` (the class) and, of the server's, by `code` (its stable name). */

import type { ErrorName } from "./errors.gen.ts";
import type { ErrorData } from "./wire.gen.ts";

/** Statuses after which the same call may succeed, here or elsewhere. */
const PASSING = [408, 429, 502, 503, 504];

/** The server refused the call or failed at it; nothing was changed. */
export class StepdError extends Error {
  override readonly name = "StepdError";
  /** The server's stable name of the error, such as STATE_MISMATCH. */
  readonly code: ErrorName;
  /** The JSON-RPC code. */
  readonly rpcCode: number;
  /** The HTTP status. */
  readonly status: number;
  readonly field: string | undefined;
  readonly expected: string | undefined;
  readonly found: string | undefined;
  readonly tensors: readonly string[];
  readonly requestId: string | undefined;
  /** Seconds after which the call may succeed. */
  readonly retryAfter: number | undefined;

  constructor(message: string, rpcCode: number, status: number, data: ErrorData) {
    super(message);
    this.code = data.name as ErrorName;
    this.rpcCode = rpcCode;
    this.status = status;
    this.field = data.field;
    this.expected = data.expected;
    this.found = data.found;
    this.tensors = data.tensors ?? [];
    this.requestId = data.request_id;
    this.retryAfter = data.retry_after;
  }

  get isPassing(): boolean {
    return PASSING.includes(this.status);
  }
}

interface TransportErrorOptions {
  readonly cause?: unknown;
  readonly status?: number;
  readonly retryAfter?: number | undefined;
  readonly isRefused?: boolean;
}

/** The server was not reached, or what came was no reply of stepd. */
export class TransportError extends Error {
  override readonly name = "TransportError";
  /** The HTTP status, where there was a reply. */
  readonly status: number | undefined;
  /** Seconds after which a proxy wants to be asked again. */
  readonly retryAfter: number | undefined;
  /** Whether nobody listens at the address. A browser does not say. */
  readonly isRefused: boolean;

  constructor(message: string, { cause, status, retryAfter, isRefused = false }: TransportErrorOptions = {}) {
    super(message, { cause });
    this.status = status;
    this.retryAfter = retryAfter;
    this.isRefused = isRefused;
  }

  get isPassing(): boolean {
    return this.status === undefined || PASSING.includes(this.status);
  }
}
