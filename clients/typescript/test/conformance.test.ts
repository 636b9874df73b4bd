/** Runs the conformance set (test/conformance): the client's public methods make each case's call to a real server. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { after, before, suite, test } from "node:test";
import { withHandles, withoutHandles } from "../../../test/conformance/_handles.ts";
import { TestService } from "../../../test/support/service.ts";
import { Client, type ReduceInput, ShardedClient, State, StepdError, type StepInput, type StepResult, type Tensor, type Tensors } from "../src/index.ts";
import { ALL_TENSORS } from "../src/optimizers.gen.ts";
import { toTensors } from "../src/tensors.ts";
import { type Body, recordingFetch, TestFolder } from "./_folder.ts";
import { bits, floatOf, toTensor, type WireTensor } from "./_tensors.ts";

type Json = Readonly<Record<string, unknown>>;
type Files = Readonly<Record<string, string>>;

interface Call {
  readonly method: string;
  readonly params: Json;
}

interface Case extends Call {
  readonly about: string;
  readonly server?: "storing" | "bare";
  readonly files?: Files;
  readonly before?: readonly Call[];
  readonly result?: Json;
  readonly error?: Json;
  readonly written?: Files;
}

const CASES = new URL("../../../test/conformance/cases/", import.meta.url);
const cases = readdirSync(CASES).filter((file) => file.endsWith(".json"));

/** Returns the bytes of a blob, from base64 or from one of the files. */
const bytesOf = (blob: unknown, files: Files): Uint8Array<ArrayBuffer> => {
  if (typeof blob === "string") return Uint8Array.from(Buffer.from(blob, "base64"));
  const { file, offset, length } = blob as { file: string; offset: number; length: number };
  const bytes = Uint8Array.from(Buffer.from(files[file] ?? "", "base64"));
  assert.ok(offset + length <= bytes.length);
  return bytes.subarray(offset, offset + length);
};

const isBlob = (value: unknown): boolean => typeof value === "string" || typeof (value as { file?: unknown }).file === "string";

const fromWire = (tensors: unknown, files: Files): Tensors =>
  isBlob(tensors)
    ? toTensors(bytesOf(tensors, files))
    : Object.fromEntries(Object.entries(tensors as Record<string, WireTensor>).map(([name, tensor]) => [name, toTensor(tensor)]));

const toWire = (tensors: Tensors): unknown =>
  Object.fromEntries(
    Object.entries(tensors).map(([name, { shape, data, dtype }]) => [
      name,
      { shape, dtype: dtype ?? (data instanceof Float64Array ? "F64" : "F32"), bits: bits(data) },
    ]),
  );

const base64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString("base64");

const isHandle = (value: unknown): boolean => typeof (value as { handle?: unknown } | null)?.handle === "string";

/** Converts wire params to a caller's input. Handles move to `cached`. Places are dropped, because the client chooses them. */
const toNative = (params: Json, files: Files = {}): Json => {
  const cached = Object.fromEntries(Object.entries(params).filter(([, value]) => isHandle(value)));
  const values = Object.entries(params).flatMap(([name, value]): [string, unknown][] => {
    if (isHandle(value)) return [];
    if (name === "params" || name === "grads") return [[name, fromWire(value, files)]];
    if ((name === "state" || name === "accumulator") && value !== null) return [[name, bytesOf(value, files)]];
    if (name === "updates") return [[name, (value as Json[]).map((update) => ({ ...update, tensors: fromWire(update["tensors"], files) }))]];
    if (name === "distances") return [[name, comparable(value)]];
    if (name === "reduce") return [[name, toNative(value as Json, files)]];
    return [[name, name === "reply" ? { ...(value as Json), into: undefined } : value]];
  });
  return { ...Object.fromEntries(values), ...(Object.keys(cached).length > 0 && { cached }) };
};

/** Converts a result for comparison: tensors to bits, states to base64, and strings such as "NaN" to numbers. */
const comparable = (value: unknown): unknown => {
  if (value instanceof State) return base64(value.bytes);
  if (value instanceof Uint8Array) return base64(value);
  if (Array.isArray(value)) return value.map(comparable);
  if (typeof value !== "object" || value === null) return floatOf(value);
  return Object.fromEntries(Object.entries(value).map(([name, member]) => [name, comparable(member)]));
};

const calls: Readonly<Record<string, (client: Client, params: never) => Promise<unknown>>> = {
  "optimizer.step": async (client, params: StepInput) => {
    const result = await client.step(params);
    const { params: stepped, ...rest } = result;
    if (params.reply?.state === "none") assert.throws(() => result.state, RangeError);
    if (params.reply?.params !== "none") return { ...rest, params: toWire(stepped) };
    assert.deepEqual(stepped, {});
    return rest;
  },
  "optimizer.init": async (client, params) => ({ state: await client.init(params) }),
  "optimizer.norms": (client, params) => client.norms(params),
  "optimizer.reduce": async (client, params: ReduceInput) => {
    const { grads, ...result } = await client.reduce(params);
    if (params.finish ?? true) return { ...result, grads: toWire(grads) };
    assert.deepEqual(grads, {});
    return result;
  },
  "optimizer.distances": async (client, params) => ({ distances: await client.distances(params) }),
  "optimizer.plan": (client, params) => client.plan(params),
  "optimizer.describe": (client, { name }: { name: string }) => client.describe(name),
  "state.inspect": (client, { state }: { state: Uint8Array }) => client.inspect(state),
  "state.convert": async (client, params) => {
    const { file, lost } = await client.convert(params);
    return { state: file, lost };
  },
  "schedule.evaluate": (client, params) => client.evaluateSchedule(params),
};

const expectedOf = ({ params, grads, state, ...result }: Json, written: Files = {}): unknown => ({
  ...(comparable(result) as Json),
  ...(grads !== undefined && { grads: toWire(fromWire(grads, written)) }),
  ...(params !== undefined && { params: toWire(fromWire(params, written)) }),
  ...(state !== undefined && { state: base64(bytesOf(state, written)) }),
});

const errorOf = ({ code, rpcCode, status, field, expected, found, tensors }: StepdError): Json =>
  JSON.parse(JSON.stringify({ name: code, code: rpcCode, status, field, expected, found, ...(tensors.length > 0 && { tensors }) })) as Json;

/** A parameter that makes a call large enough for the shared folder. The parameter has no gradient, so it does not change. */
const padding: Tensor = { shape: [2 ** 14], data: Float32Array.from({ length: 2 ** 14 }, (_, index) => index) };

/** Wraps a client. The wrapper adds the padding to a call's parameters and removes the padding from the result. */
const padded = (client: Client): Client => {
  const pad = (input: StepInput): StepInput => ({ ...input, params: { ...input.params, padding } });
  const step = async (input: StepInput): Promise<StepResult> => {
    const result = await client.step(pad(input));
    const { padding: left, ...params } = result.params;
    if ((input.reply?.params ?? "same") === "same") assert.deepEqual(left, padding);
    return Object.defineProperty(result, "params", { value: params });
  };
  return { init: (input: StepInput) => client.init(pad(input)), step } as unknown as Client;
};

suite("conformance set", () => {
  let folder: TestFolder;
  let bare: TestService;
  let storing: TestService;
  before(async () => {
    folder = new TestFolder();
    bare = await TestService.start();
    storing = await TestService.start({ STEPD_CACHE_MIB: "1", STEPD_SHARED_DIR: folder.path });
  });
  after(async () => {
    await bare[Symbol.asyncDispose]();
    await storing[Symbol.asyncDispose]();
    assert.deepEqual(folder.files, []);
    folder[Symbol.dispose]();
  });

  test("has cases", () => assert.ok(cases.length > 0));

  for (const file of cases) {
    const {
      about,
      server,
      method,
      params,
      result,
      error,
      written,
      files,
      before: earlier = [],
    } = JSON.parse(readFileSync(new URL(file, CASES), "utf8")) as Case;
    const isRefusal = (thrown: unknown): boolean => {
      assert.ok(thrown instanceof StepdError, `${thrown}`);
      assert.deepEqual(errorOf(thrown), error);
      return true;
    };
    const run = async (client: Client): Promise<void> => {
      const call = calls[method];
      assert.ok(call, `no call for the method ${method}`);
      const results: Json[] = [];
      for (const first of earlier) results.push((await calls[first.method]?.(client, toNative(withHandles(first.params, results)) as never)) as Json);
      const reply = call(client, toNative(withHandles(params, results), files) as never);
      if (result) assert.deepEqual(withoutHandles(comparable(await reply) as Json), expectedOf(result, written));
      else await assert.rejects(reply, isRefusal);
    };
    // This case tests that a server without a shared folder refuses files, so it runs only without a shared folder.
    const isOfFilesAlone = server === "bare" && files !== undefined;
    if (!isOfFilesAlone) test(`${file}: ${about}`, () => run(new Client((server === "storing" ? storing : bare).url)));

    // The same case runs in shared memory, with padding. Cases with cached results are skipped, because a
    // handle names parameters without padding.
    // The updates of a reduction would lack the padding.
    const isPadded = (method === "optimizer.step" && params["reduce"] === undefined) || (method === "optimizer.init" && error !== undefined);
    const usesCache = isHandle(params["params"]) || earlier.length > 0 || result?.["cached"] !== undefined;
    if (isPadded && !usesCache && (server !== "bare" || isOfFilesAlone))
      test(`${file}, in shared memory`, async () => {
        const bodies: Body[] = [];
        const client = new Client((isOfFilesAlone ? bare : storing).url, { sharedDir: folder.path, fetch: recordingFetch(bodies) });
        try {
          await run(padded(client));
        } finally {
          client.close();
        }
        assert.ok(bodies.length > 0 && bodies.every((body) => isBlob(body["params"])));
      });

    // The same call in shards of one tensor must give the same bits or the same error.
    const isOfOneCall = params["stats"] !== undefined || isHandle(params["params"]) || isHandle(params["state"]) || result?.["cached"] !== undefined;
    const { name } = (params["optimizer"] ?? {}) as { readonly name?: string };
    const isShared = name !== undefined && ALL_TENSORS.includes(name);
    if (!["optimizer.step", "optimizer.reduce", "optimizer.distances"].includes(method) || isOfOneCall || isShared || isOfFilesAlone) continue;
    test(`${file}, sharded`, () => run(new ShardedClient([(server === "storing" ? storing : bare).url], { requestBytes: 1 }) as unknown as Client));
  }
});
