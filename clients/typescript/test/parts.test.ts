/** Tests that a step in parts over several connections equals one call. */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { TestService } from "../../../test/support/service.ts";
import { randomTensors } from "../../../test/support/tensors.ts";
import { type CachedShard, Client, type ClientOptions, ShardedClient, StepdError, type StepInput, type StepResult, type Tensors } from "../src/index.ts";
import { partBytesFor } from "../src/parts.ts";
import { Transport } from "../src/transport.ts";
import { type Body, digests, recordingFetch } from "./_folder.ts";

const MIB = 2 ** 20;

/** The largest tensor has eleven shards, of which the last is short. */
const SHAPES = { größe: [2, 360_001], z: [7], scalar: [], "deep/w": [900] } as const;

const tensors = (seed: number): Tensors => randomTensors(SHAPES, seed);

const narrowed = (values: Tensors): Tensors =>
  Object.fromEntries(
    Object.entries(values).map(([name, { shape, data }]) => {
      const words = new Uint16Array(data.buffer, data.byteOffset, data.length * 2);
      return [name, { shape, data: words.filter((_, index) => index % 2 === 1), dtype: "BF16" as const }];
    }),
  );

let service: TestService;
let plain: Client;
before(async () => {
  service = await TestService.start({ STEPD_CACHE_MIB: "128" });
  plain = new Client(service.url);
});
after(() => service[Symbol.asyncDispose]());

/** Returns a client that sends parts to the server on this host, and the requests that it sends. */
const parted = (options: ClientOptions = {}): { client: Client; bodies: Body[] } => {
  const bodies: Body[] = [];
  return { client: new Client(service.url, { connections: 2, retries: 0, fetch: recordingFetch(bodies), ...options }), bodies };
};

const optimizer = { name: "adamw", lr: 0.01 } as const;

const same = (one: StepResult, other: StepResult): void => {
  assert.deepEqual(digests(one), digests(other));
  assert.deepEqual(Object.keys(one.params), Object.keys(other.params));
  assert.deepEqual([one.step, one.lr, one.skipped, one.warnings], [other.step, other.lr, other.skipped, other.warnings]);
};

const settings: Readonly<Record<string, Partial<StepInput>>> = {
  plain: {},
  "stochastic rounding": { stochastic_rounding: { seed: 5 } },
  "moments in Q8": { optimizer: { name: "adamw", state_dtype: "Q8" } },
  "scalar slots": { optimizer: { name: "nadam" } },
  "clip and loss scale": { clip: { max_norm: 0.5 }, loss_scale: 8 },
  skip: { non_finite: "skip" },
  "rounded reply": { reply: { params: "bf16" } },
  groups: { groups: [{ tensors: ["*/w"], optimizer: { lr: 1 } }] },
  "whole tensors": { optimizer: { name: "lamb", max_grad_norm: 1 } },
};

suite("a step in parts equals one call", () => {
  for (const [what, more] of Object.entries(settings)) {
    test(what, async () => {
      const { client, bodies } = parted();
      let params = what === "stochastic rounding" ? narrowed(tensors(1)) : tensors(1);
      let state: StepResult["state"] | undefined;
      for (const seed of [2, 3]) {
        const { z, ...others } = tensors(seed);
        const grads = seed === 3 ? others : { z, ...others };
        const input = { optimizer, ...more, params, grads, state } as StepInput;
        const one = await plain.step(input);
        same(await client.step(input), one);
        state = one.state;
        if (what !== "rounded reply") params = one.params;
      }
      const steps = bodies.filter((body) => "optimizer" in body);
      assert.ok(steps.length >= 4, `${steps.length} calls`);
      assert.equal(
        steps.some((body) => "slices" in body),
        what !== "whole tensors",
      );
    });
  }

  test("gradients may change during the call", async () => {
    const input = { optimizer, params: tensors(1), grads: tensors(2), clip: { max_norm: 1 } } as const;
    const expected = await plain.step(input);
    const step = parted().client.step(input);
    for (const { data } of [...Object.values(input.params), ...Object.values(input.grads)]) data.fill(0);
    same(await step, expected);
  });

  test("a sharded client of two addresses takes the same parts by itself", async () => {
    const bodies: Body[] = [];
    const sharded = new ShardedClient([service.url, `${service.url}/`], { retries: 0, fetch: recordingFetch(bodies) });
    const input = { optimizer, params: tensors(1), grads: tensors(2) } as const;
    same((await sharded.step(input)) as StepResult, await plain.step(input));
    assert.ok(bodies.filter((body) => "slices" in body).length >= 3);
  });
});

suite("errors", () => {
  test("an error names all slices as one tensor", async () => {
    const grads = tensors(2);
    for (const [name, at] of Object.entries({ größe: [3, 720_001], z: [1] })) for (const index of at) (grads[name]?.data as Float32Array)[index] = Number.NaN;
    const errors = await Promise.all(
      [plain, parted().client].map((client) => client.step({ optimizer, params: tensors(1), grads }).catch((error: unknown) => error)),
    );
    assert.ok(errors.every((error) => error instanceof StepdError));
    const [one, two] = errors.map(({ code, field, expected, found, tensors, message }) => ({ code, field, expected, found, tensors, message }));
    assert.deepEqual(two, one);
  });

  test("a part that fails changes nothing, and the same handles serve again", async () => {
    const first = await parted().client.step({ optimizer, params: tensors(1), grads: tensors(2), reply: { cache: true } });
    const before = digests(first);
    let calls = 0;
    const { client } = parted({ fetch: (url, init) => (++calls === 2 ? Promise.reject(new TypeError("lost")) : fetch(url, init)) });
    const next = { optimizer, grads: tensors(3), cached: first.cached as readonly CachedShard[], reply: { cache: true } } as const;
    await assert.rejects(client.step(next), { name: "TransportError" });
    assert.deepEqual(digests(first), before);
    same(await client.step(next), await plain.step({ optimizer, params: first.params, grads: tensors(3), state: first.state }));
  });

  test("a server that dies between parts fails the step, and its successor takes the run from the values", async () => {
    await using own = await TestService.start({ STEPD_CACHE_MIB: "128" });
    const { port } = new URL(own.url);
    let isArmed = false;
    let calls = 0;
    const killing = async (url: string, init: RequestInit): Promise<Response> => {
      if (isArmed && ++calls === 2) await own.stop("SIGKILL");
      return fetch(url, init);
    };
    const client = new Client(own.url, { connections: 2, retries: 0, fetch: killing });
    const first = await client.step({ optimizer, params: tensors(1), grads: tensors(2), reply: { cache: true } });
    isArmed = true;
    const next = { optimizer, params: first.params, grads: tensors(3), state: first.state, cached: first.cached } as const;
    await assert.rejects(client.step(next), { name: "TransportError" });
    isArmed = false;
    await using _ = await TestService.start({ STEPD_CACHE_MIB: "128", STEPD_PORT: port });
    same(await client.step(next), await plain.step({ ...next, cached: undefined }));
  });
});

suite("results that stay on the server", () => {
  test("later steps send gradients, in the parts of the first", async () => {
    const { client, bodies } = parted();
    let kept = await client.step({ optimizer, params: tensors(1), grads: tensors(2), reply: { cache: true, state: "none" } });
    let one = await plain.step({ optimizer, params: tensors(1), grads: tensors(2) });
    const parts = (kept.cached as readonly CachedShard[]).length;
    assert.ok(parts > 2);
    for (const seed of [3, 4]) {
      bodies.length = 0;
      kept = await client.step({
        optimizer,
        grads: tensors(seed),
        cached: kept.cached as readonly CachedShard[],
        reply: { cache: true, ...(seed === 3 && { state: "none" }) },
      });
      assert.equal(bodies.length, parts);
      one = await plain.step({ optimizer, params: one.params, grads: tensors(seed), state: one.state });
    }
    assert.deepEqual(digests(kept), digests(one));
  });

  test("clipping over parts sends the gradients once", async () => {
    const { client, bodies } = parted();
    const input = { optimizer, params: tensors(1), grads: tensors(2), clip: { max_norm: 0.1 } } as const;
    same(await client.step(input), await plain.step(input));
    const steps = bodies.filter((body) => "optimizer" in body);
    assert.ok(steps.length > 1 && steps.every(({ grads }) => typeof (grads as { handle?: unknown }).handle === "string"));
  });

  test("norms keep gradients for one step, which sends them if they are gone", async () => {
    const { client, bodies } = parted({ connections: 1 });
    const input = { optimizer, params: tensors(1), grads: tensors(2) } as const;
    const { cached } = await client.norms({ grads: input.grads, reply: { cache: true } });
    assert.ok(cached?.grads);
    const expected = await plain.step(input);
    for (const calls of [1, 2]) {
      bodies.length = 0;
      same(await client.step({ ...input, cached }), expected);
      assert.equal(bodies.length, calls);
    }
  });
});

test("small steps and steps that need one call are one call", async () => {
  const { client, bodies } = parted();
  const { z } = tensors(1);
  await client.step({ optimizer, params: { z } as Tensors, grads: { z } as Tensors });
  await client.step({ optimizer, params: tensors(1), grads: tensors(2), stats: "global" });
  await client.step({ optimizer, params: tensors(1), grads: tensors(2), receipt: true });
  assert.equal(bodies.length, 3);
  const own: Body[] = [];
  await new Client(service.url, { fetch: recordingFetch(own) }).step({ optimizer, params: tensors(1), grads: tensors(2) });
  assert.equal(own.length, 1, "a server on this host");
});

test("a server on this host is one with a loopback address", () => {
  const isLocal = (url: string): boolean => new Transport(url, {}).isLocal;
  for (const url of ["http://127.0.0.2:1", "http://localhost", "http://[::1]:1"]) assert.ok(isLocal(url), url);
  for (const url of ["http://stepd.example", "http://10.0.0.1", "https://127.example"]) assert.ok(!isLocal(url), url);
});

test("parts grow with the round trip and the rate", () => {
  const far = partBytesFor(64 * MIB, 500, 50);
  assert.ok(far > 25 * MIB && far < 32 * MIB);
  const near = partBytesFor(256 * MIB, 250, 0.1);
  assert.ok(near > 12 * MIB && near < 14 * MIB);
  assert.equal(partBytesFor(32 * MIB, 1000, 0.1), 2 * MIB);
  assert.equal(partBytesFor(2 ** 40, 1, 1000), 64 * MIB);
});
