/** JSON-RPC 2.0 over decoded values: single calls, batches, notifications. The encoding and the transport are elsewhere. */
import { setImmediate } from "node:timers/promises";
import { asStepdError, describe as describeValue, type ErrorName, errors, StepdError } from "../errors/errors.ts";
import { nearest } from "../errors/nearest.ts";
import { validate } from "../validation/validate.ts";
import { integersOf } from "./_integers.ts";
import { convert } from "./convert.ts";
import { describe } from "./describe.ts";
import { openApi, openRpc } from "./discover.ts";
import { evaluate } from "./evaluate.ts";
import { init } from "./init.ts";
import { inspect } from "./inspect.ts";
import { list } from "./list.ts";
import type { Context, Method, Waits } from "./method.ts";
import { norms } from "./norms.ts";
import { plan } from "./plan.ts";
import { step } from "./step.ts";

export type { Context, Method } from "./method.ts";

const MAX_BATCH = 100;

/** Refusals that keep their HTTP status, because proxies and clients act on it. */
const TRANSPORT: readonly ErrorName[] = ["OVERLOADED", "PAYLOAD_TOO_LARGE", "DRAINING", "WORKER_LOST"];

/** A number that the codec writes as it came is a Number object. */
type Id = string | number | bigint | InstanceType<typeof Number> | null;

const [LEAST_INTEGER, MOST_INTEGER] = [-(2n ** 63n), 2n ** 64n - 1n];

/** Whether an id can go out in both formats as it came in. */
const isId = (id: unknown): id is Id => {
  if (typeof id === "bigint") return id >= LEAST_INTEGER && id <= MOST_INTEGER;
  if (typeof id === "number" || id instanceof Number) return Number.isFinite(Number(id));
  return typeof id === "string" || id === null;
};

/** What a call came to, for metrics and logs: a method's name (or "unknown") and an error's name or "ok". */
export type Observer = (method: string, outcome: ErrorName | "ok", error?: unknown) => void;

export interface RpcReply {
  readonly status: number;
  /** Undefined where nothing but notifications came. */
  readonly value: unknown;
  readonly retryAfter: number | undefined;
}

export class Rpc {
  readonly methods: readonly Method[];
  readonly openRpc: unknown;
  readonly openApi: unknown;
  readonly #byName: ReadonlyMap<string, Method>;
  readonly #integers: ReadonlyMap<string, ReturnType<typeof integersOf>>;
  /** The methods whose schema words have passed. */
  readonly #passed = new WeakMap<object, Method>();

  constructor(version: string) {
    const discover: Method = {
      name: "rpc.discover",
      summary: "The OpenRPC document of this server",
      params: "discover.schema.json",
      result: "discover-result.schema.json",
      rest: { verb: "GET", path: "/openrpc.json" },
      handle: () => this.openRpc,
    };
    this.methods = [
      step as Method,
      init as Method,
      norms as Method,
      plan as Method,
      list,
      describe as Method,
      inspect as Method,
      convert as Method,
      evaluate as Method,
      discover,
    ];
    this.#byName = new Map(this.methods.map((method) => [method.name, method]));
    this.#integers = new Map(this.methods.map(({ name, result }) => [name, integersOf(result)]));
    this.openRpc = openRpc(this.methods, version);
    this.openApi = openApi(this.methods, version);
  }

  /** Calls one method. Throws StepdError. */
  async call(name: string, params: unknown, context: Omit<Context, "waits">, observe: Observer): Promise<unknown> {
    const method = this.#byName.get(name);
    const start = performance.now();
    const waits: Waits = { seconds: 0 };
    const transferred = context.blobs.seconds;
    try {
      if (!method) {
        const near = nearest(name, [...this.#byName.keys()]);
        const hint = near === undefined ? "" : ` (the nearest is ${near})`;
        throw new StepdError("METHOD_NOT_FOUND", `/method: there is no method ${describeValue(name)}${hint}; rpc.discover lists them`, {
          field: "/method",
          found: name,
        });
      }
      if (Array.isArray(params)) throw StepdError.mismatch("INVALID_PARAMS", "", "parameters by name", describeValue(params));
      this.#validate(method, params, context.words);
      const result = await method.handle(params as never, { ...context, waits });
      observe(method.name, "ok");
      return result;
    } catch (error) {
      observe(method?.name ?? "unknown", asStepdError(error).code, error);
      throw asStepdError(error);
    } finally {
      if (method) context.telemetry.ran((performance.now() - start) / 1000, waits.seconds, context.blobs.seconds - transferred);
    }
  }

  #validate(method: Method, params: unknown, words: object | undefined): void {
    if (words && this.#passed.get(words) === method) return;
    validate(method.params, params);
    if (words) this.#passed.set(words, method);
  }

  /** A result as it goes out. */
  wire(name: string, result: unknown): unknown {
    return this.#integers.get(name)?.(result) ?? result;
  }

  /** Answers a decoded body. */
  async handle(body: unknown, context: Omit<Context, "waits">, requestId: string, observe: Observer): Promise<RpcReply> {
    if (!Array.isArray(body)) {
      const { value, error } = await this.#answer(body, context, requestId, observe);
      const status = error && TRANSPORT.includes(error.code) ? errors[error.code].status : 200;
      return { status: value === undefined ? 204 : status, value, retryAfter: error?.detail.retry_after };
    }
    if (body.length === 0 || body.length > MAX_BATCH) {
      const error = StepdError.mismatch("INVALID_REQUEST", "", `a batch of 1 to ${MAX_BATCH} calls`, `${body.length}`);
      observe("unknown", error.code, error);
      return { status: 200, value: errorReply(null, error, requestId), retryAfter: undefined };
    }
    // One after the other: they share the lease, and a batch is no way to take more of the pool than others.
    const values: unknown[] = [];
    // The words are those of all calls together.
    const one = { ...context, words: undefined };
    for (const item of body) {
      // Small calls run on this thread; others have their turn between them.
      if (item !== body[0]) await setImmediate();
      const { value } = await this.#answer(item, one, requestId, observe);
      if (value !== undefined) values.push(value);
    }
    return values.length === 0 ? { status: 204, value: undefined, retryAfter: undefined } : { status: 200, value: values, retryAfter: undefined };
  }

  async #answer(item: unknown, context: Omit<Context, "waits">, requestId: string, observe: Observer): Promise<{ value: unknown; error?: StepdError }> {
    let call: Call;
    try {
      call = readCall(item);
    } catch (error) {
      observe("unknown", asStepdError(error).code, error);
      return { value: errorReply(null, asStepdError(error), requestId) };
    }
    const isNotification = call.id === undefined;
    try {
      const result = this.wire(call.method, await this.call(call.method, call.params, context, observe));
      return { value: isNotification ? undefined : { jsonrpc: "2.0", result, id: call.id } };
    } catch (error) {
      const known = asStepdError(error);
      return { value: isNotification ? undefined : errorReply(call.id ?? null, known, requestId), error: known };
    }
  }
}

interface Call {
  readonly method: string;
  readonly params: unknown;
  /** Undefined makes it a notification; null does not. */
  readonly id: Id | undefined;
}

const MEMBERS = ["jsonrpc", "method", "params", "id"];

/** Reads a request object. Throws INVALID_REQUEST. */
const readCall = (item: unknown): Call => {
  const invalid = (field: string, expected: string, found: unknown): StepdError =>
    StepdError.mismatch("INVALID_REQUEST", field, expected, found === undefined ? "none" : describeValue(found));
  if (typeof item !== "object" || item === null || Array.isArray(item) || item instanceof Uint8Array) throw invalid("", "a JSON-RPC request object", item);
  const { jsonrpc, method, params, id } = item as Record<string, unknown>;
  const unknown = Object.keys(item).find((key) => !MEMBERS.includes(key));
  if (unknown !== undefined) throw invalid(`/${unknown}`, `one of ${MEMBERS.join(", ")}`, unknown);
  if (jsonrpc !== "2.0") throw invalid("/jsonrpc", '"2.0"', jsonrpc);
  if (typeof method !== "string") throw invalid("/method", "a string", method);
  if (params !== undefined && (typeof params !== "object" || params instanceof Uint8Array)) throw invalid("/params", "an object", params);
  if (id !== undefined && !isId(id)) throw invalid("/id", "a string, an integer of 64 bits, another finite number or null", id);
  return { method, params: byName(params), id };
};

/** Clients that send all parameters by position say "none" with [] or null, and parameters by name as the only one. */
const byName = (params: unknown): unknown => {
  if (!Array.isArray(params)) return params ?? {};
  if (params.length === 0) return {};
  const [only] = params;
  return params.length === 1 && typeof only === "object" && only !== null && !Array.isArray(only) && !(only instanceof Uint8Array) ? only : params;
};

/** The error object of a reply. Also what transport refusals on /rpc carry. */
export const errorReply = (id: Id, error: StepdError, requestId: string): unknown => ({
  jsonrpc: "2.0",
  error: { code: errors[error.code].code, message: error.message, data: { name: error.code, ...error.detail, request_id: requestId } },
  id,
});
