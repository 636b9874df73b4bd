/** The conformance set (test/conformance): each case as a call of the client's public methods on a real server, with native arrays. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { after, before, suite, test } from "node:test";
import { TestService } from "../../../test/support/service.ts";
import { Client, ShardedClient, State, StepdError, type Tensor, type Tensors } from "../src/index.ts";
import { bits, floatOf, toTensor, type WireTensor } from "./_tensors.ts";

type Json = Readonly<Record<string, unknown>>;

interface Case {
  readonly about: string;
  readonly method: string;
  readonly params: Json;
  readonly result?: Json;
  readonly error?: Json;
}

const CASES = new URL("../../../test/conformance/cases/", import.meta.url);
const files = readdirSync(CASES).filter((file) => file.endsWith(".json"));

const fromWire = (tensors: unknown): Tensors =>
  Object.fromEntries(Object.entries(tensors as Record<string, WireTensor>).map(([name, tensor]) => [name, toTensor(tensor)]));

const toWire = (tensors: Tensors): unknown =>
  Object.fromEntries(
    Object.entries(tensors).map(([name, { shape, data, dtype }]) => [
      name,
      { shape, dtype: dtype ?? (data instanceof Float64Array ? "F64" : "F32"), bits: bits(data) },
    ]),
  );

const base64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString("base64");

/** Params of the wire as a caller of the client has them. */
const toNative = (params: Json): Json =>
  Object.fromEntries(
    Object.entries(params).map(([name, value]) => {
      if (name === "params" || name === "grads") return [name, fromWire(value)];
      return [name, name === "state" && typeof value === "string" ? Uint8Array.from(Buffer.from(value, "base64")) : value];
    }),
  );

/** A result with tensors as bits and states as base64, and numbers where JSON has their names. */
const comparable = (value: unknown): unknown => {
  if (value instanceof State) return base64(value.bytes);
  if (value instanceof Uint8Array) return base64(value);
  if (Array.isArray(value)) return value.map(comparable);
  if (typeof value !== "object" || value === null) return floatOf(value);
  return Object.fromEntries(Object.entries(value).map(([name, member]) => [name, comparable(member)]));
};

const calls: Readonly<Record<string, (client: Client, params: never) => Promise<unknown>>> = {
  "optimizer.step": async (client, params) => {
    const { params: stepped, ...rest } = await client.step(params);
    return { ...rest, params: toWire(stepped) };
  },
  "optimizer.init": async (client, params) => ({ state: await client.init(params) }),
  "optimizer.norms": (client, params) => client.norms(params),
  "optimizer.plan": (client, params) => client.plan(params),
  "optimizer.describe": (client, { name }: { name: string }) => client.describe(name),
  "state.inspect": (client, { state }: { state: Uint8Array }) => client.inspect(state),
  "state.convert": async (client, params) => {
    const { file, lost } = await client.convert(params);
    return { state: file, lost };
  },
  "schedule.evaluate": (client, params) => client.evaluateSchedule(params),
};

const expectedOf = ({ params, ...result }: Json): unknown => ({
  ...(comparable(result) as Json),
  ...(params !== undefined && { params: toWire(fromWire(params)) }),
});

const errorOf = ({ code, rpcCode, status, field, expected, found, tensors }: StepdError): Json =>
  JSON.parse(JSON.stringify({ name: code, code: rpcCode, status, field, expected, found, ...(tensors.length > 0 && { tensors }) })) as Json;

suite("conformance set", () => {
  let service: TestService;
  let client: Client;
  before(async () => {
    service = await TestService.start();
    client = new Client(service.url);
  });
  after(() => service[Symbol.asyncDispose]());

  test("is there", () => assert.ok(files.length > 0));

  for (const file of files) {
    const { about, method, params, result, error } = JSON.parse(readFileSync(new URL(file, CASES), "utf8")) as Case;
    const isRefusal = (thrown: unknown): boolean => {
      assert.ok(thrown instanceof StepdError, `${thrown}`);
      assert.deepEqual(errorOf(thrown), error);
      return true;
    };
    test(`${file}: ${about}`, async () => {
      const call = calls[method];
      assert.ok(call, `no call for the method ${method}`);
      const reply = call(client, toNative(params) as never);
      if (result) assert.deepEqual(comparable(await reply), expectedOf(result));
      else await assert.rejects(reply, isRefusal);
    });

    // A step in shards of one tensor each: the same bits, the same refusals.
    if (method !== "optimizer.step" || params["stats"] !== undefined) continue;
    test(`${file}, sharded`, async () => {
      const sharded = new ShardedClient([service.url], { requestBytes: 1 });
      const reply = sharded.step(toNative(params) as never);
      if (!result) return void (await assert.rejects(reply, isRefusal));
      const { params: stepped, ...rest } = await reply;
      assert.deepEqual(comparable({ ...rest, params: toWire(stepped as Record<string, Tensor>) }), expectedOf(result));
    });
  }
});
