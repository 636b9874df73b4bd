/**
 * Runs the conformance cases on the server: JSON-RPC in JSON, REST in JSON, and MessagePack. The clients run the same files in
 * their own tests: clients/python/tests, clients/go and clients/typescript/test.
 */
import assert from "node:assert/strict";
import { readdir, readFile } from "node:fs/promises";
import { after, before, describe, it } from "node:test";
import { JSON_TYPE, MSGPACK, pack, readReply } from "../support/service.ts";
import { withHandles, withoutHandles } from "./_handles.ts";
import type { Call } from "./_request.ts";
import { Servers } from "./_servers.ts";
import { answerOf, CASES, type Case, casesOf } from "./record.ts";

type Json = Readonly<Record<string, unknown>>;

const files = (await readdir(CASES)).sort();
const read = async (file: string): Promise<Case> => JSON.parse(await readFile(new URL(file, CASES), "utf8")) as Case;

const paths: Readonly<Record<string, string>> = {
  "optimizer.step": "/v1/step",
  "optimizer.init": "/v1/init",
  "optimizer.norms": "/v1/norms",
  "optimizer.reduce": "/v1/reduce",
  "optimizer.distances": "/v1/distances",
  "optimizer.plan": "/v1/plan",
  "state.inspect": "/v1/state/inspect",
  "state.convert": "/v1/state/convert",
  "schedule.evaluate": "/v1/schedule",
};

/** The members of a request that may be blobs. */
const BLOBS = ["params", "grads", "state", "accumulator", "tensors"];

const mapBlobs = (call: Json, change: (blob: unknown) => unknown): Json =>
  Object.fromEntries(
    Object.entries(call).map(([name, value]) => {
      if (name === "reduce") return [name, mapBlobs(value as Json, change)];
      if (name === "updates") return [name, (value as Json[]).map((update) => mapBlobs(update, change))];
      return [name, BLOBS.includes(name) ? change(value) : value];
    }),
  );

/** Converts base64 to bytes, the form of blobs in MessagePack. */
const toBinary = (call: Json): Json => mapBlobs(call, (blob) => (typeof blob === "string" ? Buffer.from(blob, "base64") : blob));

/** Converts a MessagePack value to its JSON form: bytes to base64, infinite and NaN norms to strings. */
const fromBinary = (value: unknown): unknown => {
  if (value instanceof Uint8Array) return Buffer.from(value).toString("base64");
  if (typeof value === "number" && !Number.isFinite(value)) return String(value);
  if (Array.isArray(value)) return value.map(fromBinary);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, fromBinary(item)]));
};

/** Reads a blob that is named by its place in a file. Returns other values unchanged. */
const readBlob = (value: unknown, files: Case["files"] = {}): unknown => {
  const { file, offset, length } = (value ?? {}) as { file?: string; offset: number; length: number };
  if (file === undefined) return value;
  return Buffer.from(files[file] ?? "", "base64")
    .subarray(offset, offset + length)
    .toString("base64");
};

describe("conformance set", () => {
  let servers: Servers;
  before(async () => {
    servers = await Servers.start();
  });
  after(() => servers[Symbol.asyncDispose]());

  it("cases/ is up to date with requests.ts and this server (node test/conformance/record.ts)", async () => {
    const made = new Map<string, Case>();
    for await (const [file, recorded] of casesOf(servers)) made.set(`${file}.json`, recorded);
    assert.deepEqual(files, [...made.keys()].sort());
    for (const file of files) assert.deepEqual(await read(file), made.get(file), file);
  });

  for (const file of files) {
    it(file, async () => {
      const recorded = await read(file);
      const { method, result, error, written = {} } = recorded;
      const path = paths[method];
      const { service, params } = await servers.prepare(recorded);
      const rest = path ? await service.post(path, JSON.stringify(params), JSON_TYPE) : await fetch(`${service.url}/v1/optimizers/${String(params["name"])}`);
      const reply = (await readReply(rest)) as Record<string, unknown>;
      if (error) {
        const { type: _, title: __, detail: ___, request_id: ____, ...members } = reply;
        assert.deepEqual(members, error);
        assert.equal(rest.status, error["status"]);
      } else assert.deepEqual(withoutHandles(reply), result);
      assert.deepEqual(servers.written(recorded), written);

      const again = await servers.prepare(recorded);
      const binary = await readReply(await service.post("/rpc", pack({ jsonrpc: "2.0", id: 1, method, params: toBinary(again.params) }), MSGPACK));
      const packed = binary as { result?: unknown; error?: { code: number; data: { name: string; request_id: string } } };
      if (packed.error) {
        const { request_id: _, ...data } = packed.error.data;
        const { code, status: __, ...rest } = error ?? {};
        assert.deepEqual(data, rest);
        assert.equal(packed.error.code, code);
      } else assert.deepEqual(withoutHandles(fromBinary(packed.result) as Json), result);
      assert.deepEqual(servers.written(recorded), written);
    });
  }

  /** Returns the result of the same call with all blobs sent. `earlier` are the results of the calls before. */
  const resultBySending = async ({ method, params }: Call, earlier: readonly Json[], files?: Case["files"]): Promise<Json> => {
    // The handle of a result that was sent stands for its bytes.
    const sent = earlier.map(({ params, state }) => ({ cached: { params, state } }));
    const { reply = {}, ...call } = mapBlobs(withHandles(params, sent), (blob) => readBlob(blob, files));
    const { result = {} } = await answerOf(servers.bare, method, call);
    const { result: rounded } = (reply as Json)["params"] === "bf16" ? await answerOf(servers.bare, method, { ...call, reply: { params: "bf16" } }) : {};
    return { whole: result, ...result, ...rounded, cached: { params: { handle: "$" }, state: { handle: "$" } } };
  };

  it("cases that name blobs give the same bytes as calls that send them", async () => {
    let count = 0;
    for (const file of files) {
      const { server, before = [], files, result, written, ...call } = await read(file);
      if (server !== "storing" || !result) continue;
      const earlier: Json[] = [];
      for (const first of before) earlier.push((await resultBySending(first, earlier))["whole"] as Json);
      const expected = await resultBySending(call, earlier, files);
      for (const [name, value] of Object.entries(result)) assert.deepEqual(readBlob(value, written), expected[name], `${file}: ${name}`);
      count++;
    }
    assert.ok(count > 0);
  });
});
