/**
 * Tests cached results: handles, generations, eviction, the separation of callers, the size limit, and calls without a cache.
 */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { Arena } from "../../src/arena/arena.ts";
import { ResultCache } from "../../src/blobs/blobs.ts";
import { Parts } from "../../src/codec/parts.ts";
import { gradsAt, LARGE, run, SMALL, type StepReply, startParams } from "../support/run.ts";
import { MSGPACK, pack, type RpcError, readReply, TestService } from "../support/service.ts";
import { readFile, writeTensors } from "../support/tensors.ts";
import { oneOfEach } from "../support/variants.ts";

const STEPS = 3;

let service: TestService;
before(async () => {
  service = await TestService.start({ STEPD_CACHE_MIB: "64" });
});
after(() => service[Symbol.asyncDispose]());

interface Name {
  readonly handle: string;
}

interface CachedReply extends StepReply {
  readonly cached?: { readonly params?: Name; readonly state?: Name };
}

const params = writeTensors(startParams(SMALL));
const grads = writeTensors(gradsAt(SMALL, 0));
const nan = { w: { shape: SMALL.w, data: new Float32Array(33).fill(Number.NaN) } };
const optimizer = { name: "adamw" };
const call = { optimizer, params, grads };

const requireSame = (found: Uint8Array | undefined, expected: Uint8Array, what: string): void =>
  assert.ok(Buffer.from(found as Uint8Array).equals(Buffer.from(expected)), what);

const requireError = async (params: unknown, name: string, field: string, to = service, headers = {}): Promise<RpcError> => {
  const response = await to.post("/rpc", pack({ jsonrpc: "2.0", id: 1, method: "optimizer.step", params }), MSGPACK, headers);
  const { error } = (await readReply(response)) as { error?: RpcError };
  assert.ok(error, "a refusal");
  assert.deepEqual([error.data.name, error.data.field], [name, field], error.message);
  return error;
};

for (const { label, optimizer: variant } of oneOfEach) {
  test(`${label}: steps by handle give the same bytes as steps by value`, async () => {
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
    }
  });
}

test("an unknown handle is BLOB_MISSING and counts as a miss", async () => {
  const before = await service.metric('stepd_cache_lookups_total{result="miss"}');
  const name = { handle: "unknown.params" };
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
  await requireError({ ...call, state: { handle: "unknown.state" } }, "BLOB_MISSING", "/state", bare);
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

/** A cache in an arena of one MiB, with a function that keeps a result of 1,000 bytes in two pieces. */
const smallCache = (capacity: number) => {
  const arena = new Arena(1, 0);
  const cache = new ResultCache(arena, capacity);
  const find = (handle: string, caller?: string) => {
    using lease = arena.lease(0);
    const found = cache.get(handle, caller, lease);
    return found && { ...found, blob: Buffer.from(found.blob.bytes) };
  };
  const keep = async (fill: number, from: readonly string[] = [], bytes = 1000): Promise<string> => {
    using lease = arena.lease(64);
    const sources = from.flatMap((handle) => find(handle)?.result ?? []);
    const half = Buffer.alloc(bytes / 2, fill);
    return (await cache.keep({ state: new Parts([half, half]) }, sources, undefined, lease))?.["state"] as string;
  };
  return { arena, cache, find, keep };
};

test("the least recently used result is evicted first", async () => {
  const { arena, cache, find, keep } = smallCache(2500);
  const [a, b] = [await keep(1), await keep(2)];
  assert.ok(find(a)?.blob.equals(Buffer.alloc(1000, 1)));
  const c = await keep(3);
  assert.deepEqual(
    [a, b, c].map((handle) => find(handle) !== undefined),
    [true, false, true],
  );
  assert.equal(await keep(4, [], 2502), undefined);
  assert.equal(cache.used, 2000);
  assert.deepEqual([arena.used, arena.retained, cache.evictions], [0, 2048, 1]);
});

test("two generations stay: a result and the result from which it was computed", async () => {
  const { arena, find, keep } = smallCache(100_000);
  const handles = [await keep(0)];
  for (let step = 1; step < 6; step++) {
    handles.push(await keep(step, [handles[step - 1] as string]));
    const left = handles.map((handle) => find(handle) !== undefined);
    assert.deepEqual(
      left,
      handles.map((_, index) => index >= step - 1),
    );
  }
  assert.equal(arena.retained, 2048);
});

test("a repeated step replaces the result of its first attempt", async () => {
  const { find, keep } = smallCache(100_000);
  const source = await keep(0);
  const [lost, repeated] = [await keep(1, [source]), await keep(2, [source])];
  assert.deepEqual(
    [source, lost, repeated].map((handle) => find(handle) !== undefined),
    [true, false, true],
  );
});

test("a call that needs memory evicts results, but none that a running call reads", async () => {
  const { arena, find, keep } = smallCache(2 ** 20);
  const [a, b] = [await keep(1, [], 400_000), await keep(2, [], 400_000)];
  {
    using reader = arena.lease(0);
    const found = find(a);
    assert.ok(found);
    reader.share(found.result.memory);
    // The arena has room for this call only if the other result goes.
    using other = arena.lease(500_000);
    other.bytes.fill(9, other.start, other.start + 500_000);
    assert.deepEqual([find(a) === undefined, find(b) === undefined], [false, true]);
    assert.ok([...found.result.blobs.values()].every(({ bytes }) => bytes.equals(Buffer.alloc(400_000, 1))));
    assert.throws(() => arena.lease(500_000), { code: "OVERLOADED" });
    // The refused call evicted the first result, too, but its memory stays until its reader has ended.
    assert.equal(find(a), undefined);
    assert.ok(arena.retained > 0);
  }
  assert.deepEqual([arena.used, arena.retained], [0, 0]);
});

test("a call that has no room beside other calls is refused and evicts nothing", async () => {
  const { arena, find, keep } = smallCache(2 ** 20);
  const kept = await keep(1, [], 400_000);
  using other = arena.lease(600_000);
  assert.throws(() => arena.lease(500_000), { code: "OVERLOADED" });
  assert.ok(find(kept));
  assert.equal(other.start > 0, true);
});

test("blobs in one block of a lease stay in place, and the rest of the block is freed", async () => {
  const arena = new Arena(1, 0);
  const cache = new ResultCache(arena, 2 ** 20);
  const handles = await (async () => {
    using lease = arena.lease(300_000);
    lease.bytes.fill(7, lease.start, lease.start + 300_000);
    const view = (start: number, bytes: number): Parts => new Parts([lease.view(lease.start + start, bytes)]);
    // The blobs share a cache line.
    return cache.keep({ params: view(100_001, 50), state: view(100_052, 1000) }, [], undefined, lease);
  })();
  assert.deepEqual([arena.used, arena.retained], [0, 1088]);
  using lease = arena.lease(arena.capacity - 200_000);
  lease.bytes.fill(8, lease.start, lease.start + arena.capacity - 200_000);
  for (const handle of Object.values(handles ?? {})) assert.ok(cache.get(handle, undefined, lease)?.blob.bytes.every((byte) => byte === 7));
});

test("steps by handle leave their sources whole, so a repeated step gives the same bytes", async () => {
  const { cached } = await service.call<CachedReply>("optimizer.step", { ...call, reply: { cache: true } });
  const expected = await service.call<StepReply>("optimizer.step", { ...call, ...cached });
  for (let time = 0; time < 3; time++) {
    const again = await service.call<StepReply>("optimizer.step", { ...call, ...cached, reply: { cache: true } });
    requireSame(again.params, expected.params, "params");
    requireSame(again.state, expected.state, "state");
  }
  // A refused step changes nothing either.
  await requireError({ ...call, ...cached, grads: writeTensors(nan) }, "NON_FINITE_GRADIENT", "/grads");
  const skipped = await service.call<StepReply>("optimizer.step", { ...call, ...cached, grads: writeTensors(nan), non_finite: "skip" });
  const { state } = await service.call<StepReply>("optimizer.step", { ...call, ...cached });
  requireSame(state, expected.state, "state");
  const first = await service.call<StepReply>("optimizer.step", call);
  requireSame(skipped.params, first.params, "params of a skipped step");
  requireSame(skipped.state, first.state, "state of a skipped step");
});

test("tensors without a gradient, and slots of resting tensors, come back whole from a step by handle", async () => {
  const part = writeTensors({ w: { shape: SMALL.w, data: (gradsAt(SMALL, 0)["w"] as { data: Float32Array }).data } });
  const { cached, ...first } = await service.call<CachedReply>("optimizer.step", { ...call, reply: { cache: true } });
  const expected = await service.call<StepReply>("optimizer.step", { ...call, params: first.params, state: first.state, grads: part });
  const found = await service.call<StepReply>("optimizer.step", { ...call, ...cached, grads: part });
  requireSame(found.params, expected.params, "params");
  requireSame(found.state, expected.state, "state");
  const none = await service.call<StepReply>("optimizer.step", { ...call, ...cached, grads: writeTensors({}) });
  requireSame(none.params, first.params, "params without gradients");
});

test("handles stand for blobs in other methods, too", async () => {
  const { cached, params: stepped, state } = await service.call<CachedReply>("optimizer.step", { ...call, reply: { cache: true } });
  assert.deepEqual(await service.call("state.inspect", { state: cached?.state }), await service.call("state.inspect", { state }));
  const norms = (grads: unknown) => service.call("optimizer.norms", { grads, loss_scale: 2 });
  assert.deepEqual(await norms(cached?.params), await norms(stepped));
  // The loss scale divides a copy.
  assert.deepEqual(await norms(cached?.params), await norms(stepped));
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
  const result = await service.call<CachedReply & { skipped: boolean }>("optimizer.step", {
    ...call,
    grads: writeTensors(nan),
    non_finite: "skip",
    reply: { params: "bf16", cache: true, state: "none" },
  });
  assert.equal(result.skipped, true);
  assert.equal(readFile(result.params).entries.get("w")?.dtype, "BF16");
  const again = { ...call, ...result.cached, grads: writeTensors(nan), non_finite: "skip" };
  requireSame((await service.call<StepReply>("optimizer.step", again)).params, params, "params");
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

interface NormsReply {
  readonly grad_norm: number;
  readonly cached?: { readonly grads?: Name };
}

for (const lossScale of [1, 3])
  test(`norms keep gradients for one step, with loss scale ${lossScale}`, async () => {
    const options = { loss_scale: lossScale };
    const { grad_norm, cached } = await service.call<NormsReply>("optimizer.norms", { grads, ...options, reply: { cache: true } });
    assert.ok(cached?.grads);
    const step = { ...call, ...options, clip: { max_norm: 0.1, total_norm: grad_norm } };
    const expected = await service.call<StepReply>("optimizer.step", step);
    // A refused step does not use the gradients up.
    await requireError({ ...step, grads: cached.grads, params: nan }, "INVALID_PARAMS", "/params/w/values");
    const found = await service.call<StepReply>("optimizer.step", { ...step, grads: cached.grads });
    requireSame(found.params, expected.params, "parameters");
    requireSame(found.state, expected.state, "state");
    await requireError({ ...step, grads: cached.grads }, "BLOB_MISSING", "/grads");
  });

test("norms keep no gradients without a cache, and none that came by name", async () => {
  const plain = { w: { shape: [2], values: [1, 2] } };
  assert.equal((await service.call<NormsReply>("optimizer.norms", { grads: plain, reply: { cache: true } })).cached, undefined);
  await using other = await TestService.start({});
  assert.equal((await other.call<NormsReply>("optimizer.norms", { grads, reply: { cache: true } })).cached, undefined);
});
