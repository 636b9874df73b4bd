/**
 * Tests results in the server's cache, and replies that omit results. The servers are real, and some of them lose their cache.
 */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { TestService } from "../../../test/support/service.ts";
import { randomTensors } from "../../../test/support/tensors.ts";
import {
  type Cached,
  type CachedShard,
  type CachedStepInput,
  Client,
  type Fetch,
  ShardedClient,
  type StepResult,
  type Tensor,
  type Tensors,
} from "../src/index.ts";
import { type Body, digests, recordingFetch, TestFolder } from "./_folder.ts";

const SHAPES = { "layer.weight": [300, 40], bias: [300], scale: [] } as const;
const params = (): Tensors => randomTensors(SHAPES, 1);
const grads = (step: number): Tensors => randomTensors(SHAPES, 100 + step);
const optimizer = { name: "adamw", lr: 0.01 } as const;

let folder: TestFolder;
let service: TestService;
let plain: Client;
before(async () => {
  folder = new TestFolder();
  service = await TestService.start({ STEPD_CACHE_MIB: "64", STEPD_SHARED_DIR: folder.path });
  plain = new Client(service.url);
});
after(async () => {
  await service?.[Symbol.asyncDispose]();
  folder[Symbol.dispose]();
});

/** Replaces the server by a new server on the same port, with an empty cache. */
const restart = async (): Promise<void> => {
  const { port } = new URL(service.url);
  await service.stop("SIGKILL");
  service = await TestService.start({ STEPD_CACHE_MIB: "64", STEPD_SHARED_DIR: folder.path, STEPD_PORT: port });
};

/** Takes steps that send everything, as the reference. */
const run = async (steps: number): Promise<StepResult> => {
  let result = await plain.step({ optimizer, params: params(), grads: grads(0) });
  for (let step = 1; step < steps; step++) result = await plain.step({ optimizer, params: result.params, state: result.state, grads: grads(step) });
  return result;
};

/** A handle of this server. */
const HANDLE = /^[\w-]{22}\.state$/;

const keep = { optimizer, reply: { cache: true } } as const;

/** Client options without and with a shared folder. */
const transports = [
  ["over a socket", () => ({})],
  ["in a shared folder", () => ({ sharedDir: folder.path })],
] as const;

for (const [how, optionsOf] of transports) {
  /** Returns a client that records its requests. */
  const started = (send?: Fetch): { client: Client; bodies: Body[] } => {
    const bodies: Body[] = [];
    return { client: new Client(service.url, { ...optionsOf(), fetch: recordingFetch(bodies, send) }), bodies };
  };

  suite(`cache, ${how}`, () => {
    test("a cache hit sends handles, and gives the same bytes", async () => {
      const { client, bodies } = started();
      let result = await client.step({ ...keep, params: params(), grads: grads(0) });
      for (let step = 1; step < 4; step++) {
        const { params, state, cached } = result;
        result = await client.step({ ...keep, params, state, cached, grads: grads(step) });
        const named = cached as Cached;
        assert.deepEqual([bodies.at(-1)?.["params"], bodies.at(-1)?.["state"]], [named.params, named.state]);
        assert.match(named.state?.handle ?? "", HANDLE);
      }
      assert.equal(bodies.length, 4);
      client.close();
      assert.deepEqual(digests(result), digests(await run(4)));
    });

    test("named parameters and state may be omitted", async () => {
      const { client } = started();
      let { cached } = await client.step({ ...keep, params: params(), grads: grads(0) });
      for (let step = 1; step < 3; step++) {
        assert.ok(cached);
        ({ cached } = await client.step({ optimizer, grads: grads(step), cached, reply: { cache: true, params: "none", state: "none" } }));
      }
      assert.ok(cached);
      const last = await client.step({ optimizer, grads: grads(3), cached });
      client.close();
      assert.deepEqual(digests(last), digests(await run(4)));
      assert.deepEqual(Object.keys(last.params), Object.keys(SHAPES));
    });

    test("after a restart the values are sent once, without a wait", async () => {
      const { client, bodies } = started();
      const first = await client.step({ ...keep, params: params(), grads: grads(0) });
      await restart();
      const second = await client.step({ ...keep, params: first.params, state: first.state, cached: first.cached, grads: grads(1) });
      assert.deepEqual(digests(second), digests(await run(2)));
      assert.ok(bodies.length <= 4, "one call, again for the parameters, and for the state");
      const third = await client.step({ ...keep, params: second.params, state: second.state, cached: second.cached, grads: grads(2) });
      client.close();
      assert.deepEqual(digests(third), digests(await run(3)));
    });

    test("gradients may change during the call, also before a retry", async () => {
      const { client } = started();
      const first = await client.step({ ...keep, params: params(), grads: grads(0) });
      await restart();
      const given = grads(1);
      const second = client.step({ ...keep, params: first.params, state: first.state, cached: first.cached, grads: given });
      for (const { data } of Object.values(given)) data.fill(0);
      assert.deepEqual(digests(await second), digests(await run(2)));
      client.close();
    });

    test("a dropped blob without a value is BLOB_MISSING", async () => {
      const { client, bodies } = started();
      const first = await client.step({ ...keep, params: params(), grads: grads(0), reply: { cache: true, state: "none" } });
      await restart();
      assert.ok(first.cached);
      const missing = { name: "StepdError", code: "BLOB_MISSING" };
      const before = bodies.length;
      await assert.rejects(client.step({ optimizer, grads: grads(1), cached: first.cached }), { ...missing, field: "/params" });
      assert.equal(bodies.length, before + 1);
      await assert.rejects(client.step({ optimizer, params: first.params, grads: grads(1), cached: first.cached }), { ...missing, field: "/state" });
      client.close();
    });

    test("a server that never has the blobs is asked at most three times", async () => {
      let calls = 0;
      const problem = (field: string): string => JSON.stringify({ detail: "gone", code: -32026, name: "BLOB_MISSING", field });
      const forgetful: Fetch = async () => new Response(problem(calls++ % 2 ? "/state" : "/params"), { status: 404 });
      const { client } = started(forgetful);
      const { params, state } = await run(1);
      const name = { handle: "nobody" };
      await assert.rejects(client.step({ optimizer, params, state, grads: grads(1), cached: { params: name, state: name } }), { code: "BLOB_MISSING" });
      client.close();
      assert.equal(calls, 3);
    });
  });

  suite(`smaller replies, ${how}`, () => {
    test("bf16: the parameters rounded to nearest even", async () => {
      const { client } = started();
      const [first, whole] = [await client.step({ optimizer, params: params(), grads: grads(0), reply: { params: "bf16" } }), await run(1)];
      const second = await client.step({ optimizer, params: whole.params, state: first.state, grads: grads(1), reply: { params: "bf16", state: "same" } });
      client.close();
      for (const [name, { data, shape, dtype }] of Object.entries(first.params)) {
        const exact = whole.params[name];
        assert.ok(data instanceof Uint16Array && exact?.data instanceof Float32Array);
        assert.deepEqual([dtype, shape], ["BF16", exact.shape]);
        const bits = new Uint32Array(Float32Array.from(exact.data).buffer);
        assert.deepEqual(
          [...data],
          [...bits].map((word) => (word + 0x7fff + ((word >>> 16) & 1)) >>> 16),
          name,
        );
      }
      assert.deepEqual(digests({ ...first, params: {} }), digests({ ...whole, params: {} }));
      assert.deepEqual(digests({ ...second, params: {} }), digests({ ...(await run(2)), params: {} }));
    });

    test("none: no parameters, and a state that throws", async () => {
      const { client } = started();
      const { state, ...first } = await client.step({ optimizer, params: params(), grads: grads(0), reply: { params: "none" } });
      assert.deepEqual([first.params, first.cached], [{}, undefined]);
      assert.deepEqual(digests({ params: {}, state }), digests({ params: {}, state: (await run(1)).state }));
      const kept = await client.step({ optimizer, params: params(), grads: grads(0), reply: { state: "none", cache: true } });
      client.close();
      assert.throws(() => kept.state, { name: "RangeError", message: /^state: it stayed on the server/ });
      assert.deepEqual(Object.keys({ ...kept }).sort(), ["cached", "lr", "params", "skipped", "step"]);
      assert.deepEqual(digests({ params: kept.params, state }), digests({ ...(await run(1)) }));
    });

    test("rounding float64 is refused", async () => {
      const { client } = started();
      const double = { w: { shape: [10_000], data: new Float64Array(10_000) } };
      await assert.rejects(client.step({ optimizer, params: double, grads: double, reply: { params: "bf16" } }), {
        code: "UNSUPPORTED_DTYPE",
        field: "/reply/params",
      });
      client.close();
    });
  });
}

for (const [how, optionsOf] of transports) {
  suite(`several servers, ${how}`, () => {
    /** Returns a client that makes one call per tensor. `bodies` are the recorded calls by server. */
    const started = (others: readonly string[] = [], retries = 0): { client: ShardedClient; bodies: Map<string, Body[]> } => {
      const urls = [service.url, ...others];
      const bodies = new Map(urls.map((url): [string, Body[]] => [new URL(url).host, []]));
      const note: Fetch = (url, init) => recordingFetch(bodies.get(new URL(url).host) ?? [])(url, init);
      return { client: new ShardedClient(urls, { ...optionsOf(), requestBytes: 1, retries, fetch: note }), bodies };
    };
    const startOther = (): Promise<TestService> => TestService.start({ STEPD_CACHE_MIB: "64", STEPD_SHARED_DIR: folder.path });
    const all = { ...params(), "one more": randomTensors({ a: [20_000] }, 3)["a"] } as Tensors;
    const allGrads = (step: number): Tensors => ({ ...grads(step), "one more": randomTensors({ a: [20_000] }, 200 + step)["a"] }) as Tensors;

    for (const [what, settings] of Object.entries({
      "a plain step": {},
      "clipping by norm": { clip: { max_norm: 0.5 }, loss_scale: 4 },
      "a schedule": { schedule: { name: "exponential", gamma: 0.5 } },
      LAMB: { optimizer: { name: "lamb", max_grad_norm: 1 } },
    } as const)) {
      for (const isGiven of [true, false]) {
        test(`${what} by handles${isGiven ? ", with values beside them" : " alone"}: the bytes of one call`, async () => {
          await using other = await startOther();
          const { client } = started([other.url]);
          const step = { optimizer, ...settings };
          const reply = isGiven ? { cache: true } : ({ cache: true, state: "none" } as const);
          let whole: StepResult | undefined;
          let cached: readonly CachedShard[] | undefined;
          let values: { params?: Tensors | undefined; state?: StepResult["state"] | undefined } = { params: all };
          for (let count = 0; count < 5; count++) {
            const { scale, bias, ...rest } = allGrads(count);
            // The other tensors do not step, so the step counts differ. One gradient is float64, and its parameter is not.
            const now = (count % 2 ? { scale, bias: { shape: [300], data: Float64Array.from(bias?.data ?? []) } } : { ...rest, scale, bias }) as Tensors;
            whole = await plain.step({ ...step, params: whole?.params ?? all, state: whole?.state, grads: now });
            const result = await client.step({ ...step, ...values, cached, grads: now, reply: count < 4 ? reply : undefined });
            assert.deepEqual([result.lr, result.step, Object.keys(result.params)], [whole.lr, whole.step, Object.keys(all)]);
            if (isGiven || count === 4) assert.deepEqual(digests(result), digests(whole));
            else assert.throws(() => result.state, { name: "RangeError" });
            cached = result.cached && (JSON.parse(JSON.stringify(result.cached)) as readonly CachedShard[]);
            values = isGiven ? { params: result.params, state: result.state } : {};
          }
          assert.equal(cached, undefined);
          client.close();
        });
      }
    }

    test("each call goes to the server that has its blobs, and another server receives the values for that call only", async () => {
      await using other = await startOther();
      const { client, bodies } = started([other.url]);
      const { params, state, cached } = await client.step({ ...keep, params: all, grads: allGrads(0) });
      const moved = cached?.filter(({ url }) => url === other.url).length ?? 0;
      assert.deepEqual([cached?.length, moved], [4, 2]);
      // A step in between makes the next step start with another replica.
      await client.step({ optimizer, params: { bias: all["bias"] as Tensor }, grads: {} });
      for (const list of bodies.values()) list.length = 0;
      await client.step({ optimizer, params, state, cached, grads: allGrads(1) });
      for (const body of [...bodies.values()].flat()) assert.ok("handle" in (body["params"] as Body) && "handle" in (body["state"] as Body));
      assert.deepEqual(
        [...bodies.values()].map(({ length }) => length),
        [2, 2],
      );
      await other.stop("SIGKILL");
      const own = bodies.get(new URL(service.url).host) ?? [];
      own.length = 0;
      const again = await client.step({ ...keep, params, state, cached, grads: allGrads(1) });
      const before = await plain.step({ optimizer, params: all, grads: allGrads(0) });
      assert.deepEqual(digests(again), digests(await plain.step({ optimizer, params: before.params, state: before.state, grads: allGrads(1) })));
      // Each moved call is repeated once or twice: without its parameters, then without its state.
      assert.ok(own.length > 4 && own.length <= 4 + 2 * moved, `${own.length} calls`);
      assert.equal(own.filter((body) => "handle" in (body["params"] as Body)).length, 4);
      assert.deepEqual(new Set(again.cached?.map(({ url }) => url)), new Set([service.url]));
      // Without the values no server can continue.
      await assert.rejects(client.step({ optimizer, cached, grads: allGrads(1) }), { code: "BLOB_MISSING" });
      client.close();
    });

    test("without values, the client waits for the server that has the blobs", async () => {
      await using other = await startOther();
      const { client } = started();
      const { params, state, cached } = await client.step({ ...keep, params: all, grads: allGrads(0) });
      client.close();
      let refusals = 0;
      const busy: Fetch = async (url, init) => {
        if (url.startsWith(service.url) && refusals++ < 4) return new Response("", { status: 503 });
        return fetch(url, init);
      };
      const next = new ShardedClient([service.url, other.url], { ...optionsOf(), retries: 1, fetch: busy });
      const result = await next.step({ optimizer, cached, grads: allGrads(1) });
      next.close();
      assert.deepEqual(digests(result), digests(await plain.step({ optimizer, params, state, grads: allGrads(1) })));
    });

    test("skipped steps, refused steps, and steps without numbers", async () => {
      const { client } = started();
      const reply = { cache: true, params: "none", state: "none" } as const;
      const broken = { ...allGrads(1), bias: { shape: [300], data: new Float32Array(300).fill(Number.NaN) } };
      const whole = await plain.step({ optimizer, params: all, grads: allGrads(0) });
      for (const non_finite of ["skip", "propagate"] as const) {
        const clip = { max_norm: 1 };
        const { cached } = await client.step({ optimizer, params: all, grads: allGrads(0), reply });
        await assert.rejects(client.step({ optimizer, cached, grads: broken }), { code: "NON_FINITE_GRADIENT", tensors: ["bias"] });
        const { params, state } = await plain.step({ optimizer, clip, non_finite, params: whole.params, state: whole.state, grads: broken });
        const second = await client.step({ optimizer, clip, non_finite, cached, grads: broken, reply });
        assert.deepEqual([second.skipped, second.params], [non_finite === "skip", {}]);
        const step = { optimizer, non_finite: "propagate" } as const;
        const last = await client.step({ ...step, cached: second.cached, grads: allGrads(2) });
        if (non_finite === "skip") assert.deepEqual(digests(last), digests(await plain.step({ ...step, params, state, grads: allGrads(2) })));
        else assert.ok(Object.values(last.params).every(({ data }) => data.every(Number.isNaN)));
      }
      client.close();
    });

    test("bf16", async () => {
      const { client } = started();
      const input = { optimizer, params: all, grads: allGrads(0), reply: { params: "bf16" } } as const;
      assert.deepEqual(digests(await client.step(input)), digests(await plain.step(input)));
      client.close();
    });
  });
}

suite("errors", () => {
  test("cached of Client and ShardedClient are not interchangeable, and every blob must be named or passed", async () => {
    // The same server under another address.
    const sharded = new ShardedClient([`${service.url.replace("127.0.0.1", "localhost")}/`], { requestBytes: 1 });
    const input = { ...keep, params: params(), grads: grads(0) };
    const [{ cached: one }, { cached: several = [] }] = [await plain.step(input), await sharded.step(input)];
    await assert.rejects(plain.step({ ...input, cached: several as never }), { name: "TypeError", message: /^cached: .*ShardedClient's/ });
    await assert.rejects(sharded.step({ ...input, cached: one as never }), { name: "TypeError", message: /^cached: .*found a Client's/ });
    for (const [found, cached] of [
      ["an empty one", []],
      ["an empty one", {}],
      ["no tensors in its call 0", [{}]],
      ["no tensors in its call 3", [...several, null]],
      ["no cached in its call 0", [{ ...several[0], cached: undefined }]],
    ] as const) {
      const message = `cached: expected that of a ShardedClient's result, found ${found}`;
      await assert.rejects(sharded.step({ ...input, cached: cached as never }), { name: "TypeError", message });
      await assert.rejects(sharded.step({ optimizer, grads: {}, cached: cached as never }), { name: "TypeError", message });
    }
    await assert.rejects(sharded.step({ optimizer, grads: grads(0) }), { name: "TypeError", message: /^params: expected tensors/ });
    await assert.rejects(sharded.step({ optimizer, params: { w: input.params["bias"] } as Tensors, grads: {}, cached: several }), {
      name: "TypeError",
      message: /^params: expected those/,
    });
    for (const field of ["params", "state"] as const) {
      const less = several.map((shard) => ({ ...shard, cached: { ...shard.cached, [field]: undefined } }));
      await assert.rejects(sharded.step({ optimizer, grads: grads(0), cached: less }), { name: "TypeError", message: new RegExp(`^${field}: expected`) });
    }
  });

  test("parameters that are neither passed nor named", async () => {
    for (const cached of [undefined, {}, { state: { handle: "nobody" } }])
      await assert.rejects(plain.step({ optimizer, grads: grads(0), cached } as CachedStepInput), { name: "TypeError", message: /^params: expected tensors/ });
  });

  test("a server without a cache returns no handles", async () => {
    await using other = await TestService.start();
    const client = new Client(other.url);
    const input = { ...keep, params: params(), grads: grads(0) };
    const { cached } = await client.step(input);
    assert.deepEqual(cached ?? {}, {});
    await assert.rejects(client.step({ ...input, reply: { cache: true, state: "none" } }), { code: "INVALID_PARAMS", field: "/reply/state" });
    await assert.rejects(client.step({ ...input, reply: { state: "none" } }), { code: "INVALID_PARAMS", field: "/reply/cache" });
    await assert.rejects(client.step({ optimizer, grads: grads(0), cached: { params: { handle: "nobody" } } }), { code: "BLOB_MISSING" });
  });

  test("rounded parameters do not replace cached ones", async () => {
    let reply: Response | undefined;
    const swapped: Fetch = async (url, init) => {
      const own = await fetch(url, init);
      const other = reply;
      reply = own.clone();
      return other ?? own;
    };
    const client = new Client(service.url, { fetch: swapped });
    const input = { optimizer, grads: {}, reply: { params: "bf16" } } as const;
    await client.step({ ...input, params: params() });
    await assert.rejects(client.step({ ...input, params: randomTensors({ bias: [300] }, 1) }), { name: "TransportError", message: /found others/ });
  });
});
