/**
 * Tests cached results: the digests that address them, the separation of callers, the size limit, and calls without a cache.
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { BlobCache } from "../../src/blobs/blobs.ts";
import { Parts } from "../../src/codec/parts.ts";
import { gradsAt, LARGE, run, SMALL, type StepReply, startParams } from "../support/run.ts";
import { MSGPACK, pack, type RpcError, readReply, TestService } from "../support/service.ts";
import { readFile, writeTensors } from "../support/tensors.ts";
import { variants } from "../support/variants.ts";

const STEPS = 3;

let service: TestService;
before(async () => {
  service = await TestService.start({ STEPD_CACHE_MIB: "64" });
});
after(() => service[Symbol.asyncDispose]());

interface Name {
  readonly sha256: string;
}

interface CachedReply extends StepReply {
  readonly cached?: { readonly params?: Name; readonly state?: Name };
}

const params = writeTensors(startParams(SMALL));
const grads = writeTensors(gradsAt(SMALL, 0));
const optimizer = { name: "adamw" };
const call = { optimizer, params, grads };

const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

const requireSame = (found: Uint8Array | undefined, expected: Uint8Array, what: string): void =>
  assert.ok(Buffer.from(found as Uint8Array).equals(Buffer.from(expected)), what);

const requireError = async (params: unknown, name: string, field: string, to = service, headers = {}): Promise<RpcError> => {
  const response = await to.post("/rpc", pack({ jsonrpc: "2.0", id: 1, method: "optimizer.step", params }), MSGPACK, headers);
  const { error } = (await readReply(response)) as { error?: RpcError };
  assert.ok(error, "a refusal");
  assert.deepEqual([error.data.name, error.data.field], [name, field], error.message);
  return error;
};

for (const { label, optimizer: variant } of variants) {
  test(`${label}: steps by digest give the same bytes as steps by value`, async () => {
    const expected = await run(service, { optimizer: variant, shapes: LARGE, steps: STEPS });
    let from: { params: unknown; state: unknown } = { params: writeTensors(startParams(LARGE)), state: null };
    for (let step = 0; step < STEPS; step++) {
      const isLast = step === STEPS - 1;
      const reply = { cache: true, params: isLast ? "same" : "none", state: isLast ? "same" : "none" };
      const result = await service.call<CachedReply>("optimizer.step", { optimizer: variant, ...from, grads: writeTensors(gradsAt(LARGE, step)), reply });
      assert.deepEqual(["params" in result, "state" in result], [isLast, isLast]);
      from = result.cached as { params: Name; state: Name };
      if (!isLast) continue;
      requireSame(result.params, expected.params, "params");
      requireSame(result.state, expected.state, "state");
      assert.deepEqual(result.cached, { params: { sha256: sha256(expected.params) }, state: { sha256: sha256(expected.state) } });
    }
  });
}

test("an unknown digest is BLOB_MISSING and counts as a miss", async () => {
  const before = await service.metric('stepd_cache_lookups_total{result="miss"}');
  const name = { sha256: "0".repeat(64) };
  await requireError({ ...call, params: name }, "BLOB_MISSING", "/params");
  await requireError({ ...call, state: name }, "BLOB_MISSING", "/state");
  const rest = await service.post("/v1/step", pack({ ...call, grads: name }), MSGPACK);
  assert.equal(rest.status, 404);
  const text = await (await fetch(`${service.url}/metrics`)).text();
  assert.match(text, new RegExp(`^stepd_cache_lookups_total\\{result="miss"\\} ${(Number.isNaN(before) ? 0 : before) + 3}$`, "m"));
});

test("a server without a cache keeps nothing, and refuses calls that would lose the state", async () => {
  await using bare = await TestService.start();
  const result = await bare.call<CachedReply>("optimizer.step", { ...call, reply: { cache: true } });
  assert.equal(result.cached, undefined);
  requireSame(result.state, (await service.call<StepReply>("optimizer.step", call)).state, "state");
  await requireError({ ...call, reply: { cache: true, state: "none" } }, "INVALID_PARAMS", "/reply/state", bare);
  await requireError({ ...call, state: { sha256: "0".repeat(64) } }, "BLOB_MISSING", "/state", bare);
  await requireError({ ...call, reply: { state: "none" } }, "INVALID_PARAMS", "/reply/cache");
});

test("a caller cannot read another caller's cached results", async () => {
  const folder = mkdtempSync(join(tmpdir(), "stepd-cache-"));
  const [alice, bob] = ["alice-token-0123456789", "bob-token-0123456789"];
  writeFileSync(join(folder, "tokens"), `alice ${alice}\nbob ${bob}\n`);
  await using guarded = await TestService.start({ STEPD_CACHE_MIB: "8", STEPD_TOKENS_FILE: join(folder, "tokens") });
  rmSync(folder, { recursive: true });
  const as = (token: string) => ({ Authorization: `Bearer ${token}` });
  const response = await guarded.post("/v1/step", pack({ ...call, reply: { cache: true } }), MSGPACK, as(alice));
  const { cached } = (await readReply(response)) as CachedReply;
  await requireError({ ...call, ...cached }, "BLOB_MISSING", "/params", guarded, as(bob));
  assert.equal((await guarded.post("/v1/step", pack({ ...call, ...cached }), MSGPACK, as(alice))).status, 200);
});

test("a result above the cache's size is not cached, and a call that would lose the state is refused", async () => {
  await using small = await TestService.start({ STEPD_CACHE_MIB: "1" });
  const wide = { w: [200_000] };
  const large = { optimizer, params: writeTensors(startParams(wide)), grads: writeTensors(gradsAt(wide, 0)) };
  const kept = await small.call<CachedReply>("optimizer.step", { ...large, reply: { cache: true } });
  assert.equal(kept.cached?.state, undefined);
  await requireError({ ...large, reply: { cache: true, state: "none" } }, "PAYLOAD_TOO_LARGE", "/reply/state", small);
  assert.ok((await small.metric("stepd_cache_used_bytes")) <= 2 ** 20);
  // The state of SGD with momentum is as large as the parameters. The cache has room for one of the two.
  const half = await small.call<CachedReply>("optimizer.step", { ...large, optimizer: { name: "sgd", momentum: 0.9 }, reply: { cache: true } });
  assert.deepEqual(Object.keys(half.cached ?? {}), ["state"]);
});

test("the least recently used blob is evicted first, and copies in progress count against the limit", async () => {
  const cache = new BlobCache(1000);
  const blob = (fill: number, bytes = 400): Parts => new Parts([Buffer.alloc(bytes / 2, fill), Buffer.alloc(bytes / 2, fill)]);
  const [a, b] = [await cache.put(blob(1), undefined), await cache.put(blob(2), undefined)] as [string, string];
  assert.ok(cache.get(a, undefined)?.equals(Buffer.alloc(400, 1)));
  const c = (await cache.put(blob(3), undefined)) as string;
  assert.equal(cache.get(b, undefined), undefined);
  assert.ok(cache.get(a, undefined) && cache.get(c, undefined));
  assert.equal(await cache.put(blob(4, 1002), undefined), undefined);
  const many = await Promise.all(Array.from({ length: 10 }, (_, index) => cache.put(blob(10 + index), undefined)));
  assert.ok(cache.used <= 1000, `${cache.used} bytes`);
  assert.ok(many.filter((name) => name !== undefined && cache.get(name, undefined)).length <= 2);
});

/** Rounds float32 to BF16 (to nearest even) with integer arithmetic, as a reference. */
const rounded = (file: Uint8Array): Map<string, Buffer> =>
  new Map(
    [...readFile(file).entries].map(([name, { bytes }]) => {
      const target = Buffer.alloc(bytes.length / 2);
      for (let i = 0; i < target.length / 2; i++) {
        const bits = bytes.readUInt32LE(4 * i);
        target.writeUInt16LE(((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff, 2 * i);
      }
      return [name, target];
    }),
  );

test("reply.params bf16 rounds to nearest even, keeps the order and form of the request, and changes nothing else", async () => {
  const expected = await service.call<StepReply>("optimizer.step", call);
  const found = await service.call<StepReply>("optimizer.step", { ...call, reply: { params: "bf16", cache: true } });
  const { entries } = readFile(found.params);
  assert.deepEqual([...entries.keys()], Object.keys(SMALL));
  const bits = rounded(expected.params);
  for (const [name, { dtype, shape, bytes }] of entries) {
    assert.deepEqual([dtype, shape], ["BF16", SMALL[name as keyof typeof SMALL]], name);
    assert.ok(bytes.equals(bits.get(name) as Buffer), name);
  }
  requireSame(found.state, expected.state, "state");
  // A tensor without a gradient does not change, so rounding it loses nothing.
  const plain = { optimizer: { name: "sgd" }, params: { w: { shape: [3], values: [1, 1.00390625, "NaN"] } }, grads: {} };
  const reply = await service.call<{ params: unknown }>("optimizer.step", { ...plain, reply: { params: "bf16" } });
  assert.deepEqual(reply.params, { w: { shape: [3], dtype: "BF16", values: [1, 1, "NaN"] } });
});

test("reply.params bf16 accepts F16 and BF16 parameters, but not F64", async () => {
  const values = [1, -2.5, 0.333251953125, 65504];
  const of = (dtype: string) => ({
    optimizer: { name: "sgd", lr: 0 },
    params: { w: { shape: [4], dtype, values } },
    grads: { w: { shape: [4], values: [0, 0, 0, 0] } },
    master_weights: dtype !== "F64",
    reply: { params: "bf16" },
  });
  for (const dtype of ["F16", "BF16"]) {
    const reply = await service.call<{ params: { w: { values: number[] } } }>("optimizer.step", of(dtype));
    assert.deepEqual(reply.params.w.values, [1, -2.5, 0.333984375, 65536], dtype);
  }
  await requireError(of("F64"), "UNSUPPORTED_DTYPE", "/reply/params");
});

test("a skipped step honours reply.params and reply.state", async () => {
  const bad = writeTensors({ w: { shape: [3, 11], data: new Float32Array(33).fill(Number.NaN) } });
  const result = await service.call<CachedReply & { skipped: boolean }>("optimizer.step", {
    ...call,
    grads: bad,
    non_finite: "skip",
    reply: { params: "bf16", cache: true, state: "none" },
  });
  assert.equal(result.skipped, true);
  assert.equal(readFile(result.params).entries.get("w")?.dtype, "BF16");
  assert.equal(result.cached?.params?.sha256, sha256(params));
});

test("a call that would lose the new parameters, because they are not cached, is refused", async () => {
  const lost = (reply: unknown, more = {}, to = service) => requireError({ ...call, ...more, reply }, "INVALID_PARAMS", "/reply/params", to);
  // The server never caches tensors by name.
  const byName = { params: { w: { shape: [1], values: [1] } }, grads: { w: { shape: [1], values: [1] } } };
  await lost({ params: "none", cache: true }, byName);
  await using bare = await TestService.start();
  await lost({ params: "none", cache: true }, {}, bare);
  // The cache has room for the state alone, but not for state and parameters together.
  await using small = await TestService.start({ STEPD_CACHE_MIB: "1" });
  const wide = { w: [100_000] };
  const large = { params: writeTensors(startParams(wide)), grads: writeTensors(gradsAt(wide, 0)) };
  for (const params of ["none", "bf16"])
    await requireError({ ...call, ...large, reply: { params, state: "none", cache: true } }, "PAYLOAD_TOO_LARGE", "/reply/params", small);
  // A state with master weights contains the parameters, so the reply may omit the parameters.
  const narrow = { params: { w: { shape: [1], dtype: "BF16", values: [1] } }, grads: { w: { shape: [1], values: [1] } } };
  const reply = await bare.call<StepReply>("optimizer.step", { ...call, ...narrow, master_weights: true, reply: { params: "none", cache: true } });
  assert.deepEqual(["params" in reply, "state" in reply], [false, true]);
  // Without reply.cache, the reply may omit the parameters.
  assert.equal("params" in (await bare.call<StepReply>("optimizer.step", { ...call, reply: { params: "none" } })), false);
});
