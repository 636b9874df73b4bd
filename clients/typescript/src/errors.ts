/** Errors of a call. `name` is the error's class; `code` is the server's stable name of the error. */

import type { ErrorName } from "./errors.gen.ts";
import type { ErrorData } from "./wire.gen.ts";

/** After one of these HTTP statuses a retry may succeed, on this server or on another. */
const RETRYABLE_STATUSES = [408, 429, 502, 503, 504];

/** The server refused the call or failed during it. The call changed nothing. */
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
  /** Seconds to wait before a retry. */
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
    return RETRYABLE_STATUSES.includes(this.status);
  }
}

interface TransportErrorOptions {
  readonly cause?: unknown;
  readonly status?: number;
  readonly retryAfter?: number | undefined;
  readonly isRefused?: boolean;
}

/** The server was unreachable, or the reply did not come from stepd. */
export class TransportError extends Error {
  override readonly name = "TransportError";
  /** The HTTP status, if there was a reply. */
  readonly status: number | undefined;
  /** Seconds to wait before a retry, as the proxy that replied asks. */
  readonly retryAfter: number | undefined;
  /** True if the connection was refused. Always false in browsers, which do not report refused connections. */
  readonly isRefused: boolean;

  constructor(message: string, { cause, status, retryAfter, isRefused = false }: TransportErrorOptions = {}) {
    super(message, { cause });
    this.status = status;
    this.retryAfter = retryAfter;
    this.isRefused = isRefused;
  }

  get isPassing(): boolean {
    return this.status === undefined || RETRYABLE_STATUSES.includes(this.status);
  }
}
