/**
 * This table lists all errors that a caller can receive, with JSON-RPC code, HTTP status and title. The documentation and the clients are
 * generated from it, and a test counts its entries.
 */
export const errors = {
  PARSE_ERROR: { code: -32700, status: 400, title: "The body is not well-formed" },
  INVALID_REQUEST: { code: -32600, status: 400, title: "The body is not a JSON-RPC 2.0 request" },
  METHOD_NOT_FOUND: { code: -32601, status: 404, title: "There is no such method" },
  INVALID_PARAMS: { code: -32602, status: 400, title: "The parameters are not valid" },
  INTERNAL_ERROR: { code: -32603, status: 500, title: "The server failed" },
  UNSUPPORTED_DTYPE: { code: -32010, status: 422, title: "A tensor has a dtype that is not supported here" },
  TENSOR_MISMATCH: { code: -32011, status: 422, title: "Tensors that belong together do not match" },
  TENSORS_CORRUPT: { code: -32012, status: 422, title: "A tensors blob is not a valid safetensors file" },
  STATE_MISMATCH: { code: -32013, status: 422, title: "The state does not fit the optimizer or the parameters" },
  STATE_CORRUPT: { code: -32014, status: 422, title: "The state is not a valid stepd state" },
  NON_FINITE_GRADIENT: { code: -32015, status: 422, title: "A gradient holds NaN or infinity" },
  BLOB_MISSING: { code: -32016, status: 404, title: "The cache has no blob of this handle" },
  OVERLOADED: { code: -32020, status: 429, title: "The server has no room for this call now" },
  DRAINING: { code: -32021, status: 503, title: "The server is shutting down" },
  PAYLOAD_TOO_LARGE: { code: -32022, status: 413, title: "The call is larger than this server takes" },
  UNSUPPORTED_MEDIA_TYPE: { code: -32023, status: 415, title: "The media type or encoding is not supported" },
  NOT_ACCEPTABLE: { code: -32024, status: 406, title: "No media type that the caller accepts is available" },
  UNAUTHENTICATED: { code: -32025, status: 401, title: "The call is not authenticated" },
  NOT_FOUND: { code: -32026, status: 404, title: "There is nothing at this address" },
  METHOD_NOT_ALLOWED: { code: -32027, status: 405, title: "The address does not take this HTTP method" },
  WORKER_LOST: { code: -32029, status: 503, title: "The server lost a worker in this call" },
  SLOW_BODY: { code: -32030, status: 408, title: "The body came too slowly for the memory that it holds" },
  DIGEST_MISMATCH: { code: -32028, status: 400, title: "The body does not have the digest that its header says" },
} as const satisfies Record<string, { readonly code: number; readonly status: number; readonly title: string }>;

export type ErrorName = keyof typeof errors;

/** The details of an error. `field` is a JSON pointer into the parameters. */
export interface ErrorDetail {
  readonly field?: string | undefined;
  readonly expected?: string | undefined;
  readonly found?: string | undefined;
  /** The call may succeed after this many seconds. */
  readonly retry_after?: number | undefined;
  /** Whose limit refused the call: `server` is full, or it is full and the caller holds the largest `share` of it, or a limit of the `caller`. */
  readonly limit?: "server" | "share" | "caller" | undefined;
  /** The names of the first few affected tensors. */
  readonly tensors?: readonly string[] | undefined;
}

/** Each part of an error has at most this many characters, because it may quote a caller's text of any length. */
const MAX_PART_LENGTH = 1000;

const truncate = (text: string, maxLength = MAX_PART_LENGTH): string => (text.length > maxLength ? `${text.slice(0, maxLength - 3)}...`.toWellFormed() : text);

/** An error that the caller receives. Its message is one sentence with the field, the expected and the found value. */
export class StepdError extends Error {
  override readonly name = "StepdError";
  readonly code: ErrorName;
  readonly detail: ErrorDetail;

  constructor(code: ErrorName, message: string, detail: ErrorDetail = {}) {
    super(truncate(message, 4 * MAX_PART_LENGTH));
    this.code = code;
    this.detail = detail.found === undefined ? detail : { ...detail, found: truncate(detail.found) };
  }

  /** Creates an error for an unexpected value at `field`. */
  static mismatch(code: ErrorName, field: string, expected: string, found: string, tensors?: readonly string[]): StepdError {
    const [at, wanted, given] = [truncate(field), truncate(expected), truncate(found)];
    return new StepdError(code, `${at || "the body"}: expected ${wanted}, found ${given}`, {
      field: at,
      expected: wanted,
      found: given,
      // `map(truncate)` would be wrong: map also passes the index, which truncate would take as the length limit.
      tensors: tensors?.map((name) => truncate(name)),
    });
  }
}

/** Converts an exception to the error that the caller receives. An unexpected one becomes INTERNAL_ERROR, without its stack or message. */
export const asStepdError = (error: unknown): StepdError =>
  error instanceof StepdError ? error : new StepdError("INTERNAL_ERROR", "The server failed; its log has the cause under this request's id");

/** Escapes a name as one segment of a JSON pointer (RFC 6901). */
export const pointerEscape = (name: string): string => name.replaceAll("~", "~0").replaceAll("/", "~1");

/** Describes a value briefly, as the "found" part of an error. */
export const describe = (value: unknown): string => {
  if (value === null) return "null";
  if (value instanceof Uint8Array) return `${value.length} bytes`;
  if (Array.isArray(value)) return `an array of ${value.length}`;
  if (typeof value === "object") return value instanceof Number ? String(value) : "an object";
  if (typeof value === "string") return JSON.stringify(value.length > 60 ? `${value.slice(0, 57)}...` : value);
  return String(value);
};
