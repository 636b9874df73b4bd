/**
 * The conformance set against the server: over JSON-RPC in JSON, over the REST twin in JSON, and over MessagePack. The clients run the
 * same files in suites of their own: clients/python/tests, clients/go and clients/typescript/test.
 */
import assert from "node:assert/strict";
import { readdir, readFile } from "node:fs/promises";
import { after, before, describe, it } from "node:test";
import { JSON_TYPE, MSGPACK, pack, readReply, TestService } from "../support/service.ts";
import { CASES, type Case, casesOf } from "./record.ts";

const files = (await readdir(CASES)).sort();
const read = async (file: string): Promise<Case> => JSON.parse(await readFile(new URL(file, CASES), "utf8")) as Case;

const paths: Readonly<Record<string, string>> = {
  "optimizer.step": "/v1/step",
  "optimizer.init": "/v1/init",
  "optimizer.norms": "/v1/norms",
  "optimizer.plan": "/v1/plan",
  "state.inspect": "/v1/state/inspect",
  "state.convert": "/v1/state/convert",
  "schedule.evaluate": "/v1/schedule",
};

/** A value with other leaves in the place of some. */
const replace = (value: unknown, leaf: (value: unknown, key: string) => unknown, key = ""): unknown => {
  const other = leaf(value, key);
  if (Array.isArray(other)) return other.map((item) => replace(item, leaf));
  if (other === null || typeof other !== "object" || other instanceof Uint8Array) return other;
  return Object.fromEntries(Object.entries(other).map(([name, item]) => [name, replace(item, leaf, name)]));
};

/** MessagePack has states as bytes, and norms that are no number as they are. */
const toBinary = (value: unknown): unknown => replace(value, (leaf, key) => (key === "state" && typeof leaf === "string" ? Buffer.from(leaf, "base64") : leaf));

const fromBinary = (value: unknown): unknown =>
  replace(value, (leaf) => {
    if (leaf instanceof Uint8Array) return Buffer.from(leaf).toString("base64");
    return typeof leaf === "number" && !Number.isFinite(leaf) ? String(leaf) : leaf;
  });

describe("conformance set", () => {
  let service: TestService;
  before(async () => {
    service = await TestService.start();
  });
  after(() => service[Symbol.asyncDispose]());

  it("is what requests.ts and this server make (node test/conformance/record.ts)", async () => {
    const made = new Map<string, Case>();
    for await (const [file, recorded] of casesOf(service)) made.set(`${file}.json`, recorded);
    assert.deepEqual(files, [...made.keys()].sort());
    for (const file of files) assert.deepEqual(await read(file), made.get(file), file);
  });

  for (const file of files) {
    it(file, async () => {
      const { method, params, result, error } = await read(file);
      const path = paths[method];
      const rest = path ? await service.post(path, JSON.stringify(params), JSON_TYPE) : await fetch(`${service.url}/v1/optimizers/${String(params["name"])}`);
      const reply = (await readReply(rest)) as Record<string, unknown>;
      if (error) {
        const { type: _, title: __, detail: ___, request_id: ____, ...members } = reply;
        assert.deepEqual(members, error);
        assert.equal(rest.status, error["status"]);
      } else assert.deepEqual(reply, result);

      const binary = await readReply(await service.post("/rpc", pack({ jsonrpc: "2.0", id: 1, method, params: toBinary(params) }), MSGPACK));
      const packed = binary as { result?: unknown; error?: { code: number; data: { name: string; request_id: string } } };
      if (packed.error) {
        const { request_id: _, ...data } = packed.error.data;
        const { code, status: __, ...rest } = error ?? {};
        assert.deepEqual(data, rest);
        assert.equal(packed.error.code, code);
      } else assert.deepEqual(fromBinary(packed.result), result);
    });
  }
});
