/**
 * Tests three replicas behind HAProxy: no step is lost while each replica restarts under load, or while two are killed in turn.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { Client } from "../../clients/typescript/src/index.ts";
import { RawClient, sgdBody } from "../http/_client.ts";
import { TestService } from "../support/service.ts";
import { Haproxy } from "./_haproxy.ts";
import { failuresOf, type LoadCounts, type Run, record, train } from "./_load.ts";

/**
 * Bodies of the first load fit HAProxy's buffer, so HAProxy can resend them. Bodies of the second load do not fit. Bodies of
 * the third load have 64 MiB.
 */
const LOADS = [
  { shapes: { w: [10, 40], b: [40] }, trainers: 4, steps: 20 },
  { shapes: { w: [256, 512], b: [512] }, trainers: 4, steps: 20 },
  { shapes: { w: [2048, 2048] }, trainers: 1, steps: 3 },
] as const;

/** The grace period exceeds the time that HAProxy needs to notice a drain, with a margin for a busy machine. */
const SETTINGS = { STEPD_WORKERS: "1", STEPD_ARENA_MIB: "384", STEPD_DRAIN_GRACE_MS: "4000" } as const;

class Cluster implements AsyncDisposable {
  readonly haproxy: Haproxy;
  readonly #settings: Readonly<Record<string, string>>;
  readonly #replicas: TestService[];

  private constructor(settings: Readonly<Record<string, string>>, replicas: TestService[], haproxy: Haproxy) {
    this.#settings = settings;
    this.#replicas = replicas;
    this.haproxy = haproxy;
  }

  static async start(settings: Readonly<Record<string, string>> = SETTINGS): Promise<Cluster> {
    const replicas = await Promise.all([1, 2, 3].map(() => TestService.start(settings)));
    try {
      return new Cluster(settings, replicas, await Haproxy.start(replicas.map(({ url }) => url)));
    } catch (error) {
      await Promise.all(replicas.map((replica) => replica[Symbol.asyncDispose]()));
      throw error;
    }
  }

  /** Returns a replica by its number in haproxy.cfg, from 1. */
  replica(number: number): TestService {
    return this.#replicas[number - 1] as TestService;
  }

  /** Restarts a replica at its old address, and waits until HAProxy uses it again. */
  async startAgain(number: number): Promise<void> {
    const { port } = new URL(this.replica(number).url);
    this.#replicas[number - 1] = await TestService.start({ ...this.#settings, STEPD_PORT: port });
    await this.haproxy.waitFor(number, "UP");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.haproxy, ...this.#replicas].map((part) => part[Symbol.asyncDispose]()));
  }
}

/** Runs the load while `happen` disturbs the replicas. Every step before, during and after must return the right bytes. */
const underLoad = async (happen: (cluster: Cluster, tally: LoadCounts) => Promise<void>): Promise<LoadCounts> => {
  await using cluster = await Cluster.start();
  const runs: Run[] = [];
  for (const { shapes, steps } of LOADS) runs.push(await record(cluster.replica(1).url, shapes, steps));
  const tally: LoadCounts = { steps: 0, failures: new Map() };
  const stop = new AbortController();
  const trainers = LOADS.flatMap(({ trainers: count }, index) =>
    Array.from({ length: count }, () => train(cluster.haproxy.url, runs[index] as Run, tally, stop.signal)),
  );
  const all = Promise.all(trainers);
  try {
    await untilMoreSteps(tally, all);
    await Promise.race([all, happen(cluster, tally)]);
    await untilMoreSteps(tally, all);
  } finally {
    stop.abort();
    await all;
  }
  return tally;
};

/** Waits until the trainers have taken 50 more steps. */
const untilMoreSteps = async (tally: LoadCounts, trainers: Promise<unknown>): Promise<void> => {
  const goal = tally.steps + 50;
  while (tally.steps < goal) await Promise.race([pause(20), trainers]);
};

const describe = ({ steps, failures }: LoadCounts): string =>
  `${steps} steps; a caller without retries would have seen ${JSON.stringify(Object.fromEntries(failures))}`;

test("a rolling restart under load loses no step, and callers need no retries", async (t) => {
  const tally = await underLoad(async (cluster) => {
    for (const number of [1, 2, 3]) {
      const start = performance.now();
      const exit = cluster.replica(number).stop();
      await cluster.haproxy.waitFor(number, "DOWN");
      const noticedMs = Math.round(performance.now() - start);
      assert.equal(await exit, 0);
      t.diagnostic(`replica ${number}: HAProxy noticed after ${noticedMs} ms, and it ended with 0 after ${Math.round(performance.now() - start)} ms`);
      await cluster.startAgain(number);
    }
  });
  t.diagnostic(describe(tally));
  assert.equal(failuresOf(tally), 0);
});

test("killing a replica under load loses no step", async (t) => {
  const tally = await underLoad(async (cluster) => {
    for (const number of [2, 3]) {
      await cluster.replica(number).stop("SIGKILL");
      await cluster.haproxy.waitFor(number, "DOWN");
      await cluster.startAgain(number);
    }
  });
  t.diagnostic(describe(tally));
});

test("HAProxy resends a small call that a draining replica refuses", async () => {
  // Without a grace period, HAProxy sends calls to the draining replica until its next check.
  await using cluster = await Cluster.start({ ...SETTINGS, STEPD_DRAIN_GRACE_MS: "0" });
  const replica = cluster.replica(1);
  using upload = await RawClient.connect(replica);
  const body = sgdBody(1000, 2);
  await upload.hold(body.length);
  const exit = replica.stop();
  const client = new Client(cluster.haproxy.url, { retries: 0 });
  const w = { shape: [100], data: new Float32Array(100).fill(3) };
  for (let call = 0; call < 30; call++) {
    const { params } = await client.step({ optimizer: { name: "sgd", lr: 1 }, params: { w }, grads: { w } });
    assert.ok(params["w"]?.data.every((value) => value === 0));
  }
  assert.ok((await cluster.haproxy.metric("haproxy_server_redispatch_warnings_total", 'proxy="stepd",server="stepd-1"')) > 0);
  upload.send(body);
  assert.equal((await upload.reply())?.status, 200);
  assert.equal(await exit, 0);
});

test("HAProxy forwards the caller's request id, and sets one if it is missing", async () => {
  await using cluster = await Cluster.start();
  const idOf = async (headers: Record<string, string>): Promise<string | null> => {
    const response = await fetch(`${cluster.haproxy.url}/v1`, { headers });
    await response.arrayBuffer();
    return response.headers.get("x-request-id");
  };
  assert.equal(await idOf({ "X-Request-Id": "run-7.step-12" }), "run-7.step-12");
  const given = await idOf({});
  assert.ok(given);
  const deadline = performance.now() + 5000;
  while (!cluster.haproxy.log.join("").includes(`id=${given}`)) {
    assert.ok(performance.now() < deadline, `HAProxy's log has ${given}`);
    await pause(10);
  }
});

test("HAProxy reports not ready if no replica is ready", async () => {
  await using cluster = await Cluster.start();
  const ready = async (): Promise<number> => (await fetch(`${cluster.haproxy.url}/health/ready`)).status;
  assert.equal(await ready(), 200);
  for (const number of [1, 2, 3]) await cluster.replica(number).stop("SIGKILL");
  for (const number of [1, 2, 3]) await cluster.haproxy.waitFor(number, "DOWN");
  assert.equal(await ready(), 503);
});

test("three trickling uploads that announce 260 MB do not block a trainer's steps", async (t) => {
  await using cluster = await Cluster.start({ STEPD_WORKERS: "1", STEPD_ARENA_MIB: "256" });
  const run = await record(cluster.replica(1).url, { w: [1024, 2048] }, 10);
  await using stack = new AsyncDisposableStack();
  const uploads = await Promise.all(
    [1, 2, 3].map(async () => {
      const upload = stack.use(await RawClient.connect({ url: cluster.haproxy.url }));
      upload.head("/v1/step", { "Content-Length": 260_000_000 });
      const timer = setInterval(() => upload.send(Buffer.alloc(600)), 100);
      stack.defer(() => clearInterval(timer));
      return upload;
    }),
  );
  const held = async (): Promise<number> =>
    Math.min(...(await Promise.all([1, 2, 3].map((number) => cluster.replica(number).metric("stepd_arena_used_bytes")))));
  while ((await held()) < 200_000_000) await pause(20);
  const tally: LoadCounts = { steps: 0, failures: new Map() };
  const stop = new AbortController();
  const training = train(cluster.haproxy.url, run, tally, stop.signal);
  while (tally.steps < 20) await Promise.race([pause(20), training]);
  stop.abort();
  await training;
  t.diagnostic(describe(tally));
  const refusals = await Promise.all(uploads.map((upload) => upload.reply()));
  for (const refusal of refusals) assert.equal(refusal?.status, 408);
});
