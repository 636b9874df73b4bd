/** Tests the TypeScript client on real servers. */
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { after, before, suite, test } from "node:test";
import { TestService } from "../../../test/support/service.ts";
import { randomTensors } from "../../../test/support/tensors.ts";
import { Client, ShardedClient, State, StepdError, type Tensor, type Tensors, TransportError } from "../src/index.ts";

const SHAPES = { "layer.weight": [50, 40], "layer.bias": [40], scale: [], ünï: [3], "￿": [2], "😀": [2] } as const;
const params = (): Tensors => randomTensors(SHAPES, 1);
const grads = (step: number): Tensors => randomTensors(SHAPES, 100 + step);
const optimizer = { name: "adamw", lr: 0.01 } as const;

let service: TestService;
let client: Client;
before(async () => {
  service = await TestService.start();
  client = new Client(service.url);
});
after(() => service[Symbol.asyncDispose]());

const sameTensors = (found: Readonly<Record<string, Tensor>>, expected: Readonly<Record<string, Tensor>>): void => {
  assert.deepEqual(Object.keys(found).sort(), Object.keys(expected).sort());
  for (const [name, { data }] of Object.entries(found)) {
    const other = expected[name]?.data as Float32Array;
    assert.ok(Buffer.from(data.buffer, data.byteOffset, data.byteLength).equals(Buffer.from(other.buffer, other.byteOffset, other.byteLength)), name);
  }
};

interface Now {
  readonly params: Tensors;
  readonly state: State | null;
}

/** Returns the part of a result that the next step needs. */
const nextInput = ({ params, state }: Now): Now => ({ params, state });

/** Takes steps with one client, as the reference for the sharded runs. */
const run = async (steps: number): Promise<Now> => {
  let now: Now = { params: params(), state: null };
  for (let step = 0; step < steps; step++) now = nextInput(await client.step({ optimizer, ...now, grads: grads(step), clip: { max_norm: 1 } }));
  return now;
};

suite("Client", () => {
  test("steps twice, and does not change its input", async () => {
    const start = params();
    const first = await client.step({ optimizer, params: start, grads: grads(0), stats: "tensor" });
    sameTensors(start as Record<string, Tensor>, params() as Record<string, Tensor>);
    assert.equal(first.step, 1);
    assert.equal(first.lr, 0.01);
    assert.ok((first.stats?.tensors?.["scale"]?.grad_norm as number) > 0);
    const second = await client.step({ optimizer, params: first.params, grads: grads(1), state: first.state });
    assert.deepEqual(second.state.steps["layer.weight"], 2);
    // Without a gradient, other parameters take no step.
    const { "layer.weight": one = assert.fail("layer.weight: no gradient") } = grads(2);
    const third = await client.step({ optimizer, params: second.params, grads: { "layer.weight": one }, state: second.state });
    assert.deepEqual([third.state.steps["layer.weight"], third.state.steps["scale"], third.state.step], [3, 2, 3]);
    assert.equal(second.state.optimizer, "adamw");
    assert.deepEqual(second.state.slotNames.toSorted(), ["exp_avg", "exp_avg_sq"]);
    for (const name of ["nope", undefined])
      assert.throws(() => second.state.slot(name as string), {
        name: "RangeError",
        message: `slot: expected one of exp_avg, exp_avg_sq, found ${name && '"nope"'}`,
      });
    const { state: bare } = await client.step({ optimizer: { name: "sgd" }, params: params(), grads: grads(0) });
    assert.throws(() => bare.slot("exp_avg"), /^RangeError: slot: expected none, because the state has no slots, found "exp_avg"$/);
    assert.equal(second.state.slot("exp_avg")["layer.bias"]?.data.length, 40);
  });

  test("a stored state resumes the run exactly", async () => {
    const half = await run(2);
    const stored = new State(Uint8Array.from(half.state?.bytes ?? []));
    const resumed = await client.step({ optimizer, params: half.params, grads: grads(2), state: stored, clip: { max_norm: 1 } });
    const straight = await run(3);
    sameTensors(resumed.params, straight.params as Record<string, Tensor>);
    assert.ok(Buffer.from(resumed.state.bytes).equals(Buffer.from(straight.state?.bytes ?? [])));
  });

  test("float64, BF16 and F16 parameters", async () => {
    const half = { shape: [2], data: Uint16Array.of(0x3f80, 0x4000), dtype: "BF16" } as const;
    const double = { shape: [2], data: Float64Array.of(1, 2) };
    const result = await client.step({ optimizer: { name: "sgd", lr: 0.5 }, params: { half, double }, grads: { half, double } });
    assert.deepEqual([...(result.params["half"]?.data ?? [])], [0x3f00, 0x3f80]);
    assert.deepEqual([...(result.params["double"]?.data ?? [])], [0.5, 1]);
  });

  test("the other methods", async () => {
    const state = await client.init({ optimizer, params: params() });
    assert.equal(state.steps["scale"], 0);
    assert.equal((await client.inspect(state)).optimizer, "adamw");
    const free = { name: "schedule_free_sgd" } as const;
    const w = (...data: number[]) => ({ w: { shape: [data.length], data: Float32Array.from(data) } });
    const first = await client.step({ optimizer: free, params: w(1, 2), grads: w(1, 1) });
    const second = await client.step({ optimizer: free, params: first.params, grads: w(2, 2), state: first.state });
    // The averages of z, which is [0, 1] after the first step and [-2, -1] after the second.
    const averages = await client.average({ optimizer: free, params: second.params, state: second.state });
    assert.deepEqual(
      [...(averages["w"]?.data ?? [])].map((value) => Math.round(value * 1e5) / 1e5 + 0),
      [-1, 0],
    );
    assert.ok(Number((await client.norms({ grads: grads(0) })).grad_norm) > 0);
    assert.equal((await client.plan({ optimizer, tensors: { w: { shape: [10] } } })).parameters, 10);
    assert.ok((await client.optimizers()).some(({ name }) => name === "lamb"));
    assert.equal((await client.describe("adamw")).title, "AdamW");
    const info = await client.info();
    assert.equal(info.name, "stepd");
    assert.ok(info.kernels.length > 0 && info.workers > 0 && (info.limits["arena_bytes"] ?? 0) > 0);
    assert.deepEqual(await client.evaluateSchedule({ schedule: { name: "exponential", gamma: 0.5 }, lr: 8, from: 1, count: 3 }), { lrs: [4, 2, 1] });
    assert.equal(await client.isReady(), true);
    assert.equal(await new Client("http://127.0.0.1:1").isReady(), false);
  });

  test("a state converts to torch's format and back to the same bytes", async () => {
    const { state } = await run(1);
    assert.ok(state);
    const names = Object.keys(SHAPES);
    const { file, lost } = await client.convert({ state, to: { format: "torch", names } });
    assert.deepEqual(lost, []);
    assert.throws(() => new State(file), /has the format stepd.state\/1/);
    const back = await client.convert({ state: file, from: { format: "torch", optimizer: "adamw", names } });
    assert.ok(Buffer.from(back.file).equals(Buffer.from(state.bytes)));
  });

  test("an error has the server's fields", async () => {
    await assert.rejects(client.step({ optimizer: { name: "adamw", lr: -1 }, params: params(), grads: {} }), (error) => {
      assert.ok(error instanceof StepdError);
      assert.deepEqual(
        [error.code, error.rpcCode, error.status, error.field, error.expected, error.found],
        ["INVALID_PARAMS", -32602, 400, "/optimizer/lr", "at least 0", "-1"],
      );
      assert.match(error.requestId ?? "", /^[0-9a-f-]{36}$/);
      return true;
    });
    await assert.rejects(new Client("http://127.0.0.1:1", { retries: 0 }).optimizers(), TransportError);
    await assert.rejects(client.step({ optimizer, params: { w: { shape: [2], data: Float32Array.of(1) } }, grads: {} }), /expected 2 values/);
  });

  test("retries after 429 with Retry-After, 503 and a lost connection", async () => {
    const replies: (number | "cut")[] = ["cut", 503, 429];
    const seen: number[] = [];
    const proxy = createServer(async (req, res) => {
      seen.push(Date.now());
      const reply = replies.shift();
      if (reply === "cut") return void req.socket.destroy();
      if (reply !== undefined) {
        const data = { name: reply === 429 ? "OVERLOADED" : "DRAINING", detail: "later", code: -32020, ...(reply === 429 && { retry_after: 1 }) };
        return void res.writeHead(reply, { "Content-Type": "application/problem+json" }).end(JSON.stringify(data));
      }
      const chunks: Buffer[] = [];
      for await (const chunk of req) chunks.push(chunk as Buffer);
      const answer = await service.post(req.url ?? "", Buffer.concat(chunks), req.headers["content-type"] ?? "");
      return void res.writeHead(answer.status, { "Content-Type": answer.headers.get("content-type") ?? "" }).end(Buffer.from(await answer.arrayBuffer()));
    });
    await new Promise<void>((resolve) => proxy.listen(0, "127.0.0.1", resolve));
    const { port } = proxy.address() as { port: number };
    try {
      const result = await new Client(`http://127.0.0.1:${port}`).step({ optimizer, params: params(), grads: grads(0) });
      assert.equal(result.step, 1);
      assert.equal(seen.length, 4);
      assert.ok((seen[3] as number) - (seen[2] as number) >= 1000, "Retry-After");
    } finally {
      proxy.closeAllConnections();
      proxy.close();
    }
  });
});

suite("ShardedClient", () => {
  test("has the bytes of one call, with clipping over all shards", async () => {
    const sharded = new ShardedClient([service.url], { requestBytes: 200 });
    let now: Now = { params: params(), state: null };
    for (let step = 0; step < 3; step++) now = nextInput(await sharded.step({ optimizer, ...now, grads: grads(step), clip: { max_norm: 1 } }));
    const whole = await run(3);
    sameTensors(now.params as Record<string, Tensor>, whole.params as Record<string, Tensor>);
    assert.ok(Buffer.from(now.state?.bytes ?? []).equals(Buffer.from(whole.state?.bytes ?? [])));
  });

  test("LAMB's max_grad_norm clips over all shards; skip skips every shard", async () => {
    const lamb = { name: "lamb", max_grad_norm: 0.5 } as const;
    const sharded = new ShardedClient([service.url], { requestBytes: 200 });
    const [part, whole] = [
      await sharded.step({ optimizer: lamb, params: params(), grads: grads(0) }),
      await client.step({ optimizer: lamb, params: params(), grads: grads(0) }),
    ];
    sameTensors(part.params, whole.params);
    const broken = { ...grads(1), scale: { shape: [], data: Float32Array.of(Number.NaN) } };
    const skipped = await sharded.step({ optimizer: lamb, params: part.params, state: part.state, grads: broken, non_finite: "skip" });
    assert.equal(skipped.skipped, true);
    sameTensors(skipped.params, part.params);
    await assert.rejects(
      sharded.step({ optimizer: lamb, params: part.params, state: part.state, grads: broken }),
      ({ code }: StepdError) => code === "NON_FINITE_GRADIENT",
    );
  });

  test("NaN and infinity are refused, skipped and propagated as in one call", async () => {
    const sharded = new ShardedClient([service.url], { requestBytes: 200 });
    const start = await run(1);
    const broken = { ...grads(1), scale: { shape: [], data: Float32Array.of(Number.NaN) } };
    for (const non_finite of ["skip", "propagate"] as const) {
      for (const state of [start.state, null]) {
        for (const clip of [{ max_norm: 1 }, { max_value: 1 }]) {
          const input = { optimizer, params: start.params, state, grads: broken, non_finite, clip };
          const [part, whole] = [await sharded.step(input), await client.step(input)];
          sameTensors(part.params, whole.params);
          assert.ok(Buffer.from(part.state.bytes).equals(Buffer.from(whole.state.bytes)));
          assert.deepEqual([part.step, part.lr, part.skipped], [whole.step, whole.lr, whole.skipped]);
        }
      }
    }
  });

  test("step and rate equal those of one call when step counts differ", async () => {
    const sharded = new ShardedClient([service.url], { requestBytes: 1 });
    const schedule = { name: "linear", start_factor: 0.1, total_iters: 10 } as const;
    const some = (...names: readonly string[]): Tensors => Object.fromEntries(Object.entries(grads(0)).filter(([name]) => names.includes(name)));
    let now: Now = { params: params(), state: null };
    for (let step = 0; step < 3; step++) now = nextInput(await client.step({ optimizer, ...now, grads: some("scale"), schedule }));
    now = nextInput(await client.step({ optimizer, ...now, grads: some("scale", "ünï"), schedule }));
    const broken = { ünï: { shape: [3], data: new Float32Array(3).fill(Number.NaN) } };
    for (const gradients of [some("ünï"), some("scale", "ünï"), some("layer.bias"), {}, broken, { ...some("scale"), ...broken }]) {
      const input = { optimizer, ...now, grads: gradients, schedule, non_finite: "skip" } as const;
      const [part, whole] = [await sharded.step(input), await client.step(input)];
      assert.deepEqual([part.step, part.lr, part.skipped], [whole.step, whole.lr, whole.skipped], `${Object.keys(gradients)}`);
      assert.ok(Buffer.from(part.state.bytes).equals(Buffer.from(whole.state.bytes)));
    }
  });

  test("norms use the arithmetic of the step when dtypes differ", async () => {
    const single = randomTensors({ v: [300] }, 1)["v"]?.data ?? new Float32Array();
    const double = Float64Array.from({ length: 300 }, (_, i) => Math.sin(i));
    const mixed = {
      params: { a: { shape: [300], data: single }, b: { shape: [300], data: double } },
      grads: { a: { shape: [300], data: double }, b: { shape: [300], data: single } },
    };
    const settings = { optimizer, clip: { max_norm: 0.1 }, loss_scale: 3 } as const;
    const [part, whole] = [
      await new ShardedClient([service.url], { requestBytes: 500 }).step({ ...settings, ...mixed }),
      await client.step({ ...settings, ...mixed }),
    ];
    assert.ok(Buffer.from(part.state.bytes).equals(Buffer.from(whole.state.bytes)));
  });

  test("three replicas, one killed in the middle of 200 steps: the final bytes are those of one server", async () => {
    const replicas = await Promise.all([0, 1, 2].map(() => TestService.start({ STEPD_WORKERS: "1", STEPD_ARENA_MIB: "32" })));
    try {
      const sharded = new ShardedClient(
        replicas.map(({ url }) => url),
        { requestBytes: 4000 },
      );
      let now: Now = { params: params(), state: null };
      for (let step = 0; step < 200; step++) {
        if (step === 100) void replicas[1]?.stop("SIGKILL");
        now = nextInput(await sharded.step({ optimizer, ...now, grads: grads(step), clip: { max_norm: 1 } }));
      }
      const whole = await run(200);
      sameTensors(now.params as Record<string, Tensor>, whole.params as Record<string, Tensor>);
      assert.ok(Buffer.from(now.state?.bytes ?? []).equals(Buffer.from(whole.state?.bytes ?? [])));
    } finally {
      for (const replica of replicas) await replica[Symbol.asyncDispose]();
    }
  });
});
