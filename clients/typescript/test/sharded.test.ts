/** Tests that sharded steps give the results and the errors of one call, and avoid failing replicas. */
import assert from "node:assert/strict";
import { after, afterEach, before, mock, suite, test } from "node:test";
import { TestService } from "../../../test/support/service.ts";
import { rawTensors, readFile } from "../../../test/support/tensors.ts";
import { Client, ShardedClient, StepdError, type StepInput, type StepResult, type Tensor, type Tensors, TransportError } from "../src/index.ts";
import { FakeServer, MSGPACK } from "./_fake-server.ts";
import { type Body, recordingFetch } from "./_folder.ts";
import { bits } from "./_tensors.ts";

const vector = (...values: number[]): Tensor => ({ shape: [values.length], data: Float32Array.from(values) });
const double = (...values: number[]): Tensor => ({ shape: [values.length], data: Float64Array.from(values) });
const params: Tensors = { b: vector(1, 2), a: vector(-1, 3), "😀": vector(5), "￿": vector(7, 8, 9), d: double(0.25) };
const grads: Tensors = { b: vector(0.5, -0.5), a: vector(2, 0.1), "😀": vector(-3), "￿": vector(0, 1, 2), d: double(1e-3) };
const NaNs = vector(Number.NaN, 1);

let service: TestService;
let client: Client;
before(async () => {
  service = await TestService.start();
  client = new Client(service.url);
});
after(() => service[Symbol.asyncDispose]());

/** The input that both kinds of clients accept. */
type BothInput = Omit<StepInput, "stats" | "cached">;

/** Returns a step's result or error in a form that can be compared. */
const outcome = async (step: Promise<Omit<StepResult, "stats" | "cached">>): Promise<unknown> => {
  try {
    const { params: stepped, state, ...rest } = await step;
    return {
      ...rest,
      params: Object.entries(stepped).map(([name, { data }]) => [name, bits(data)]),
      optimizer: state.optimizer,
      state: bits(state.bytes as never),
    };
  } catch (error) {
    if (!(error instanceof StepdError)) throw error;
    const { code, field, expected, found, tensors } = error;
    return { code, field, expected, found, tensors };
  }
};

for (const state_dtype of ["BF16", "Q8"] as const) {
  test(`a sharded step joins moments in ${state_dtype} to the bytes of one call`, async () => {
    const wave = (scale: number): Tensor => vector(...Array.from({ length: 4200 }, (_, index) => Math.sin(index) * scale));
    const step = { optimizer: { name: "adamw", state_dtype }, grads: { c: wave(0.1), b: vector(0.5, -0.5), a: vector(2) } } as const;
    const first = await client.step({ ...step, params: { c: wave(1), b: vector(1, 2), a: vector(3) } });
    const next = { ...step, params: first.params, state: first.state };
    const whole = await outcome(client.step(next));
    assert.deepEqual(await outcome(new ShardedClient([service.url], { requestBytes: 1 }).step(next)), whole);
    const codes = first.state.slot("exp_avg")["c"]?.data;
    assert.ok(state_dtype === "Q8" ? codes instanceof Int8Array : codes instanceof Uint16Array);
  });
}

test("an optimizer that needs all tensors is refused by name", async () => {
  const step = {
    params: { a: vector(1) },
    grads: { a: vector(2) },
    optimizer: { name: "adamw" },
    groups: [{ tensors: ["a"], optimizer: { name: "prodigy" } }],
  } as const;
  await assert.rejects(new ShardedClient([service.url]).step(step), { name: "TypeError", message: /prodigy needs all tensors/ });
  assert.equal((await client.step(step)).state.slot("p0")["a"]?.data[0], 1);
});

suite("a sharded step equals one call", () => {
  const lamb = { name: "lamb", max_grad_norm: 0.5 } as const;
  const adamw = { name: "adamw", lr: 0.1 } as const;
  const broken = { ...grads, a: NaNs };
  const more = { ...broken, "😀": vector(Number.POSITIVE_INFINITY), "￿": vector(1, Number.NaN, Number.NaN) };
  const wrong = { ...broken, "￿": vector(1) };
  const unmatched = { ...broken, z: vector(1) };
  const huge = { ...grads, d: double(1e200) };
  const steps: Readonly<Record<string, Partial<BothInput>>> = {
    plain: {},
    "narrow moments of a parameter in float64": { optimizer: { ...adamw, state_dtype: "Q8" } },
    "a value that is no number": { grads: more },
    "values that are no numbers, when clipping": { grads: more, clip: { max_norm: 1 } },
    "no numbers and a gradient of another shape": { grads: wrong },
    "no numbers and a gradient of another shape, when clipping": { grads: wrong, clip: { max_norm: 1 } },
    "gradients without a parameter": { grads: { ...grads, z: vector(1), y: vector(2) } },
    skip: { grads: broken, non_finite: "skip" },
    "skip, and nothing to skip": { non_finite: "skip" },
    "skip with a schedule and clipping": {
      grads: broken,
      non_finite: "skip",
      clip: { max_norm: 1 },
      schedule: { name: "linear", start_factor: 0.1, total_iters: 10 },
    },
    "skip with LAMB": { grads: broken, non_finite: "skip", optimizer: lamb },
    "a group with an optimizer of its own": { groups: [{ tensors: ["b*"], optimizer: { name: "sgd", lr: 0.1, momentum: 0.9 } }] },
    "skip with groups that match everything": { grads: broken, non_finite: "skip", groups: [{ tensors: ["*"], optimizer: { lr: 7 } }] },
    "skip with master weights": {
      params: { ...params, b: { shape: [2], data: Uint16Array.of(0x3f80, 0x4000), dtype: "BF16" } },
      grads: broken,
      non_finite: "skip",
      master_weights: true,
    },
    "skip does not hide a shape": { grads: wrong, non_finite: "skip" },
    "skip does not hide a gradient without a parameter": { grads: unmatched, non_finite: "skip" },
    "skip does not hide a hyperparameter": { grads: broken, non_finite: "skip", optimizer: { name: "adamw", lr: -1 } },
    "skip does not hide a negative norm": { grads: broken, non_finite: "skip", clip: { max_norm: -1 } },
    "skip does not hide a wrong seed": { grads: broken, non_finite: "skip", stochastic_rounding: { seed: -1 } },
    "skip does not hide a norm without a use": { grads: broken, non_finite: "skip", clip: { total_norm: 1 } },
    "a hyperparameter before a shape": { grads: wrong, optimizer: { name: "adamw", lr: -1 }, clip: { max_norm: 1 } },
    "propagate a norm that is none": { grads: more, non_finite: "propagate", clip: { max_norm: 1 } },
    "propagate an infinity": { grads: { ...grads, a: vector(Number.POSITIVE_INFINITY, 1) }, non_finite: "propagate", clip: { max_norm: 1 } },
    "propagate without clipping": { grads: more, non_finite: "propagate" },
    "a norm beyond float64": { grads: huge, clip: { max_norm: 1 } },
    "a norm beyond float64 of gradients divided": { grads: { d: double(1e300) }, clip: { max_norm: 1 }, loss_scale: 1e38 },
    "a norm beyond float64 of gradients multiplied": { grads: { d: double(1e140) }, clip: { max_norm: 1 }, loss_scale: 1e-37 },
    "a norm beyond float64 with skip": { grads: huge, clip: { max_norm: 1 }, non_finite: "skip" },
    "a norm beyond float64 with LAMB": { grads: huge, optimizer: lamb },
    "a norm beyond float64 with LAMB, and clipping by value": { grads: huge, optimizer: lamb, clip: { max_value: 1 } },
    "a norm beyond float64 with LAMB, and clipping by norm": { grads: huge, optimizer: lamb, clip: { max_norm: 1 } },
    "a norm beyond float64 does not hide a negative norm": { grads: huge, clip: { max_norm: -1 } },
    "skip of tensors without values": { params: { ...params, e: double() }, grads: { ...broken, e: double() }, non_finite: "skip" },
    "propagate with tensors without values": {
      params: { ...params, e: double() },
      grads: { ...more, e: double() },
      non_finite: "propagate",
      clip: { max_norm: 1 },
    },
    "a state that is none": { state: rawTensors('{"__metadata__":{"format":"pt"}}') },
    "a state that is none, and a gradient of another shape": { state: new Uint8Array(9), grads: wrong },
    "a state that is none, and a hyperparameter": { state: new Uint8Array(9), optimizer: { name: "adamw", lr: -1 } },
  };
  for (const [what, settings] of Object.entries(steps)) {
    test(what, async () => {
      // The error names the state's optimizer, so the state comes from another optimizer of the family.
      const from = settings.optimizer?.name === "lamb" ? lamb : ({ name: "adam" } as const);
      const own = settings.params ?? params;
      const { state } = await client.step({ optimizer: from, params: own, grads, master_weights: settings.master_weights });
      for (const given of settings.state ? [settings.state] : [null, state, state.bytes]) {
        const input = { optimizer: adamw, params, grads, ...settings, state: given } as BothInput;
        const whole = await outcome(client.step(input));
        for (const requestBytes of [1, 60, 2 ** 20]) assert.deepEqual(await outcome(new ShardedClient([service.url], { requestBytes }).step(input)), whole);
      }
    });
  }

  test("a state that does not fit is refused, even if the step would be skipped", async () => {
    const { state: momentum } = await client.step({ optimizer: { name: "sgd", momentum: 0.9 }, params, grads });
    const { state: other } = await client.step({ optimizer: adamw, params: { ...params, a: vector(1) }, grads: { a: vector(1) } });
    const { state: of } = await client.step({ optimizer: adamw, params: { z: vector(1) }, grads: { z: vector(1) } });
    for (const state of [momentum, other, of]) {
      const input = { optimizer: adamw, params, grads: broken, state, non_finite: "skip" } as const;
      const whole = await outcome(client.step(input));
      assert.equal((whole as { code: string }).code, "STATE_MISMATCH");
      assert.deepEqual(await outcome(new ShardedClient([service.url], { requestBytes: 1 }).step(input)), whole);
    }
  });

  test("warnings about many tensors equal those of one call in number, order and names", async () => {
    const names = ["￿", "😀", 'quoted "(3 values), ', ...Array.from({ length: 20 }, (_, index) => `w${index}`)];
    const ones = Object.fromEntries(names.map((name) => [name, vector(1, 1)]));
    // Warnings have two causes here: 0/0 in every second tensor, and overflowing squares in the others.
    const mixed = Object.fromEntries(names.map((name, index) => [name, index % 2 === 0 ? vector(0, 1) : vector(1e25, 1)]));
    const input = { optimizer: { name: "adam", eps: 0 }, params: ones, grads: mixed } as const;
    const { warnings = [] } = await client.step(input);
    assert.deepEqual([warnings.length, warnings.filter((warning) => warning.includes(" more tensors")).length], [2, 2]);
    for (const requestBytes of [1, 60, 200]) {
      assert.deepEqual((await new ShardedClient([service.url], { requestBytes }).step(input)).warnings, warnings);
    }
  });

  test("an error names the gradients of all calls", async () => {
    const names = Array.from({ length: 12 }, (_, index) => `w${index}`);
    const all = Object.fromEntries(names.map((name) => [name, NaNs]));
    const input = { optimizer: adamw, params: all, grads: all } as const;
    const whole = await outcome(client.step(input));
    for (const requestBytes of [1, 40]) assert.deepEqual(await outcome(new ShardedClient([service.url], { requestBytes }).step(input)), whole);
  });
});

suite("packing into calls", () => {
  test("calls have about requestBytes of parameters, gradients and state", async () => {
    const names = Array.from({ length: 6 }, (_, index) => `w${index}`);
    const tensors = Object.fromEntries(names.map((name) => [name, { shape: [1000], data: new Float32Array(1000).fill(1) }]));
    const sizes: number[] = [];
    const counting = (url: string, init: RequestInit): Promise<Response> => {
      sizes.push((init.body as Blob).size);
      return fetch(url, init);
    };
    // A tensor takes 8,000 bytes without a state, and 16,008 bytes with a state.
    const sharded = new ShardedClient([service.url], { requestBytes: 17_000, fetch: counting });
    const { state } = await sharded.step({ optimizer: { name: "adamw" }, params: tensors, grads: tensors });
    assert.deepEqual([sizes.length, sizes.filter((size) => size < 18_500).length], [3, 3]);
    await sharded.step({ optimizer: { name: "adamw" }, params: tensors, grads: tensors, state });
    assert.deepEqual([sizes.length, sizes.filter((size) => size < 18_500).length], [9, 9]);
    await sharded.step({ optimizer: { name: "adamw" }, params: tensors, grads: {} });
    assert.equal(sizes.length, 11, "four parameters without gradients in a call");
  });

  test("norms send gradients only, unless a parameter has another arithmetic", async () => {
    const bf16 = { shape: [2], data: Uint16Array.of(0x3f80, 0x4000), dtype: "BF16" } as const;
    const rounded = { ...params, b: bf16, a: bf16 };
    for (const [own, sent] of [
      [{ ...grads, a: bf16 }, {}],
      [{ ...grads, b: double(0.5, -0.5) }, { b: [2] }],
      [{ ...grads, d: vector(1e-3) }, { d: [1] }],
    ] as const) {
      const bodies: Body[] = [];
      const sharded = new ShardedClient([service.url], { requestBytes: 1, fetch: recordingFetch(bodies) });
      const input = { optimizer: { name: "adamw" }, params: rounded, grads: own, clip: { max_norm: 0.1 } } as const;
      assert.deepEqual(await outcome(sharded.step(input)), await outcome(client.step(input)));
      const norms = bodies.filter(({ optimizer }) => optimizer === undefined);
      assert.equal(norms.length, 5);
      const given = norms.flatMap((body) => (body["params"] ? [...readFile(body["params"] as Uint8Array).entries] : []));
      assert.deepEqual(Object.fromEntries(given.map(([name, { shape }]) => [name, shape])), sent);
    }
  });

  for (const [what, value, total_norm] of [
    ["NaN", NaNs, "NaN"],
    ["infinity", vector(Number.POSITIVE_INFINITY, 1), "Infinity"],
  ] as const) {
    for (const non_finite of ["skip", "propagate"] as const) {
      test(`each call has its own gradients and flags the others: ${what}, ${non_finite}`, async () => {
        const bodies: Body[] = [];
        const sharded = new ShardedClient([service.url], { requestBytes: 1, fetch: recordingFetch(bodies) });
        const given = { ...grads, a: value };
        const before = Object.values(given).map(({ data }) => bits(data));
        const result = await sharded.step({ optimizer: { name: "adamw" }, params, grads: given, clip: { max_norm: 1 }, non_finite });
        assert.deepEqual([Object.keys(result.params), result.skipped], [Object.keys(params), non_finite === "skip"]);
        const steps = bodies.filter(({ optimizer }) => optimizer !== undefined);
        assert.equal(steps.length, 5);
        for (const { clip, others_non_finite } of steps) assert.deepEqual([clip, others_non_finite], [{ max_norm: 1, total_norm }, true]);
        const sent = Object.fromEntries(
          steps.flatMap((body) => [...readFile(body["grads"] as Uint8Array).entries].map(([name, { bytes }]) => [name, bytes.toString("hex")])),
        );
        assert.deepEqual(
          Object.keys(given).map((name) => sent[name]),
          before,
        );
        assert.deepEqual(
          Object.values(given).map(({ data }) => bits(data)),
          before,
        );
      });
    }
  }

  test("others_non_finite and a non-finite total_norm mean the same to Client and ShardedClient", async () => {
    const sharded = new ShardedClient([service.url], { requestBytes: 1 });
    for (const settings of [
      { others_non_finite: true },
      { others_non_finite: true, non_finite: "skip" },
      { clip: { max_norm: 1, total_norm: Number.POSITIVE_INFINITY } },
      { clip: { max_norm: 1, total_norm: Number.NaN } },
      { clip: { max_norm: 1, total_norm: Number.NEGATIVE_INFINITY } },
    ] as const) {
      const input = { optimizer: { name: "sgd", lr: 1 }, params, grads, ...settings } as const;
      const whole = await outcome(client.step(input));
      assert.deepEqual(await outcome(sharded.step(input)), whole);
    }
    const steps = await client.step({ optimizer: { name: "sgd", lr: 1 }, params, grads, clip: { max_norm: 1, total_norm: Number.NaN } });
    assert.ok(Object.values(steps.params).every(({ data }) => data.every(Number.isNaN)));
  });
});

suite("failing replicas", () => {
  const optimizer = { name: "sgd", lr: 0.5 } as const;
  const names = Array.from({ length: 8 }, (_, index) => `w${index}`);
  const many = Object.fromEntries(names.map((name) => [name, vector(1)]));
  const one = { optimizer, params: { w: vector(1) }, grads: { w: vector(1) } };
  const eight = { optimizer, params: many, grads: many };
  const problem = (name: string, code: number, retry_after?: number): string => JSON.stringify({ detail: "no", code, name, retry_after });
  const JSON_PROBLEM = { "Content-Type": "application/problem+json" };
  const overloaded = (retryAfter: number): Promise<FakeServer> => FakeServer.replying(problem("OVERLOADED", -32020, retryAfter), 429, JSON_PROBLEM);

  afterEach(() => mock.restoreAll());

  /** Stops the clock of the replicas' cool-downs. `pass` advances the clock. */
  const stopClock = (): { pass(ms: number): void } => {
    let now = performance.now();
    mock.method(performance, "now", () => now);
    return {
      pass(ms) {
        now += ms;
      },
    };
  };

  test("retries counts the rounds after the first", async () => {
    for (const retries of [0, 2]) {
      await using busy = await FakeServer.replying("", 503);
      await using elsewhere = await FakeServer.replying("", 502);
      await assert.rejects(new ShardedClient([busy.url, elsewhere.url], { retries }).step(one), TransportError);
      assert.deepEqual([busy.calls, elsewhere.calls], [retries + 1, retries + 1]);
    }
    for (const retries of [-1, Number.NaN]) assert.throws(() => new ShardedClient(["http://x"], { retries }), /retries: expected a number from 0 on/);
  });

  test("a round begins after the shortest Retry-After", async () => {
    const times: number[] = [];
    await using busy = await FakeServer.start((_, res) => {
      times.push(performance.now());
      res.writeHead(429, JSON_PROBLEM).end(problem("OVERLOADED", -32020, 1));
    });
    await using busier = await overloaded(30);
    await using silent = await FakeServer.start((req) => void req.socket.destroy());
    await assert.rejects(new ShardedClient([busy.url, busier.url, silent.url], { retries: 1 }).step(one, { signal: AbortSignal.timeout(20_000) }), {
      name: "TransportError",
    });
    assert.deepEqual([busy.calls, busier.calls, silent.calls], [2, 2, 2]);
    assert.ok((times[1] as number) - (times[0] as number) >= 1000);
  });

  const failures: Readonly<Record<string, () => Promise<FakeServer>>> = {
    "a lost connection": () => FakeServer.start((req) => void req.socket.destroy()),
    "a timeout": () => FakeServer.start(() => {}),
    "no room": () => overloaded(30),
    "a server that shuts down": () => FakeServer.replying(problem("DRAINING", -32021), 503, JSON_PROBLEM),
    "a server that fails": () => FakeServer.replying(problem("INTERNAL_ERROR", -32603), 500, JSON_PROBLEM),
    "junk with 200": () => FakeServer.replying("junk", 200, { "Content-Type": MSGPACK }),
    "a page with 200": () => FakeServer.replying("<html>", 200, { "Content-Type": "text/html" }),
    ...Object.fromEntries([401, 404, 413, 500, 502, 504].map((status) => [`a proxy's page with ${status}`, () => FakeServer.replying("<html>", status)])),
  };
  for (const [what, start] of Object.entries(failures)) {
    test(`${what}: the call goes to another replica at once`, async () => {
      await using fake = await start();
      const { params: stepped } = await new ShardedClient([fake.url, service.url], { retries: 0, timeoutMs: 1000 }).step(one);
      assert.deepEqual([...(stepped["w"]?.data ?? [])], [0.5]);
      assert.equal(fake.calls, 1);
    });
  }

  for (const [name, code, status] of [
    ["INVALID_PARAMS", -32602, 400],
    ["UNAUTHENTICATED", -32025, 401],
    ["PAYLOAD_TOO_LARGE", -32022, 413],
    ["UNSUPPORTED_MEDIA_TYPE", -32023, 415],
    ["STATE_MISMATCH", -32013, 422],
  ] as const) {
    test(`${name} is the call's own error and thrown at once`, async () => {
      await using fake = await FakeServer.replying(problem(name, code), status, JSON_PROBLEM);
      const sharded = new ShardedClient([fake.url, service.url]);
      await assert.rejects(sharded.step(one), { code: name, status });
      await sharded.step(one);
      await assert.rejects(sharded.step(one), { code: name }, "its replica is no worse for it");
      assert.equal(fake.calls, 2);
    });
  }

  test("concurrent calls try each replica once per round", async () => {
    await using busy = await FakeServer.replying("", 503);
    await using elsewhere = await FakeServer.replying("", 503);
    const sharded = new ShardedClient([busy.url, elsewhere.url, service.url], { requestBytes: 1, connections: 8, retries: 0 });
    for (let step = 0; step < 5; step++) await sharded.step(eight);
  });

  test("a failed replica cools down for 1 s, doubled per failure up to 60 s, until a success", async () => {
    const clock = stopClock();
    let isWell = false;
    await using replica = await FakeServer.start(async (req, res) => {
      if (!isWell) return void res.writeHead(503).end();
      const chunks: Buffer[] = [];
      for await (const chunk of req) chunks.push(chunk as Buffer);
      const answer = await service.post(req.url ?? "", Buffer.concat(chunks), MSGPACK);
      res.writeHead(answer.status, { "Content-Type": MSGPACK }).end(Buffer.from(await answer.arrayBuffer()));
    });
    const sharded = new ShardedClient([replica.url, service.url], { retries: 0 });
    const callsAfter = async (ms: number): Promise<number> => {
      clock.pass(ms);
      const before = replica.calls;
      await sharded.step(one);
      return replica.calls - before;
    };
    assert.equal(await callsAfter(0), 1, "the first in the list is the first to be called");
    for (const seconds of [1, 2, 4, 8, 16, 32, 60, 60]) {
      assert.equal(await callsAfter(0), 0);
      assert.equal(await callsAfter(seconds * 1000 - 1), 0, `not yet ${seconds} s`);
      assert.equal(await callsAfter(1), 1, `${seconds} s`);
    }
    isWell = true;
    assert.equal(await callsAfter(60_000), 1);
    assert.deepEqual([await callsAfter(0), await callsAfter(0)], [0, 1], "in turn again");
    isWell = false;
    assert.deepEqual([await callsAfter(0), await callsAfter(0)], [0, 1]);
    assert.deepEqual([await callsAfter(999), await callsAfter(1)], [0, 1], "from the start again");
    isWell = true;
    clock.pass(2000);
    await assert.rejects(sharded.step({ ...one, optimizer: { name: "sgd", lr: -1 } }), { code: "INVALID_PARAMS" });
    isWell = false;
    assert.deepEqual([await callsAfter(0), await callsAfter(0)], [0, 1], "a refusal is an answer");
    assert.deepEqual([await callsAfter(999), await callsAfter(1)], [0, 1], "from the start once more");
  });

  test("a hanging replica costs running calls one timeout, then one probe per cool-down", async () => {
    const clock = stopClock();
    await using silent = await FakeServer.start(() => {});
    const sharded = new ShardedClient([silent.url, service.url], { requestBytes: 1, connections: 4, timeoutMs: 500, retries: 0 });
    for (let step = 0; step < 3; step++) await sharded.step(eight);
    assert.equal(silent.calls, 2, "half of the first four calls");
    clock.pass(1000);
    await sharded.step(eight);
    assert.equal(silent.calls, 3, "two calls that failed at once are one failure: the rest was 1 s");
    clock.pass(1999);
    await sharded.step(eight);
    assert.equal(silent.calls, 3);
  });

  test("replicas are called even if all cool down", async () => {
    let calls = 0;
    const flaky = (url: string, init: RequestInit): Promise<Response> => (calls++ < 4 ? Promise.reject(new TypeError("lost")) : fetch(url, init));
    const { step } = await new ShardedClient([service.url, `${service.url}/`], { retries: 2, fetch: flaky }).step(one);
    assert.deepEqual([step, calls], [1, 5]);
  });

  test("an aborted call is no failure of the replica", async () => {
    stopClock();
    let isSilent = true;
    const asked: string[] = [];
    const some = (url: string, init: RequestInit): Promise<Response> => {
      asked.push(new URL(url).host);
      if (!isSilent) return fetch(url.replace(/^http:..[a-z]+/, service.url), init);
      return new Promise((_, reject) => init.signal?.addEventListener("abort", () => reject(init.signal?.reason)));
    };
    const sharded = new ShardedClient(["http://first", "http://second"], { fetch: some });
    const controller = new AbortController();
    setTimeout(() => controller.abort(new TransportError("the caller's own")), 20);
    await assert.rejects(sharded.step(one, { signal: controller.signal }), /the caller's own/);
    isSilent = false;
    for (let step = 0; step < 3; step++) await sharded.step(one);
    assert.deepEqual(asked, ["first", "second", "first", "second"]);
  });
});
