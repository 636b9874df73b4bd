/**
 * Tests the worker pool: any number of workers gives the bytes of one thread, other workers take over a dead worker's shards,
 * and a trap fails only its call.
 */
import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { Arena, type Lease } from "../../src/arena/arena.ts";
import { type Call, Pool, poolBytes, SHARD_ELEMENTS, type Unit } from "../../src/pool/pool.ts";
import { random } from "../support/tensors.ts";

const kernels = new URL("../../build/kernels.wasm", import.meta.url);

interface RunningPool extends AsyncDisposable {
  readonly arena: Arena;
  readonly pool: Pool;
  readonly lost: unknown[];
}

const start = async (workers: number, mebibytes = 64): Promise<RunningPool> => {
  const arena = new Arena(mebibytes, poolBytes(workers));
  const lost: unknown[] = [];
  const pool = await Pool.start(arena, kernels, workers, { wideVectors: true, onWorkerLost: (cause) => lost.push(cause) });
  // Workers do not keep a process alive, so this timer keeps it alive.
  const keepAlive = setInterval(() => {}, 2 ** 30);
  const dispose = async (): Promise<void> => {
    clearInterval(keepAlive);
    await pool[Symbol.asyncDispose]();
  };
  return { arena, pool, lost, [Symbol.asyncDispose]: dispose };
};

const address = (start: number, stride = 4) => ({ address: start, stride });

/** Returns a job that computes p -= lr * g, with parameters 0 and gradients 1. */
const sgd = (pool: Pool, lease: Lease, elements: number, lr = 1): { readonly param: number; readonly unit: Unit } => {
  const param = lease.allocZeros(elements * 4);
  const grad = lease.alloc(elements * 4);
  new Float32Array(lease.arena.memory.buffer, grad, elements).fill(1);
  return { param, unit: { elements, calls: [{ kernel: pool.kernel("sgd_f32"), pointers: [address(param), address(grad)], scalars: [0, lr] }] } };
};

const floats = (lease: Lease, start: number, elements: number): Float32Array => new Float32Array(lease.arena.memory.buffer, start, elements);

const requireAll = (lease: Lease, param: number, elements: number, expected: number): void => {
  const wrong = floats(lease, param, elements).findIndex((value) => value !== expected);
  assert.equal(wrong, -1, `element ${wrong} is ${floats(lease, param, elements)[wrong]}, not ${expected}`);
};

/** gradient_norm writes this many bytes for a block: four float64 sums. */
const NORM_SUMS_BYTES = 32;

/**
 * Returns a job with momentum on three tensors, each with an incomplete last shard, and with sums of their squared gradients.
 */
const mixedJob = (pool: Pool, lease: Lease): { readonly units: Unit[]; bytes(): Buffer } => {
  const next = random(1);
  const views: Buffer[] = [];
  const fill = (elements: number): number => {
    const start = lease.alloc(elements * 4);
    const view = floats(lease, start, elements);
    for (let i = 0; i < elements; i++) view[i] = next();
    views.push(lease.view(start, elements * 4));
    return start;
  };
  const units = [3 * SHARD_ELEMENTS + 5, 7, SHARD_ELEMENTS * 2 - 1].map((elements): Unit => {
    const [param, grad, buffer] = [fill(elements), fill(elements), fill(elements)];
    const bytes = Math.ceil(elements / SHARD_ELEMENTS) * NORM_SUMS_BYTES;
    const sums = lease.allocZeros(bytes);
    views.push(lease.view(sums, bytes));
    return {
      elements,
      calls: [
        { kernel: pool.kernel("gradient_norm_f32"), pointers: [address(grad), address(sums, NORM_SUMS_BYTES / SHARD_ELEMENTS)], scalars: [] },
        { kernel: pool.kernel("sgd_momentum_f32"), pointers: [address(param), address(grad), address(buffer)], scalars: [0.01, 0.1, 0.9, 1, 0.9] },
      ],
    };
  });
  return { units, bytes: () => Buffer.concat(views) };
};

/**
 * Returns the result of the calling thread, which runs jobs this small itself: each unit alone, and the large unit shard by
 * shard.
 */
const inline = async (): Promise<Buffer> => {
  await using made = await start(1);
  using lease = made.arena.lease(0);
  const { units, bytes } = mixedJob(made.pool, lease);
  for (const { elements, calls } of units) {
    for (let at = 0; at < elements; at += SHARD_ELEMENTS) {
      const part = calls.map((call) => ({ ...call, pointers: call.pointers.map(({ address, stride }) => ({ address: address + at * stride, stride })) }));
      await made.pool.run([{ elements: Math.min(SHARD_ELEMENTS, elements - at), calls: part }], lease);
    }
  }
  return bytes();
};

test("1, 2, 3 and 7 workers give the bytes of the calling thread", async () => {
  const expected = await inline();
  for (const workers of [1, 2, 3, 7]) {
    await using made = await start(workers);
    using lease = made.arena.lease(0);
    const { units, bytes } = mixedJob(made.pool, lease);
    await made.pool.run(units, lease);
    assert.ok(bytes().equals(expected), `${workers} workers`);
    assert.ok(made.pool.busySeconds > 0, "the workers did it");
  }
});

test("an empty job, and one with empty tensors, complete", async () => {
  await using made = await start(2);
  using lease = made.arena.lease(0);
  await made.pool.run([], lease);
  const { unit, param } = sgd(made.pool, lease, 3 * SHARD_ELEMENTS);
  await made.pool.run([{ ...unit, elements: 0 }, unit, { ...unit, elements: 0 }], lease);
  requireAll(lease, param, 3 * SHARD_ELEMENTS, -1);
});

test("queued jobs are complete when their own calls return", async () => {
  await using made = await start(2);
  const runs = Array.from({ length: 20 }, async (_, index) => {
    using lease = made.arena.lease(0);
    const { param, unit } = sgd(made.pool, lease, 3 * SHARD_ELEMENTS, index);
    await made.pool.run([unit], lease);
    requireAll(lease, param, 3 * SHARD_ELEMENTS, index === 0 ? 0 : -index);
  });
  assert.ok(made.pool.queued > 0);
  await Promise.all(runs);
  assert.equal(made.pool.queued, 0);
  assert.equal(made.arena.used, 0);
});

test("each of 2,000 consecutive jobs is complete when its call returns", async () => {
  await using made = await start(7);
  using lease = made.arena.lease(0);
  const { param, unit } = sgd(made.pool, lease, 2 * SHARD_ELEMENTS + 1);
  for (let i = 1; i <= 2000; i++) {
    await made.pool.run([unit], lease);
    const view = floats(lease, param, 2 * SHARD_ELEMENTS + 1);
    for (const at of [0, SHARD_ELEMENTS - 1, SHARD_ELEMENTS, 2 * SHARD_ELEMENTS - 1, 2 * SHARD_ELEMENTS]) assert.equal(view[at], -i);
  }
});

test("a late notification of an earlier job does not end the running one", async () => {
  await using made = await start(2, 512);
  using lease = made.arena.lease(0);
  const elements = 32 * 2 ** 20;
  const { param, unit } = sgd(made.pool, lease, elements);
  const { waitAsync } = Atomics;
  let wakes = 0;
  // This waitAsync wakes every wait at once, as a late notification of a worker does.
  Atomics.waitAsync = ((array: Int32Array, index: number, value: number) => {
    const waiting = waitAsync(array, index, value);
    if (wakes++ < 3) Atomics.notify(array, index);
    return waiting;
  }) as typeof waitAsync;
  try {
    await made.pool.run([unit], lease);
  } finally {
    Atomics.waitAsync = waitAsync;
  }
  assert.ok(wakes > 1);
  requireAll(lease, param, elements, -1);
});

/** The number of kernel calls per shard. Together they take seconds. */
const LONG = 200_000;

/** Returns a job of three shards with LONG steps of SGD each. begun() resolves once a shard has begun. */
const longJob = (pool: Pool, lease: Lease): { readonly unit: Unit; begun(shard: number): Promise<void> } => {
  const { param, unit } = sgd(pool, lease, 3 * SHARD_ELEMENTS);
  const view = floats(lease, param, 3 * SHARD_ELEMENTS);
  const begun = async (shard: number): Promise<void> => {
    while (view[shard * SHARD_ELEMENTS] === 0) await delay(1);
  };
  return { unit: { ...unit, calls: unit.calls.flatMap((call) => Array<Call>(LONG).fill(call)) }, begun };
};

test("a job with a half-done shard fails so that the caller sends it again, and the next job succeeds on new workers", async () => {
  await using made = await start(2, 128);
  using lease = made.arena.lease(0);
  const { unit, begun } = longJob(made.pool, lease);
  const failing = made.pool.run([unit], lease);
  failing.catch(() => {});
  await Promise.all([begun(0), begun(1)]);
  const workers = [...made.pool.threads];
  for (const worker of workers) void worker.terminate();
  await assert.rejects(failing, { code: "WORKER_LOST", message: /worker thread died/, detail: { retry_after: 1 } });
  assert.equal(made.lost.length, 2);
  const after = sgd(made.pool, lease, 3 * SHARD_ELEMENTS);
  await made.pool.run([after.unit], lease);
  requireAll(lease, after.param, 3 * SHARD_ELEMENTS, -1);
  for (const [index, worker] of workers.entries()) assert.notEqual(made.pool.threads[index], worker);
});

test("other workers take over shards that a lost worker had not begun", async () => {
  for (const ended of [[0], [1], [0, 1]]) {
    await using made = await start(2);
    using lease = made.arena.lease(0);
    const elements = 40 * SHARD_ELEMENTS;
    const { param, unit } = sgd(made.pool, lease, elements);
    // The workers are asleep, so they end before they take a shard.
    for (const index of ended) void made.pool.threads[index]?.terminate();
    await made.pool.run([unit], lease);
    requireAll(lease, param, elements, -1);
    assert.equal(made.lost.length, ended.length);
  }
});

test("a half-done shard that overwrites nothing is repeated", async () => {
  await using made = await start(2, 128);
  using lease = made.arena.lease(0);
  const { param, unit } = sgd(made.pool, lease, 3 * SHARD_ELEMENTS);
  floats(lease, param, 3 * SHARD_ELEMENTS).fill(2);
  const sums = lease.allocZeros(3 * NORM_SUMS_BYTES);
  const norm = { kernel: made.pool.kernel("gradient_norm_f32"), pointers: [address(param), address(sums, NORM_SUMS_BYTES / SHARD_ELEMENTS)], scalars: [] };
  const squares = new Float64Array(made.arena.memory.buffer, sums, 12);
  const job = { elements: 3 * SHARD_ELEMENTS, calls: Array<Call>(LONG / 20).fill(norm) };
  const running = made.pool.run(
    [
      { ...job, isRepeatable: true },
      { ...unit, elements: 0 },
    ],
    lease,
  );
  while (!squares.some((value) => value !== 0)) await delay(1);
  for (const worker of [...made.pool.threads]) void worker.terminate();
  await running;
  assert.equal(made.lost.length, 2);
  for (let shard = 0; shard < 3; shard++) assert.ok(squares.subarray(4 * shard, 4 * shard + 4).includes(4 * SHARD_ELEMENTS), `${squares}`);
});

test("a job that loses its workers in every attempt fails in the end", async () => {
  await using made = await start(1, 128);
  using lease = made.arena.lease(0);
  const { param } = sgd(made.pool, lease, 3 * SHARD_ELEMENTS);
  const sums = lease.allocZeros(3 * NORM_SUMS_BYTES);
  const norm = { kernel: made.pool.kernel("gradient_norm_f32"), pointers: [address(param), address(sums, NORM_SUMS_BYTES / SHARD_ELEMENTS)], scalars: [] };
  const running = made.pool.run([{ elements: 3 * SHARD_ELEMENTS, calls: Array<Call>(LONG).fill(norm), isRepeatable: true }], lease);
  let isOver = false;
  const rejected = assert.rejects(running, { code: "WORKER_LOST" }).finally(() => {
    isOver = true;
  });
  let seen: unknown;
  while (!isOver) {
    const [worker] = made.pool.threads;
    if (worker !== seen) void worker?.terminate();
    seen = worker;
    await delay(20);
  }
  await rejected;
});

test("a worker that ends while idle is replaced, and no call notices", async () => {
  await using made = await start(2);
  using lease = made.arena.lease(0);
  const worker = made.pool.threads[1];
  assert.ok(worker);
  const ended = once(worker, "exit");
  void worker.terminate();
  await ended;
  const { param, unit } = sgd(made.pool, lease, 3 * SHARD_ELEMENTS);
  await made.pool.run([unit], lease);
  requireAll(lease, param, 3 * SHARD_ELEMENTS, -1);
  assert.equal(made.lost.length, 1);
});

test("jobs that wait behind a job with dying workers run", async () => {
  await using made = await start(2, 128);
  using lease = made.arena.lease(0);
  const { unit, begun } = longJob(made.pool, lease);
  const small = sgd(made.pool, lease, 3 * SHARD_ELEMENTS);
  const failing = made.pool.run([unit], lease);
  failing.catch(() => {});
  const waiting = made.pool.run([small.unit], lease);
  await begun(0);
  for (const worker of [...made.pool.threads]) void worker.terminate();
  await assert.rejects(failing, { code: "WORKER_LOST" });
  await waiting;
  requireAll(lease, small.param, 3 * SHARD_ELEMENTS, -1);
});

for (const [where, elements] of [
  ["on the workers", 4 * SHARD_ELEMENTS],
  ["on the calling thread", 100],
] as const) {
  test(`a kernel that traps ${where} fails only its call`, async () => {
    await using made = await start(2);
    using lease = made.arena.lease(0);
    const { unit } = sgd(made.pool, lease, elements);
    const outside = address(made.arena.bytes.length - 8);
    const trap: Unit = { ...unit, calls: unit.calls.map((call) => ({ ...call, pointers: [outside, outside] })) };
    await assert.rejects(made.pool.run([trap], lease), (error: Error) => error instanceof WebAssembly.RuntimeError || /kernel failed/.test(error.message));
    const after = sgd(made.pool, lease, elements);
    await made.pool.run([after.unit], lease);
    requireAll(lease, after.param, elements, -1);
    assert.deepEqual(made.lost, []);
  });
}

test("the error for an unknown kernel names it", async () => {
  await using made = await start(1);
  assert.throws(() => made.pool.kernel("no_such_kernel"), /no_such_kernel/);
});

test("tensors above 3 GiB in the arena are stepped correctly", async () => {
  await using made = await start(2, 3500);
  using lease = made.arena.lease(3 * 2 ** 30);
  for (const elements of [100, 3 * SHARD_ELEMENTS]) {
    const { param, unit } = sgd(made.pool, lease, elements);
    assert.ok(param > 3 * 2 ** 30);
    await made.pool.run([unit], lease);
    requireAll(lease, param, elements, -1);
  }
});
