/** Tests runs whose parameters and state stay on the server, on servers that are killed in mid-run. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { TestService } from "../../../test/support/service.ts";
import { randomTensors } from "../../../test/support/tensors.ts";
import { Client, ResidentRun, ShardedClient, State, type Stepper, type StepResult, type Tensors } from "../src/index.ts";
import { type Body, digests, recordingFetch } from "./_folder.ts";

const tensors = (seed: number): Tensors => randomTensors({ w: [300, 40], bias: [300], scalar: [] }, seed);

const SETTINGS = { STEPD_CACHE_MIB: "64" };

let service: TestService;
let plain: Client;
before(async () => {
  service = await TestService.start(SETTINGS);
  plain = new Client(service.url);
});
after(() => service[Symbol.asyncDispose]());

test("runs survive the death of their server", async () => {
  let own = await TestService.start(SETTINGS);
  try {
    const { port } = new URL(own.url);
    const clients: readonly Stepper[] = [new Client(own.url, { warn: () => {} }), new ShardedClient([own.url], { requestBytes: 1, warn: () => {} })];
    const runs = clients.map((client) => new ResidentRun(client, { params: tensors(1), fetchEvery: 7 }));
    let expected: Pick<StepResult, "params"> & { state?: State } = { params: tensors(1) };
    const optimizer = { name: "adamw", lr: 0.01 } as { name: "adamw"; lr: number };
    for (let step = 0; step < 24; step++) {
      if (step === 11) {
        await own.stop("SIGKILL");
        own = await TestService.start({ ...SETTINGS, STEPD_PORT: port });
      }
      optimizer.lr = 0.01 / (step + 1);
      const grads = tensors(2 + step);
      expected = await plain.step({ optimizer, params: expected.params, grads, state: expected.state });
      const taken = runs.map((run) => run.step({ optimizer, grads }));
      // The runs have their own copies.
      for (const { data } of Object.values(grads)) data.fill(0);
      for (const { params } of await Promise.all(taken)) {
        assert.deepEqual(params, expected.params);
        assert.deepEqual(Object.keys(params), Object.keys(expected.params));
      }
    }
    for (const run of runs) assert.deepEqual(digests((await run.fetch()) as StepResult), digests(expected as StepResult));
  } finally {
    await own[Symbol.asyncDispose]();
  }
});

test("a step sends its gradients, and rounded parameters come down", async () => {
  const bodies: Body[] = [];
  const run = new ResidentRun(new Client(service.url, { fetch: recordingFetch(bodies) }), { params: tensors(1) });
  const optimizer = { name: "adamw" } as const;
  await run.step({ optimizer, grads: tensors(2) });
  const { params } = await run.step({ optimizer, grads: tensors(3), reply: { params: "bf16" } });
  assert.equal(params["w"]?.dtype, "BF16");
  assert.deepEqual(Object.keys(bodies[1]?.["params"] as object), ["handle"]);
  const { state } = await run.fetch();
  assert.ok(state instanceof State && state.steps["w"] === 2);
  const resumed = new ResidentRun(plain, { ...(await run.fetch()), fetchEvery: 1 });
  const { step } = await resumed.step({ optimizer, grads: tensors(4) });
  assert.equal(step, 3);
});

test("a refused step leaves the run as it was", async () => {
  const run = new ResidentRun(plain, { params: tensors(1) });
  const optimizer = { name: "adamw" } as const;
  const { params } = await run.step({ optimizer, grads: tensors(2) });
  const broken = tensors(3);
  (broken["w"]?.data as Float32Array)[0] = Number.NaN;
  await assert.rejects(run.step({ optimizer, grads: broken }), { code: "NON_FINITE_GRADIENT" });
  assert.equal((await run.step({ optimizer, grads: broken, non_finite: "skip" })).skipped, true);
  assert.deepEqual((await run.fetch()).params, params);
});

test("wrong arguments are named", async () => {
  await using bare = await TestService.start();
  const run = new ResidentRun(new Client(bare.url), { params: tensors(1) });
  const input = { optimizer: { name: "adamw" }, grads: tensors(2) } as const;
  await assert.rejects(run.step(input), { code: "INVALID_PARAMS", message: /STEPD_CACHE_MIB/ });
  await assert.rejects(run.step({ ...input, params: tensors(1) } as never), { name: "TypeError", message: /^params: expected none/ });
  await assert.rejects(run.step({ ...input, grads: undefined, reduce: { updates: [], form: "deltas" } } as never), {
    name: "TypeError",
    message: /^grads: expected tensors/,
  });
  await assert.rejects(run.step({ ...input, reply: { cache: true } } as never), { name: "TypeError", message: /^reply: expected params alone/ });
  await assert.rejects(run.step({ ...input, grads: { w: { shape: [1] } } } as never), { name: "TypeError", message: /^tensor "w": expected data/ });
  assert.throws(() => new ResidentRun({} as never, { params: {} }), /^TypeError: client: expected a Client/);
  assert.throws(() => new ResidentRun(plain, undefined as never), /^TypeError: options: expected/);
  assert.throws(() => new ResidentRun(plain, { params: tensors(1), fetchEvery: 0 }), /^TypeError: fetchEvery: expected/);
});
