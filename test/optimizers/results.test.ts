/**
 * Tests that a warning counts the new parameters that are not finite: for every optimizer and dtype, on the main thread and on
 * workers.
 */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import type { StepReply } from "../support/run.ts";
import { JSON_TYPE, TestService } from "../support/service.ts";
import { DTYPES, type Dtype, readTyped, round, type Typed, writeTyped } from "../support/typed.ts";
import { variants } from "../support/variants.ts";

let service: TestService;
before(async () => {
  service = await TestService.start({ STEPD_WORKERS: "2" });
});
after(() => service[Symbol.asyncDispose]());

interface Reply extends StepReply {
  readonly warnings?: readonly string[];
}

const LARGEST: Readonly<Record<Dtype, number>> = { F16: 65504, BF16: 3.3895313892515355e38, F32: 3.4028234663852886e38, F64: Number.MAX_VALUE };

/** With this learning rate, the largest element of the dtype overflows. F64 has no such rate, so its test uses 0/0. */
const OVERFLOWING_RATE: Readonly<Record<Dtype, number>> = { F16: 1e5, BF16: 3e38, F32: 3e38, F64: 3e38 };

/** Large tensors are slow to test, so two dtypes suffice: kernels write F32 directly, and F16 is narrowed afterwards. */
const PLACES = { inline: { size: 37, dtypes: DTYPES }, "on workers": { size: 140_001, dtypes: ["F32", "F16"] } } as const;

type Tensors = Readonly<Record<"params" | "grads", Readonly<Record<string, Typed>>>>;

/**
 * Returns tensors with both ends of the range at their start, inside and at their end. Gradients have both signs, and one is 0.
 */
const makeTensors = (dtype: Dtype, size: number): Tensors => {
  const largest = LARGEST[dtype];
  const ends = new Map([0, 1, 17, 18, size - 2, size - 1].map((at, index) => [at, index % 2 === 0 ? largest : -largest]));
  const tensor = (values: readonly number[]): Typed => ({ dtype, shape: [values.length], values: values.map((value) => round(value, dtype)) });
  const params = Array.from({ length: size }, (_, at) => ends.get(at) ?? 0.5);
  const grads = Array.from({ length: size }, (_, at) => (at === 5 ? 0 : at % 3 === 0 ? -1e-3 : 1e-3));
  return { params: { fine: tensor([1, 2, 3]), wide: tensor(params) }, grads: { fine: tensor([0.1, 0.2, 0.1]), wide: tensor(grads) } };
};

/** Tensors by dtype and size, because every variant of every optimizer takes the same. */
const made = new Map<string, Tensors>();

const tensorsOf = (dtype: Dtype, size: number): Tensors => {
  const key = `${dtype} ${size}`;
  const tensors = made.get(key) ?? makeTensors(dtype, size);
  made.set(key, tensors);
  return tensors;
};

/**
 * Takes a step, and requires a warning with the tensors and the counts of non-finite values in the reply. Returns the total
 * count.
 */
const requireCounted = async (
  optimizer: { readonly name: string },
  { params, grads }: Tensors,
  more: Readonly<Record<string, unknown>> = {},
): Promise<number> => {
  const reply = await service.call<Reply>("optimizer.step", { optimizer, params: writeTyped(params), grads: writeTyped(grads), ...more });
  const counts = Object.entries(readTyped(reply.params)).map(([name, { values }]) => [name, values.filter((value) => !Number.isFinite(value)).length] as const);
  const bad = counts.filter(([, count]) => count > 0);
  const expected = bad.map(([name, count]) => `${JSON.stringify(name)} (${count} ${count === 1 ? "value" : "values"})`).join(", ");
  const found = (reply.warnings ?? []).filter((warning) => warning.startsWith("New parameters"));
  assert.equal(found.length, bad.length === 0 ? 0 : 1, `${found}, but ${expected}`);
  if (bad.length > 0) assert.ok(found[0]?.includes(`infinite: ${expected};`), `${found[0]}, but ${expected}`);
  return counts.reduce((sum, [, count]) => sum + count, 0);
};

/** Returns a state after one step, because some optimizers do not change the parameters in the first step. */
const stateOf = async (optimizer: { readonly name: string }, { params, grads }: Tensors): Promise<Uint8Array> =>
  (await service.call<Reply>("optimizer.step", { optimizer, params: writeTyped(params), grads: writeTyped(grads) })).state;

for (const [place, { size, dtypes }] of Object.entries(PLACES)) {
  suite(place, () => {
    for (const { label, optimizer } of variants) {
      test(`non-finite parameters are counted: ${label}`, async () => {
        // Without weight decay, because decay added to the gradient would make the gradient's square overflow, and no parameter
        // would move.
        const undecayed = "weight_decay" in optimizer ? { weight_decay: 0 } : {};
        let found = 0;
        for (const dtype of dtypes) {
          const [fast, tensors] = [{ ...optimizer, ...undecayed, lr: OVERFLOWING_RATE[dtype] }, tensorsOf(dtype, size)];
          found += (await requireCounted(fast, tensors)) || (await requireCounted(fast, tensors, { state: await stateOf(fast, tensors) }));
        }
        // The steps of Rprop have a limit, so its parameters cannot overflow.
        assert.ok(found > 0 || optimizer.name === "rprop", "all stayed finite, so that nothing was tried");
      });
    }

    test("0/0 from a zero gradient with eps 0 is counted in each dtype", async () => {
      for (const name of ["adam", "adamw", "lamb", "rmsprop", "adagrad", "adamax", "adadelta"])
        for (const dtype of dtypes) {
          const tensors = tensorsOf(dtype, size);
          assert.ok((await requireCounted({ name, eps: 0 } as never, tensors)) > 0, `${name}, ${dtype}`);
        }
    });

    test("values are counted with master weights, stochastic rounding and statistics", async () => {
      for (const dtype of ["BF16", "F16"] as const)
        for (const more of [{ master_weights: true }, { stochastic_rounding: { seed: 3 } }, { stats: "tensor" }, { clip: { max_norm: 1 } }])
          assert.ok((await requireCounted({ name: "adamw", lr: OVERFLOWING_RATE[dtype] } as never, tensorsOf(dtype, size), more)) > 0);
    });
  });
}

test("a float16 parameter that grows beyond 65504 is counted", async () => {
  const one = (value: number) => ({ w: { dtype: "F16" as const, shape: [1], values: [value] } });
  assert.equal(await requireCounted({ name: "sgd", lr: 1 } as never, { params: one(65504), grads: one(-32) }), 1);
  assert.equal(await requireCounted({ name: "sgd", lr: 1 } as never, { params: one(65504), grads: one(-8) }), 0);
});

test("the largest float32 values become infinite in a BF16 reply and are counted", async () => {
  const reply = { reply: { params: "bf16" } };
  for (const size of [37, 140_001])
    for (const dtype of ["F32", "F16", "BF16"] as const) {
      const tensors = tensorsOf(dtype, size);
      const still = { ...tensors, grads: { fine: tensors.params["fine"] as Typed, wide: { dtype, shape: [size], values: Array<number>(size).fill(0) } } };
      for (const [given, more] of [
        [still, {}],
        [tensors, {}],
        [tensors, { stats: "tensor", clip: { max_norm: 1 } }],
      ] as const) {
        const found = await requireCounted({ name: "sgd", lr: 1e-3 } as never, given, { ...reply, ...more });
        assert.equal(found, dtype === "F32" ? 6 : 0);
        if (dtype === "F32") assert.equal(await requireCounted({ name: "sgd", lr: 1e-3 } as never, given, more), 0);
      }
      assert.ok((await requireCounted({ name: "adam", lr: OVERFLOWING_RATE[dtype] } as never, tensors, reply)) > 0);
    }
});

test("finite values with an infinite sum give no warning", async () => {
  const tensor = (value: number) => ({ w: { dtype: "F32" as const, shape: [1000], values: Array<number>(1000).fill(value) } });
  assert.equal(await requireCounted({ name: "sgd", lr: 1 } as never, { params: tensor(3e38), grads: tensor(1) }), 0);
});

test("the warning names the first tensors, in JSON too", async () => {
  const names = Array.from({ length: 10 }, (_, index) => `w${index}`);
  const values = (value: number) => Object.fromEntries(names.map((name) => [name, { shape: [1], values: [value] }]));
  const json = JSON.stringify({ optimizer: { name: "adam", eps: 0 }, params: values(1), grads: values(0) });
  const { warnings } = (await (await service.post("/v1/step", json, JSON_TYPE)).json()) as { warnings: string[] };
  assert.equal(warnings.length, 1);
  assert.match(warnings[0] ?? "", /^New parameters are NaN or infinite: "w0" \(1 value\), .*"w7" \(1 value\) and 2 more tensors; /);
});
