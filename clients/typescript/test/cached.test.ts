/** What the server keeps and is named by its digest, and replies that leave parts out: against real servers, and such as lose what they kept. */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { TestService } from "../../../test/support/service.ts";
import { randomTensors } from "../../../test/support/tensors.ts";
import { type CachedStepInput, Client, type Fetch, type StepResult, type Tensors } from "../src/index.ts";
import { type Body, digests, noting, TestFolder } from "./_folder.ts";

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

/** Another server on the same port: it knows nothing of what the first kept. */
const restart = async (): Promise<void> => {
  const { port } = new URL(service.url);
  await service.stop("SIGKILL");
  service = await TestService.start({ STEPD_CACHE_MIB: "64", STEPD_SHARED_DIR: folder.path, STEPD_PORT: port });
};

/** Steps with everything sent; the reference of the others. */
const run = async (steps: number): Promise<StepResult> => {
  let result = await plain.step({ optimizer, params: params(), grads: grads(0) });
  for (let step = 1; step < steps; step++) result = await plain.step({ optimizer, params: result.params, state: result.state, grads: grads(step) });
  return result;
};

const keep = { optimizer, reply: { cache: true } } as const;

/** With and without a shared folder. */
const transports = [
  ["over a socket", () => ({})],
  ["in a shared folder", () => ({ sharedDir: folder.path })],
] as const;

for (const [how, optionsOf] of transports) {
  /** A client that notes what it sends. */
  const started = (send?: Fetch): { client: Client; bodies: Body[] } => {
    const bodies: Body[] = [];
    return { client: new Client(service.url, { ...optionsOf(), fetch: noting(bodies, send) }), bodies };
  };

  suite(`cache, ${how}`, () => {
    test("a hit sends names, and gives the same bytes", async () => {
      const { client, bodies } = started();
      let result = await client.step({ ...keep, params: params(), grads: grads(0) });
      for (let step = 1; step < 4; step++) {
        const { params, state, cached } = result;
        result = await client.step({ ...keep, params, state, cached, grads: grads(step) });
        assert.deepEqual([bodies.at(-1)?.["params"], bodies.at(-1)?.["state"]], [cached?.params, cached?.state]);
        assert.match(cached?.state?.sha256 ?? "", /^[0-9a-f]{64}$/);
      }
      assert.equal(bodies.length, 4);
      client.close();
      assert.deepEqual(digests(result), digests(await run(4)));
    });

    test("what is named need not be given", async () => {
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

    test("after a restart, what was given is sent whole, once and without a pause", async () => {
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

    test("gradients may change as soon as the call is made, also where it is sent again", async () => {
      const { client } = started();
      const first = await client.step({ ...keep, params: params(), grads: grads(0) });
      await restart();
      const given = grads(1);
      const second = client.step({ ...keep, params: first.params, state: first.state, cached: first.cached, grads: given });
      for (const { data } of Object.values(given)) data.fill(0);
      assert.deepEqual(digests(await second), digests(await run(2)));
      client.close();
    });

    test("what was not given cannot be sent: BLOB_MISSING", async () => {
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

    test("a server that misses everything always is asked no more than three times", async () => {
      let calls = 0;
      const problem = (field: string): string => JSON.stringify({ detail: "gone", code: -32026, name: "BLOB_MISSING", field });
      const forgetful: Fetch = async () => new Response(problem(calls++ % 2 ? "/state" : "/params"), { status: 404 });
      const { client } = started(forgetful);
      const { params, state } = await run(1);
      const name = { sha256: "0".repeat(64) };
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

    test("none: no parameters, and a state that says that it is not there", async () => {
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

suite("errors", () => {
  test("parameters that are neither given nor named", async () => {
    for (const cached of [undefined, {}, { state: { sha256: "0".repeat(64) } }])
      await assert.rejects(plain.step({ optimizer, grads: grads(0), cached } as CachedStepInput), { name: "TypeError", message: /^params: expected tensors/ });
  });

  test("a server without a cache keeps nothing", async () => {
    await using other = await TestService.start();
    const client = new Client(other.url);
    const input = { ...keep, params: params(), grads: grads(0) };
    const { cached } = await client.step(input);
    assert.deepEqual(cached ?? {}, {});
    await assert.rejects(client.step({ ...input, reply: { cache: true, state: "none" } }), { code: "INVALID_PARAMS", field: "/reply/state" });
    await assert.rejects(client.step({ ...input, reply: { state: "none" } }), { code: "INVALID_PARAMS", field: "/reply/cache" });
    await assert.rejects(client.step({ optimizer, grads: grads(0), cached: { params: { sha256: "0".repeat(64) } } }), { code: "BLOB_MISSING" });
  });

  test("rounded parameters of another call are none of this one's", async () => {
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
