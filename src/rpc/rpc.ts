/** Implements JSON-RPC 2.0 on decoded bodies: single calls, batches and notifications. codec/ decodes the bodies, http/ transports them. */
import { setImmediate } from "node:timers/promises";
import type { Blobs } from "../blobs/blobs.ts";
import { inTurns } from "../codec/turns.ts";
import type { Engine, Lease, QueueTime } from "../engine/engine.ts";
import { asStepdError, describe as describeValue, type ErrorName, errors, StepdError } from "../errors/errors.ts";
import { nearest } from "../errors/nearest.ts";
import type { Receipts } from "../receipts/receipts.ts";
import type { Telemetry } from "../telemetry/telemetry.ts";
import { validateInTurns } from "../validation/validate.ts";
import { integersOf } from "./_integers.ts";
import { openApi, openRpc } from "./discover.ts";
import type { Method } from "./method.ts";
import { methods } from "./methods.ts";

export type { Lease } from "../engine/engine.ts";
export type { Method } from "./method.ts";

const MAX_BATCH = 100;

/** These errors also set the HTTP status of a JSON-RPC reply, because proxies and clients act on the status. */
const STATUS_ERRORS: readonly ErrorName[] = ["OVERLOADED", "PAYLOAD_TOO_LARGE", "DRAINING", "WORKER_LOST"];

/** The id of a call. The codec returns a Number object for a number whose exact spelling a plain number would lose. */
type Id = string | number | bigint | InstanceType<typeof Number> | null;

const [LEAST_INTEGER, MOST_INTEGER] = [-(2n ** 63n), 2n ** 64n - 1n];

/** True if both JSON and MessagePack can encode the id exactly. */
const isId = (id: unknown): id is Id => {
  if (typeof id === "bigint") return id >= LEAST_INTEGER && id <= MOST_INTEGER;
  if (typeof id === "number" || id instanceof Number) return Number.isFinite(Number(id));
  return typeof id === "string" || id === null;
};

/** Receives each call's outcome for metrics and logs. `method` is "unknown" if no such method exists. */
export type Observer = (method: string, outcome: ErrorName | "ok", error?: unknown) => void;

export interface RpcReply {
  readonly status: number;
  /** The reply, or for a batch the list of the values that `finish` returned. Undefined if the body has only notifications. */
  readonly value: unknown;
  readonly retryAfter: number | undefined;
}

/** The services that methods receive. */
export interface Services {
  readonly engine: Engine;
  /** Returns the blob store of a caller. `caller` is the name of the request's token. */
  blobs(caller: string | undefined): Blobs;
  readonly telemetry: Telemetry;
  readonly receipts: Receipts;
}

/** The request that a call belongs to. */
export interface Request {
  readonly lease: Lease;
  readonly caller: string | undefined;
  /** Bodies that differ only in blobs and id share this object. Undefined if the body has no template. */
  readonly template: object | undefined;
}

const methodOf: ReadonlyMap<string, Method> = new Map(methods.map((method) => [method.name, method]));

export class Rpc {
  readonly methods = methods;
  readonly openRpc: unknown;
  readonly openApi: unknown;
  readonly #integers: ReadonlyMap<string, ReturnType<typeof integersOf>>;
  readonly #services: Services;
  /** Maps a template to the method for which its bodies are valid. */
  readonly #validFor = new WeakMap<object, Method>();

  constructor(version: string, services: Services) {
    this.#services = services;
    this.#integers = new Map(methods.map(({ name, result }) => [name, integersOf(result)]));
    this.openRpc = openRpc(methods, version);
    this.openApi = openApi(methods, version);
  }

  /** Calls a method. Throws only StepdError. */
  async call(name: string, params: unknown, { lease, caller, template }: Request, observe: Observer): Promise<unknown> {
    const { engine, telemetry, receipts } = this.#services;
    const method = methodOf.get(name);
    const start = performance.now();
    const queueTime: QueueTime = { seconds: 0 };
    const blobs = this.#services.blobs(caller);
    try {
      if (!method) {
        const near = nearest(name, [...methodOf.keys()]);
        const hint = near === undefined ? "" : ` (the nearest is ${near})`;
        throw new StepdError("METHOD_NOT_FOUND", `/method: there is no method ${describeValue(name)}${hint}; rpc.discover lists them`, {
          field: "/method",
          found: name,
        });
      }
      if (Array.isArray(params)) throw StepdError.mismatch("INVALID_PARAMS", "", "parameters by name", describeValue(params));
      // Bodies of one template differ only in blobs and id, which do not influence the validation.
      if (!template || this.#validFor.get(template) !== method) await inTurns(validateInTurns(method.params, params));
      if (template) this.#validFor.set(template, method);
      const result = await method.handle(params as never, { engine, blobs, lease, telemetry, receipts, queueTime, template, openRpc: this.openRpc });
      observe(method.name, "ok");
      return result;
    } catch (error) {
      observe(method?.name ?? "unknown", asStepdError(error).code, error);
      throw asStepdError(error);
    } finally {
      if (method) telemetry.recordMethod((performance.now() - start) / 1000, queueTime.seconds, blobs.seconds);
    }
  }

  /** Converts a method's result for encoding: large integers become bigint. */
  toWire(name: string, result: unknown): unknown {
    const convert = this.#integers.get(name);
    return convert ? convert(result) : result;
  }

  /** Answers a decoded body. In a batch, `finish` consumes each reply before the next call runs, which limits the memory of replies. */
  async handle(
    body: unknown,
    request: Request,
    requestId: string,
    observe: Observer,
    finish: (value: unknown) => unknown = (value) => value,
  ): Promise<RpcReply> {
    if (!Array.isArray(body)) {
      const { value, error } = await this.#answer(body, request, requestId, observe);
      const status = error && STATUS_ERRORS.includes(error.code) ? errors[error.code].status : 200;
      return { status: value === undefined ? 204 : status, value, retryAfter: error?.detail.retry_after };
    }
    if (body.length === 0 || body.length > MAX_BATCH) {
      const error = StepdError.mismatch("INVALID_REQUEST", "", `a batch of 1 to ${MAX_BATCH} calls`, `${body.length}`);
      observe("unknown", error.code, error);
      return { status: 200, value: errorReply(null, error, requestId), retryAfter: undefined };
    }
    // A batch runs one call at a time, because its calls share a lease and must not occupy more of the pool than a single call.
    const values: unknown[] = [];
    for (const item of body) {
      // Small calls run on this thread, so the batch yields to other requests between its calls.
      if (item !== body[0]) await setImmediate();
      const { value } = await this.#answer(item, { ...request, template: undefined }, requestId, observe);
      if (value !== undefined) values.push(await finish(value));
    }
    return values.length === 0 ? { status: 204, value: undefined, retryAfter: undefined } : { status: 200, value: values, retryAfter: undefined };
  }

  async #answer(item: unknown, request: Request, requestId: string, observe: Observer): Promise<{ value: unknown; error?: StepdError }> {
    let call: Call;
    try {
      call = readCall(item);
    } catch (error) {
      observe("unknown", asStepdError(error).code, error);
      return { value: errorReply(null, asStepdError(error), requestId) };
    }
    const isNotification = call.id === undefined;
    try {
      const result = this.toWire(call.method, await this.call(call.method, call.params, request, observe));
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
  /** Undefined for a notification; null is an ordinary id. */
  readonly id: Id | undefined;
}

const CALL_MEMBERS = ["jsonrpc", "method", "params", "id"];

/** Reads a JSON-RPC request object. Throws INVALID_REQUEST. */
const readCall = (item: unknown): Call => {
  const invalid = (field: string, expected: string, found: unknown): StepdError =>
    StepdError.mismatch("INVALID_REQUEST", field, expected, found === undefined ? "none" : describeValue(found));
  if (typeof item !== "object" || item === null || Array.isArray(item) || item instanceof Uint8Array) throw invalid("", "a JSON-RPC request object", item);
  const { jsonrpc, method, params, id } = item as Record<string, unknown>;
  const unknown = Object.keys(item).find((key) => !CALL_MEMBERS.includes(key));
  if (unknown !== undefined) throw invalid(`/${unknown}`, `one of ${CALL_MEMBERS.join(", ")}`, unknown);
  if (jsonrpc !== "2.0") throw invalid("/jsonrpc", '"2.0"', jsonrpc);
  if (typeof method !== "string") throw invalid("/method", "a string", method);
  if (params !== undefined && (typeof params !== "object" || params instanceof Uint8Array)) throw invalid("/params", "an object", params);
  if (id !== undefined && !isId(id)) throw invalid("/id", "a string, an integer of 64 bits, another finite number or null", id);
  return { method, params: paramsByName(params), id };
};

/** Converts the forms that clients with positional parameters send: [] and null mean no parameters, [object] means named parameters. */
const paramsByName = (params: unknown): unknown => {
  if (!Array.isArray(params)) return params ?? {};
  if (params.length === 0) return {};
  const [only] = params;
  return params.length === 1 && typeof only === "object" && only !== null && !Array.isArray(only) && !(only instanceof Uint8Array) ? only : params;
};

/** Builds the error reply of JSON-RPC. It also serves requests to /rpc that are rejected before they are decoded. */
export const errorReply = (id: Id, error: StepdError, requestId: string): unknown => ({
  jsonrpc: "2.0",
  error: { code: errors[error.code].code, message: error.message, data: { name: error.code, ...error.detail, request_id: requestId } },
  id,
});
