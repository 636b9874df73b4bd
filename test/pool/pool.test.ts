/** The pool: any number of workers gives the bytes of one thread, and neither a dead worker nor a kernel's trap ends more than its call. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";
import { Arena, type Lease } from "../../src/arena/arena.ts";
import { Pool, poolBytes, SHARD, type Unit } from "../../src/pool/pool.ts";
import { random } from "../support/tensors.ts";

const kernels = new URL("../../build/kernels.wasm", import.meta.url);

interface Made extends AsyncDisposable {
  readonly arena: Arena;
  readonly pool: Pool;
  readonly lost: unknown[];
}

const start = async (workers: number, mebibytes = 64): Promise<Made> => {
  const arena = new Arena(mebibytes, poolBytes(workers));
  const lost: unknown[] = [];
  const pool = await Pool.start(arena, kernels, workers, { wideVectors: true, onWorkerLost: (cause) => lost.push(cause) });
  // The workers do not keep a process running, and a test has nothing else that does.
  const keepAlive = setInterval(() => {}, 2 ** 30);
  const dispose = async (): Promise<void> => {
    clearInterval(keepAlive);
    await pool[Symbol.asyncDispose]();
  };
  return { arena, pool, lost, [Symbol.asyncDispose]: dispose };
};

const address = (start: number, stride = 4) => ({ address: start, stride });

/** p -= lr * g for parameters of all zeros and gradients of all ones. */
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

/** What gradient_norm writes for a block: four float64 sums. */
const NORM_SUMS_BYTES = 32;

/** Momentum on three tensors of which none is a whole number of shards, and sums of squares of their gradients. */
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
  const units = [3 * SHARD + 5, 7, SHARD * 2 - 1].map((elements): Unit => {
    const [param, grad, buffer] = [fill(elements), fill(elements), fill(elements)];
    const bytes = Math.ceil(elements / SHARD) * NORM_SUMS_BYTES;
    const sums = lease.allocZeros(bytes);
    views.push(lease.view(sums, bytes));
    return {
      elements,
      calls: [
        { kernel: pool.kernel("gradient_norm_f32"), pointers: [address(grad), address(sums, NORM_SUMS_BYTES / SHARD)], scalars: [] },
        { kernel: pool.kernel("sgd_momentum_f32"), pointers: [address(param), address(grad), address(buffer)], scalars: [0.01, 0.1, 0.9, 1, 0.9] },
      ],
    };
  });
  return { units, bytes: () => Buffer.concat(views) };
};

/** Jobs of so few elements run on the calling thread: one unit at a time, and shard by shard for the large one. */
const inline = async (): Promise<Buffer> => {
  await using made = await start(1);
  using lease = made.arena.lease(0);
  const { units, bytes } = mixedJob(made.pool, lease);
  for (const { elements, calls } of units) {
    for (let at = 0; at < elements; at += SHARD) {
      const part = calls.map((call) => ({ ...call, pointers: call.pointers.map(({ address, stride }) => ({ address: address + at * stride, stride })) }));
      await made.pool.run([{ elements: Math.min(SHARD, elements - at), calls: part }], lease);
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

test("a job of nothing, and one with empty tensors, are done", async () => {
  await using made = await start(2);
  using lease = made.arena.lease(0);
  await made.pool.run([], lease);
  const { unit, param } = sgd(made.pool, lease, 3 * SHARD);
  await made.pool.run([{ ...unit, elements: 0 }, unit, { ...unit, elements: 0 }], lease);
  requireAll(lease, param, 3 * SHARD, -1);
});

test("jobs queue, and every one is finished when its own call returns", async () => {
  await using made = await start(2);
  const runs = Array.from({ length: 20 }, async (_, index) => {
    using lease = made.arena.lease(0);
    const { param, unit } = sgd(made.pool, lease, 3 * SHARD, index);
    await made.pool.run([unit], lease);
    requireAll(lease, param, 3 * SHARD, index === 0 ? 0 : -index);
  });
  assert.ok(made.pool.queued > 0);
  await Promise.all(runs);
  assert.equal(made.pool.queued, 0);
  assert.equal(made.arena.used, 0);
});

test("thousands of jobs one after the other are each finished when they say so", async () => {
  await using made = await start(7);
  using lease = made.arena.lease(0);
  const { param, unit } = sgd(made.pool, lease, 2 * SHARD + 1);
  for (let i = 1; i <= 2000; i++) {
    await made.pool.run([unit], lease);
    const view = floats(lease, param, 2 * SHARD + 1);
    for (const at of [0, SHARD - 1, SHARD, 2 * SHARD - 1, 2 * SHARD]) assert.equal(view[at], -i);
  }
});

test("a late notification for an earlier job does not end the one that runs", async () => {
  await using made = await start(2, 512);
  using lease = made.arena.lease(0);
  const elements = 32 * 2 ** 20;
  const { param, unit } = sgd(made.pool, lease, elements);
  const { waitAsync } = Atomics;
  let wakes = 0;
  // Each wait is woken at once, as a worker does that notifies late.
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

test("a worker that ends in the middle of a job fails that call, is replaced, and the next job is right", async () => {
  await using made = await start(2, 512);
  using lease = made.arena.lease(0);
  const elements = 32 * 2 ** 20;
  const { unit } = sgd(made.pool, lease, elements);
  const failing = made.pool.run(Array<Unit>(20).fill(unit), lease);
  const [worker] = made.pool.threads;
  void worker?.terminate();
  await assert.rejects(failing, { code: "INTERNAL_ERROR", message: /worker thread died/ });
  assert.equal(made.lost.length, 1);
  const after = sgd(made.pool, lease, 3 * SHARD);
  await made.pool.run([after.unit], lease);
  requireAll(lease, after.param, 3 * SHARD, -1);
  assert.notEqual(made.pool.threads[0], worker);
});

test("all workers ending at once fail the job once, and all are replaced", async () => {
  await using made = await start(3, 512);
  using lease = made.arena.lease(0);
  const { unit } = sgd(made.pool, lease, 32 * 2 ** 20);
  const failing = made.pool.run(Array<Unit>(20).fill(unit), lease);
  for (const worker of [...made.pool.threads]) void worker.terminate();
  await assert.rejects(failing, { code: "INTERNAL_ERROR", message: /worker thread died/ });
  const after = sgd(made.pool, lease, 5 * SHARD);
  await made.pool.run([after.unit], lease);
  requireAll(lease, after.param, 5 * SHARD, -1);
});

test("a worker that ends while nothing runs is replaced, and no call sees it", async () => {
  await using made = await start(2);
  using lease = made.arena.lease(0);
  const worker = made.pool.threads[1];
  assert.ok(worker);
  const ended = once(worker, "exit");
  void worker.terminate();
  await ended;
  const { param, unit } = sgd(made.pool, lease, 3 * SHARD);
  await made.pool.run([unit], lease);
  requireAll(lease, param, 3 * SHARD, -1);
  assert.equal(made.lost.length, 1);
});

test("jobs that wait behind one whose worker dies are run", async () => {
  await using made = await start(2, 512);
  using lease = made.arena.lease(0);
  const large = sgd(made.pool, lease, 32 * 2 ** 20);
  const small = sgd(made.pool, lease, 3 * SHARD);
  const failing = made.pool.run(Array<Unit>(20).fill(large.unit), lease);
  const waiting = made.pool.run([small.unit], lease);
  void made.pool.threads[0]?.terminate();
  await assert.rejects(failing, { code: "INTERNAL_ERROR" });
  await waiting;
  requireAll(lease, small.param, 3 * SHARD, -1);
});

for (const [where, elements] of [
  ["on the workers", 4 * SHARD],
  ["on the calling thread", 100],
] as const) {
  test(`a kernel that traps ${where} fails its call only`, async () => {
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

test("a kernel that is not there is named", async () => {
  await using made = await start(1);
  assert.throws(() => made.pool.kernel("no_such_kernel"), /no_such_kernel/);
});

test("tensors above 3 GiB in the arena are stepped like any other", async () => {
  await using made = await start(2, 3500);
  using lease = made.arena.lease(3 * 2 ** 30);
  for (const elements of [100, 3 * SHARD]) {
    const { param, unit } = sgd(made.pool, lease, elements);
    assert.ok(param > 3 * 2 ** 30);
    await made.pool.run([unit], lease);
    requireAll(lease, param, elements, -1);
  }
});
