/**
 * Tests that the same request gives the same bytes: on any number of workers, with and without AVX, sharded or whole, in JSON
 * or MessagePack.
 */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { isDeepStrictEqual } from "node:util";
import { gradsAt, LARGE, MATRICES, run, SMALL, type StepReply, startParams } from "../support/run.ts";
import { requireSame } from "../support/same.ts";
import { JSON_TYPE, TestService } from "../support/service.ts";
import { readState, readTensors, type TestState, type TestTensors, writeTensors } from "../support/tensors.ts";
import { matrixVariants, narrowVariants, type Variant, variants } from "../support/variants.ts";

const STEPS = 3;

const machines: Readonly<Record<string, () => Promise<TestService>>> = {
  "1 worker": () => TestService.start({ STEPD_WORKERS: "1" }),
  "2 workers": () => TestService.start({ STEPD_WORKERS: "2" }),
  "3 workers": () => TestService.start({ STEPD_WORKERS: "3" }),
  "7 workers": () => TestService.start({ STEPD_WORKERS: "7" }),
  // With --no-liftoff, the optimizing compiler compiles each kernel at once, with 256-bit vectors if the CPU has them.
  "wide vectors": () => TestService.start({ STEPD_WORKERS: "2" }, ["--no-liftoff"]),
  // The optimizing compiler inlines by counts of calls, which it has after the first ones. V8 13.6 ended the process on a loop that
  // --no-liftoff compiled.
  "wide vectors after the first calls": () => TestService.start({ STEPD_WORKERS: "2" }, ["--wasm-sync-tier-up", "--wasm-tiering-budget=1000"]),
  "wide vectors off": () => TestService.start({ STEPD_WORKERS: "2", STEPD_WIDE_VECTORS: "off" }, ["--no-liftoff"]),
  "no optimizing compiler": () => TestService.start({ STEPD_WORKERS: "2" }, ["--liftoff-only"]),
  "a CPU without AVX": () => TestService.start({ STEPD_WORKERS: "2" }, ["--no-liftoff", "--no-enable-avx", "--no-enable-avx2"]),
};

const services = new Map<string, TestService>();
before(async () => {
  for (const [name, start] of Object.entries(machines)) services.set(name, await start());
});
after(async () => {
  for (const service of services.values()) await service[Symbol.asyncDispose]();
});

const service = (): TestService => services.get("2 workers") as TestService;

const requireSameReply = (found: StepReply, expected: StepReply): void => {
  assert.ok(Buffer.from(found.params).equals(Buffer.from(expected.params)), "params");
  assert.ok(Buffer.from(found.state).equals(Buffer.from(expected.state)), "state");
};

suite("the same bytes on any machine", () => {
  const narrow = narrowVariants.filter(({ optimizer: { name } }) => name === "adamw" || name === "lamb");
  for (const { label, optimizer } of [...variants, ...narrow, ...matrixVariants]) {
    const shapes = matrixVariants.some((variant) => variant.label === label) ? MATRICES : LARGE;
    test(label, async () => {
      const replies = await Promise.all([...services.values()].map((machine) => run(machine, { optimizer, shapes, steps: STEPS })));
      for (const reply of replies.slice(1)) requireSameReply(reply, replies[0] as StepReply);
    });
  }
});

const pick = <T>(all: Readonly<Record<string, T>>, names: readonly string[]): Record<string, T> =>
  Object.fromEntries(Object.entries(all).filter(([name]) => names.includes(name)));

/** Takes each step as two requests, with some of the tensors in each. */
const runSharded = async (
  { optimizer }: Variant,
  shards: readonly (readonly string[])[],
): Promise<{ params: TestTensors; state: Pick<TestState, "steps" | "slots"> }> => {
  const params: Record<string, TestTensors[string]> = {};
  const state = { steps: {}, slots: {} as Record<string, TestTensors> };
  for (const names of shards) {
    let reply: StepReply = { params: writeTensors(pick(startParams(LARGE), names)), state: new Uint8Array(), step: 0 };
    for (let step = 0; step < STEPS; step++) {
      const grads = writeTensors(pick(gradsAt(LARGE, step), names));
      reply = await service().call("optimizer.step", { optimizer, params: reply.params, grads, state: step === 0 ? null : reply.state });
    }
    Object.assign(params, readTensors(reply.params));
    const part = readState(reply.state);
    Object.assign(state.steps, part.steps);
    for (const [slot, tensors] of Object.entries(part.slots)) state.slots[slot] = { ...state.slots[slot], ...tensors };
  }
  return { params, state };
};

suite("the same bytes with tensors split over two requests", () => {
  for (const variant of variants.filter(({ isGlobal }) => !isGlobal)) {
    test(variant.label, async () => {
      const whole = await run(service(), { optimizer: variant.optimizer, shapes: LARGE, steps: STEPS });
      const { params, state } = await runSharded(variant, [
        ["encoder/bias", "scale", "ünï"],
        ["encoder.weight", "empty"],
      ]);
      requireSame(params, readTensors(whole.params), "params");
      const { steps, slots } = readState(whole.state);
      assert.deepEqual(state.steps, steps);
      for (const [slot, tensors] of Object.entries(slots)) requireSame(state.slots[slot] ?? {}, tensors, slot);
    });
  }
});

interface JsonReply {
  readonly result: { readonly params: string; readonly state: string };
}

/** From the sixth MessagePack step on, the server uses a cached layout. The test compares JSON with steps before and after. */
const PREPARED_STEPS = 7;

suite("the same bytes in JSON and MessagePack, by blob and by name", () => {
  for (const { label, optimizer } of variants) {
    test(label, async () => {
      const expected = await run(service(), { optimizer, shapes: SMALL, steps: PREPARED_STEPS });
      let params = writeTensors(startParams(SMALL)).toString("base64");
      let state: string | null = null;
      let plain: unknown = Object.fromEntries(Object.entries(startParams(SMALL)).map(([name, { shape, data }]) => [name, { shape, values: [...data] }]));
      let plainState: string | null = null;
      for (let step = 0; step < PREPARED_STEPS; step++) {
        const grads = gradsAt(SMALL, step);
        const json = JSON.stringify({
          jsonrpc: "2.0",
          id: 1,
          method: "optimizer.step",
          params: { optimizer, params, grads: writeTensors(grads).toString("base64"), state },
        });
        const { result } = (await (await service().post("/rpc", json, JSON_TYPE)).json()) as JsonReply;
        ({ params, state } = result);
        const plainGrads = Object.fromEntries(Object.entries(grads).map(([name, { shape, data }]) => [name, { shape, values: [...data] }]));
        const mapped = await service().post("/v1/step", JSON.stringify({ optimizer, params: plain, grads: plainGrads, state: plainState }), JSON_TYPE);
        ({ params: plain, state: plainState } = (await mapped.json()) as { params: unknown; state: string });
      }
      requireSameReply({ params: Buffer.from(params, "base64"), state: Buffer.from(state ?? "", "base64"), step: PREPARED_STEPS }, expected);
      assert.ok(Buffer.from(plainState ?? "", "base64").equals(Buffer.from(expected.state)), "state of the map form");
      const tensors = readTensors(expected.params);
      for (const [name, { values }] of Object.entries(plain as Record<string, { values: number[] }>))
        assert.ok(isDeepStrictEqual(values, [...(tensors[name]?.data ?? [])]), name);
    });
  }
});

test("the order of tensors in the request does not matter", async () => {
  const reversed = Object.fromEntries(Object.entries(LARGE).reverse());
  const optimizer = { name: "lamb", max_grad_norm: 1 };
  const straight = await run(service(), { optimizer, shapes: LARGE, steps: 1 });
  const params = Object.fromEntries(Object.keys(reversed).map((name) => [name, startParams(LARGE)[name] as TestTensors[string]]));
  const grads = Object.fromEntries(Object.keys(reversed).map((name) => [name, gradsAt(LARGE, 0)[name] as TestTensors[string]]));
  const backward = await service().call<StepReply>("optimizer.step", { optimizer, params: writeTensors(params), grads: writeTensors(grads) });
  requireSame(readTensors(backward.params), readTensors(straight.params), "params");
  assert.ok(Buffer.from(backward.state).equals(Buffer.from(straight.state)));
});
