/**
 * Tests every parameter dtype with every gradient dtype: the step computes on widened values and rounds once, to nearest even.
 */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { gradsAt, SMALL, type StepReply, startParams } from "../support/run.ts";
import { requireSame } from "../support/same.ts";
import { TestService } from "../support/service.ts";
import { readFile } from "../support/tensors.ts";
import { DTYPES, type Dtype, readTyped, round, type Typed, typed, writeTyped } from "../support/typed.ts";
import { type Variant, variants } from "../support/variants.ts";

const STEPS = 2;

/** Shapes large enough for the worker pool, with an odd tail, and small enough to convert in JavaScript. */
const SHAPES = { ...SMALL, wide: [140_003] } as const;

let service: TestService;
before(async () => {
  service = await TestService.start();
});
after(() => service[Symbol.asyncDispose]());

const cast = (tensors: Readonly<Record<string, Typed>>, dtype: Dtype): Record<string, Typed> =>
  Object.fromEntries(Object.entries(tensors).map(([name, { shape, values }]) => [name, { dtype, shape, values: values.map((value) => round(value, dtype)) }]));

const step = (optimizer: unknown, params: Record<string, Typed>, grads: Record<string, Typed>, state: Uint8Array | null, more = {}): Promise<StepReply> =>
  service.call("optimizer.step", { optimizer, params: writeTyped(params), grads: writeTyped(grads), state, ...more });

const shapesOf = (paramDtype: Dtype, gradDtype: Dtype): Readonly<Record<string, readonly number[]>> => (paramDtype === gradDtype ? SHAPES : SMALL);

const requireAgreement = async ({ optimizer }: Variant, paramDtype: Dtype, gradDtype: Dtype): Promise<void> => {
  const compute: Dtype = paramDtype === "F64" ? "F64" : "F32";
  const shapes = shapesOf(paramDtype, gradDtype);
  let params = typed(startParams(shapes), paramDtype);
  let state: Uint8Array | null = null;
  for (let index = 0; index < STEPS; index++) {
    const grads = typed(gradsAt(shapes, index), gradDtype);
    const found = await step(optimizer, params, grads, state);
    const expected = await step(optimizer, cast(params, compute), cast(grads, compute), state);
    requireSame(readTyped(found.params), cast(readTyped(expected.params), paramDtype), "params");
    assert.ok(Buffer.from(found.state).equals(Buffer.from(expected.state)), "state");
    params = readTyped(found.params);
    state = found.state;
  }
};

for (const paramDtype of DTYPES) {
  for (const gradDtype of DTYPES) {
    suite(`${paramDtype} parameters, ${gradDtype} gradients`, () => {
      for (const variant of variants) test(variant.label, () => requireAgreement(variant, paramDtype, gradDtype));
    });
  }
}

suite("master weights", () => {
  for (const { label, optimizer } of variants) {
    for (const dtype of ["BF16", "F16"] as const) {
      test(`${label}, ${dtype}: the float32 run, rounded to ${dtype} in replies`, async () => {
        const more = { master_weights: true };
        let params = typed(startParams(SMALL), dtype);
        let exact = cast(params, "F32");
        let state: Uint8Array | null = null;
        let exactState: Uint8Array | null = null;
        for (let index = 0; index < 3; index++) {
          const grads = typed(gradsAt(SMALL, index), dtype);
          const found = await step(optimizer, params, grads, state, more);
          const expected = await step(optimizer, exact, cast(grads, "F32"), exactState);
          requireSame(readTyped(found.params), cast(readTyped(expected.params), dtype), "params");
          const masters = Object.entries(readTyped(found.state)).filter(([key]) => key.startsWith("master_param/"));
          requireSame(
            Object.fromEntries(masters.map(([key, tensor]) => [key.slice("master_param/".length), tensor])),
            readTyped(expected.params),
            "master copies",
          );
          [params, state] = [readTyped(found.params), found.state];
          [exact, exactState] = [readTyped(expected.params), expected.state];
        }
      });
    }
  }

  test("init with master weights equals a first step without a state", async () => {
    const params = typed(startParams(SMALL), "BF16");
    const grads = typed(gradsAt(SMALL, 0), "BF16");
    const optimizer = { name: "adamw" };
    const { state } = await service.call<{ state: Uint8Array }>("optimizer.init", { optimizer, params: writeTyped(params), master_weights: true });
    const fromInit = await step(optimizer, params, grads, state, { master_weights: true });
    const fromNothing = await step(optimizer, params, grads, null, { master_weights: true });
    assert.ok(Buffer.from(fromInit.state).equals(Buffer.from(fromNothing.state)));
    assert.ok(Buffer.from(fromInit.params).equals(Buffer.from(fromNothing.params)));
  });

  test("a state with master copies is refused without master_weights", async () => {
    const params = typed(startParams(SMALL), "BF16");
    const grads = typed(gradsAt(SMALL, 0), "BF16");
    const { state } = await step({ name: "adamw" }, params, grads, null, { master_weights: true });
    await assert.rejects(step({ name: "adamw" }, params, grads, state), /master_weights: true/);
  });
});

test("a state with master copies is refused for a parameter dtype that needs none", async () => {
  const { state } = await step({ name: "sgd" }, typed(startParams(SMALL), "BF16"), typed(gradsAt(SMALL, 0), "BF16"), null, { master_weights: true });
  const wide = step({ name: "sgd" }, typed(startParams(SMALL), "F32"), typed(gradsAt(SMALL, 1), "F32"), state, { master_weights: true });
  await assert.rejects(wide, /a BF16 or F16 parameter beside master_param/);
});

suite("stochastic rounding to BF16", () => {
  const params = { w: { dtype: "BF16", shape: [200_000], values: new Array<number>(200_000).fill(1) } } as const;
  // The step goes from 1 to 1 + 2^-9, which is a quarter of the way to 1 + 2^-7, the next BF16.
  const grads = { w: { dtype: "F32", shape: [200_000], values: new Array<number>(200_000).fill(-1) } } as const;
  const optimizer = { name: "sgd", lr: 2 ** -9 };
  const roundedWith = async (seed: number, on = service): Promise<Uint8Array> =>
    (await on.call<StepReply>("optimizer.step", { optimizer, params: writeTyped(params), grads: writeTyped(grads), stochastic_rounding: { seed } })).params;

  test("rounds up with a probability equal to the distance", async () => {
    const values = readTyped(await roundedWith(1))["w"]?.values ?? [];
    assert.deepEqual(new Set(values), new Set([1, 1 + 2 ** -7]));
    const share = values.filter((value) => value > 1).length / values.length;
    assert.ok(Math.abs(share - 0.25) < 0.005, String(share));
  });

  test("equal seeds give equal bits on any number of workers, and different seeds differ", async () => {
    await using other = await TestService.start({ STEPD_WORKERS: "3" });
    const first = Buffer.from(await roundedWith(1));
    assert.ok(first.equals(Buffer.from(await roundedWith(1, other))));
    assert.ok(!first.equals(Buffer.from(await roundedWith(2))));
  });

  test("without stochastic rounding, values round to nearest", async () => {
    const { params: plain } = await service.call<StepReply>("optimizer.step", { optimizer, params: writeTyped(params), grads: writeTyped(grads) });
    assert.deepEqual(new Set(readTyped(plain)["w"]?.values), new Set([1]));
  });

  test("with master weights, stochastic rounding is not needed and values round to nearest", async () => {
    const call = { optimizer, params: writeTyped(params), grads: writeTyped(grads), master_weights: true };
    const plain = await service.call<StepReply>("optimizer.step", call);
    assert.deepEqual(await service.call<StepReply>("optimizer.step", { ...call, stochastic_rounding: { seed: 1 } }), plain);
  });
});

test("tensors by name carry every dtype, round to nearest even, and refuse values out of range", async () => {
  const values = { F32: 1 + 2 ** -24, F64: 0.1, BF16: 1 + 2 ** -8 + 2 ** -40, F16: 1 + 2 ** -11 + 2 ** -40 } as const;
  const params = Object.fromEntries(Object.entries(values).map(([dtype, value]) => [dtype, { dtype, shape: [2], values: [value, "NaN"] }]));
  const reply = await service.call<{ params: Record<string, { values: unknown[] }> }>("optimizer.step", { optimizer: { name: "sgd" }, params, grads: {} });
  assert.equal(reply.params["F32"]?.values[0], 1);
  assert.equal(reply.params["F64"]?.values[0], 0.1);
  assert.equal(reply.params["BF16"]?.values[0], 1 + 2 ** -7);
  assert.equal(reply.params["F16"]?.values[0], 1 + 2 ** -10);
  for (const { values } of Object.values(reply.params)) assert.equal(values[1], "NaN");
  const tooLarge = { w: { dtype: "F16", shape: [1], values: [65520] } };
  await assert.rejects(service.call("optimizer.step", { optimizer: { name: "sgd" }, params: tooLarge, grads: {} }), /range of F16/);
});

test("a state of F64 parameters has F64 slots", async () => {
  const { state } = await step({ name: "adam" }, typed(startParams(SMALL), "F64"), typed(gradsAt(SMALL, 0), "F64"), null);
  for (const [key, { dtype }] of readFile(state).entries) assert.equal(dtype, key.startsWith("step/") ? "I64" : "F64", key);
});
