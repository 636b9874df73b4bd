/** Code that all hostile tests share: one real service, calls in every encoding, and the form that every refusal must have. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { JSON_TYPE, MSGPACK, pack, readReply, TestService, unpack } from "../support/service.ts";
import { readState, readTensors, type TestTensors, writeState, writeTensors } from "../support/tensors.ts";

/** The code and the HTTP status of each error. This copy is deliberate: callers rely on the values. */
export const ERRORS = {
  PARSE_ERROR: [-32700, 400],
  INVALID_REQUEST: [-32600, 400],
  METHOD_NOT_FOUND: [-32601, 404],
  INVALID_PARAMS: [-32602, 400],
  UNSUPPORTED_DTYPE: [-32010, 422],
  TENSOR_MISMATCH: [-32011, 422],
  TENSORS_CORRUPT: [-32012, 422],
  STATE_MISMATCH: [-32013, 422],
  STATE_CORRUPT: [-32014, 422],
  NON_FINITE_GRADIENT: [-32015, 422],
  PAYLOAD_TOO_LARGE: [-32022, 413],
  UNSUPPORTED_MEDIA_TYPE: [-32023, 415],
  NOT_ACCEPTABLE: [-32024, 406],
  NOT_FOUND: [-32026, 404],
  METHOD_NOT_ALLOWED: [-32027, 405],
  DIGEST_MISMATCH: [-32028, 400],
} as const;

export type Name = keyof typeof ERRORS;

/** The refusal that a test expects. */
export interface Expected {
  readonly error: Name;
  /** The field at fault. Undefined if the whole body is wrong. */
  readonly field?: string;
  /** A pattern that the message must match. */
  readonly pattern?: RegExp;
}

interface Refusal {
  readonly code: number;
  readonly message: string;
  readonly name: string;
  readonly field?: string;
  readonly request_id: string;
}

let started: TestService | undefined;

/** Returns the service of the current test file. */
export const service = (): TestService => started as TestService;

/** Starts a service before the tests of this file, and stops it after them. */
export const useService = (env: Readonly<Record<string, string>> = {}): void => {
  before(async () => {
    started = await TestService.start({ STEPD_ARENA_MIB: "64", ...env });
  });
  after(async () => {
    await service()[Symbol.asyncDispose]();
  });
};

/** Adds a final test: the arena is empty, no call is in progress, and the next step is right. */
export const checkNothingIsLeft = (): void => {
  test("after all refusals the arena is empty, nothing is in flight, the next step is right, and no label has a caller's text", async () => {
    assert.equal(await service().metric("stepd_arena_used_bytes"), 0);
    assert.equal(await service().metric("stepd_in_flight_requests"), 0);
    assert.equal(await service().metric("stepd_in_flight_bytes"), 0);
    assert.equal(await service().metric("stepd_workers_lost_total"), 0);
    const result = await service().call<{ params: Uint8Array; state: Uint8Array }>("optimizer.step", {
      optimizer: { name: "sgd", lr: 0.5, momentum: 0.5 },
      params: writeTensors({ w: { shape: [2], data: Float32Array.of(1, 2) } }),
      grads: writeTensors({ w: { shape: [2], data: Float32Array.of(1, -1) } }),
    });
    assert.deepEqual(readTensors(result.params), { w: { shape: [2], data: Float32Array.of(0.5, 2.5) } });
    assert.deepEqual(readState(result.state).slots, { momentum_buffer: { w: { shape: [2], data: Float32Array.of(1, -1) } } });
    const text = await (await fetch(`${service().url}/metrics`)).text();
    for (const [, name, value] of text.matchAll(/^stepd_[^{]*\{(?:.*?,)?(\w+)="([^"]*)"/gm)) assert.match(`${name} ${value}`, LABELS);
    assert.doesNotMatch(text, new RegExp(CALLER_TEXT));
    assert.doesNotMatch(service().log.join(""), /INTERNAL_ERROR|a call failed|a request failed/);
  });
};

/** Part of names that callers choose. This text must not appear in a metric. */
export const CALLER_TEXT = "hostile_mark";

const LABELS =
  /^(?:method (?:unknown|batch|optimizer\.\w+|state\.\w+|schedule\.\w+|rpc\.discover)|outcome (?:ok|[A-Z_]+)|phase \w+|direction (?:in|out)|file (?:certificate|client_ca)|result (?:hit|miss)|optimizer [a-z]+|dtype [A-Z0-9]+|reason [A-Z_]+|version [\d.]+|node v[\d.]+|limit (?:server|share|caller)|le [\d.+Inf]+)$/;

export const TENSORS: TestTensors = {
  w: { shape: [2, 2], data: Float32Array.of(1, 2, 3, 4) },
  b: { shape: [2], data: Float32Array.of(5, 6) },
};

const zeros: TestTensors = Object.fromEntries(Object.entries(TENSORS).map(([name, { shape, data }]) => [name, { shape, data: new Float32Array(data.length) }]));

/** A valid state of Adam after three steps. */
export const STATE = { optimizer: "adam", steps: { w: 3, b: 3 }, slots: { exp_avg: zeros, exp_avg_sq: zeros } };

export type Fields = Readonly<Record<string, unknown>>;

/** Returns the parameters of a valid step with `fields` replaced. An undefined value removes its field. */
export const step = (fields: Fields = {}): Fields => {
  const all = { optimizer: { name: "adam" }, params: writeTensors(TENSORS), grads: writeTensors(TENSORS), state: writeState(STATE), ...fields };
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined));
};

/** Encodes a value as JSON, with bytes as base64. */
export const toJson = (value: unknown): string =>
  JSON.stringify(value, function (this: Record<string, unknown>, key, item) {
    // The value comes from its parent object, because Buffer's toJSON has already replaced `item`.
    const held = this[key];
    return held instanceof Uint8Array ? Buffer.from(held).toString("base64") : item;
  });

const PATHS: Readonly<Record<string, string>> = {
  "optimizer.step": "/v1/step",
  "optimizer.init": "/v1/init",
  "optimizer.norms": "/v1/norms",
  "optimizer.reduce": "/v1/reduce",
  "state.inspect": "/v1/state/inspect",
};

/** Returns the error in a reply of JSON-RPC or REST. */
const refusalOf = (text: unknown): Refusal => {
  if (String((text as { type?: unknown }).type).startsWith("urn:stepd:error:")) {
    const { detail, ...rest } = text as Omit<Refusal, "message"> & { detail: string };
    return { ...rest, message: detail };
  }
  const { error, result } = text as { error?: { code: number; message: string; data: Omit<Refusal, "code" | "message"> }; result?: unknown };
  assert.ok(error, `it was accepted: ${String(JSON.stringify(result)).slice(0, 200)}`);
  return { code: error.code, message: error.message, ...error.data };
};

/** Asserts that a reply reveals no internals of the server: stack traces, paths, error classes. */
export const requireNoInternals = (text: string): void => {
  assert.doesNotMatch(text, /\n\s+at |\\n\s+at |file:\/\/|node_modules|node:internal|\.ts\b|TypeError|RangeError|ERR_/);
  assert.ok(!text.includes(process.cwd()));
};

/** Asserts that a reply is the expected refusal, and returns it. */
export const requireRefusal = async (response: Response, { error, field, pattern }: Expected, status: number): Promise<Refusal> => {
  const reply = await readReply(response);
  requireNoInternals(JSON.stringify(reply));
  const found = refusalOf(reply);
  assert.deepEqual([found.name, found.code, response.status], [error, ERRORS[error][0], status], found.message);
  assert.equal(found.field || undefined, field, found.message);
  if (field !== undefined) assert.ok(found.message.includes(field), `${found.message} does not name ${field}`);
  if (pattern) assert.match(found.message, pattern);
  assert.ok(found.message.length < 4000);
  assert.equal(found.request_id, response.headers.get("x-request-id"));
  return found;
};

/** These errors keep their HTTP status on /rpc. */
const KEEPS_STATUS: readonly Name[] = ["PAYLOAD_TOO_LARGE"];

export interface ParamsCase extends Expected {
  readonly params: unknown;
  readonly method?: string;
  /** Restricts the encoding: "msgpack" for values that JSON cannot express, "json" for values that MessagePack cannot. */
  readonly only?: "json" | "msgpack";
}

/** Adds a test: RPC and REST refuse the parameters alike, in JSON and in MessagePack. */
export const refusesParams = (name: string, { params, method = "optimizer.step", only, ...expected }: ParamsCase): void => {
  test(`refuses ${name}`, async () => {
    const messages = new Set<string>();
    for (const type of [JSON_TYPE, MSGPACK]) {
      if (only && type !== (only === "json" ? JSON_TYPE : MSGPACK)) continue;
      const encode = (value: unknown): string | Buffer => (type === MSGPACK ? pack(value) : toJson(value));
      const path = PATHS[method] as string;
      const [code, status] = ERRORS[expected.error];
      const rest = await service().post(path, encode(params), type);
      messages.add((await requireRefusal(rest, expected, status)).message);
      assert.equal(rest.headers.get("content-type"), type === MSGPACK ? MSGPACK : "application/problem+json");
      const rpc = await service().post("/rpc", encode({ jsonrpc: "2.0", id: "x", method, params }), type);
      assert.equal(rpc.headers.get("content-type"), type);
      messages.add((await requireRefusal(rpc, expected, KEEPS_STATUS.includes(expected.error) ? status : 200)).message);
      assert.ok(code < 0);
    }
    if (!(expected.error === "PAYLOAD_TOO_LARGE")) assert.equal(messages.size, 1, [...messages].join("\n"));
  });
};

export { unpack };
