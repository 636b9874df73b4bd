/** Tests muon: against the formula in float64, by shape and dtype, beside other optimizers, over shards, and what it refuses. */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { gradsAt, MATRICES, run, type Shapes, type StepReply, startParams } from "../support/run.ts";
import { type RpcError, TestService } from "../support/service.ts";
import { readState, readTensors, type TestTensors, writeTensors } from "../support/tensors.ts";
import { readTyped, typed, writeTyped } from "../support/typed.ts";
import { matrixVariants } from "../support/variants.ts";
import { type Case, tensors, values, vectorFiles } from "../support/vectors.ts";

let service: TestService;
before(async () => {
  service = await TestService.start();
});
after(() => service[Symbol.asyncDispose]());

interface Options {
  readonly lr: number;
  readonly weight_decay: number;
  readonly momentum: number;
  readonly nesterov: boolean;
  readonly ns_steps: number;
  readonly ns_coefficients: readonly number[];
  readonly eps: number;
  readonly adjust_lr_fn: string | null;
}

const DEFAULTS: Options = {
  lr: 1e-3,
  weight_decay: 0.1,
  momentum: 0.95,
  nesterov: true,
  ns_steps: 5,
  ns_coefficients: [3.4445, -4.775, 2.0315],
  eps: 1e-7,
  adjust_lr_fn: "original",
};

type Matrix = number[][];

const matrix = (data: ArrayLike<number>, [rows = 0, columns = 0]: readonly number[]): Matrix =>
  Array.from({ length: rows }, (_, i) => Array.from({ length: columns }, (_, j) => data[i * columns + j] as number));
const transposed = (a: Matrix): Matrix => (a[0] ?? []).map((_, j) => a.map((row) => row[j] as number));
const times = (a: Matrix, b: Matrix): Matrix => {
  const columns = transposed(b);
  return a.map((row) => columns.map((column) => row.reduce((sum, x, k) => sum + x * (column[k] as number), 0)));
};
const combined = (p: number, a: Matrix, q: number, b: Matrix): Matrix => a.map((row, i) => row.map((x, j) => p * x + q * ((b[i] as number[])[j] as number)));

/** The formula of docs/optimizers.md in float64: one step with an empty buffer, or with the given one. */
const reference = (given: Partial<Options>, param: Matrix, grad: Matrix, buffer: Matrix): Matrix => {
  const { lr, weight_decay, momentum, nesterov, ns_steps, ns_coefficients, eps, adjust_lr_fn } = { ...DEFAULTS, ...given };
  const [a = 0, b = 0, c = 0] = ns_coefficients;
  const next = combined(momentum, buffer, 1 - momentum, grad);
  const update = nesterov ? combined(momentum, next, 1 - momentum, grad) : next;
  const norm = Math.max(Math.sqrt(update.flat().reduce((sum, x) => sum + x * x, 0)), eps);
  const [rows, columns] = [param.length, param[0]?.length ?? 0];
  const isWide = columns > rows;
  let x = combined(1 / norm, isWide ? update : transposed(update), 0, isWide ? update : transposed(update));
  for (let step = 0; step < ns_steps; step++) {
    const gram = times(x, transposed(x));
    x = combined(a, x, 1, times(combined(b, gram, c, times(gram, gram)), x));
  }
  const factor = { original: Math.sqrt(Math.max(1, rows / columns)), match_rms_adamw: 0.2 * Math.sqrt(Math.max(rows, columns)) };
  const adjusted = lr * (factor[adjust_lr_fn as keyof typeof factor] ?? Math.sqrt(rows / columns));
  return combined(1 - lr * weight_decay, param, -adjusted, isWide ? x : transposed(x));
};

const rms = (found: ArrayLike<number>, expected: readonly number[]): number =>
  Math.sqrt(expected.reduce((sum, value, index) => sum + ((found[index] as number) - value) ** 2, 0) / Math.max(1, expected.length));

/** The sums of 1,100 elements have several blocks; other sizes leave tails of rows, columns and vectors. */
const SHAPES: Shapes = { wide: [9, 1100], tall: [67, 37], row: [1, 7], column: [5, 1], square: [8, 8], whole: [64, 128], empty: [0, 4] };

suite("a step is the formula in float64", () => {
  for (const { label, optimizer } of matrixVariants) {
    for (const [dtype, limit] of [
      ["F32", 3e-6],
      ["F64", 1e-12],
    ] as const) {
      test(`${label}, ${dtype}`, async () => {
        const [params, grads] = [startParams(SHAPES), gradsAt(SHAPES, 0)];
        const options = { ...optimizer, lr: 1 };
        const reply = await service.call<StepReply>("optimizer.step", {
          optimizer: options,
          params: writeTyped(typed(params, dtype)),
          grads: writeTensors(grads),
        });
        for (const [name, { shape, values: found }] of Object.entries(readTyped(reply.params))) {
          const [p, g] = [params, grads].map((all) => matrix(all[name]?.data ?? [], shape)) as [Matrix, Matrix];
          const expected = reference(options, p, g, combined(0, g, 0, g)).flat();
          assert.ok(rms(found as number[], expected) <= limit, `${name}: ${rms(found as number[], expected)}`);
        }
      });
    }
  }

  test("it is nearer to float64 than torch, which iterates in bfloat16", async () => {
    for (const testCase of vectorFiles.get("muon.torch") as readonly Case[]) {
      const given = testCase.hyperparameters as unknown as Options;
      const [first] = testCase.steps;
      const [params, grads] = [tensors(testCase.initial), tensors(first?.grads ?? {})];
      const optimizer = { name: "muon", ...given, adjust_lr_fn: given.adjust_lr_fn ?? "original" };
      const reply = await service.call<StepReply>("optimizer.step", { optimizer, params: writeTensors(params), grads: writeTensors(grads) });
      for (const [name, { data, shape }] of Object.entries(readTensors(reply.params))) {
        const [p, g] = [params, grads].map((all) => matrix(all[name]?.data ?? [], shape)) as [Matrix, Matrix];
        const expected = reference(optimizer, p, g, combined(0, g, 0, g)).flat();
        const theirs = values(first?.f64.params[name] ?? { dtype: "f64", shape: [], b64: "" });
        const isZero = g.flat().every((value) => value === 0);
        assert.ok(
          rms(data, expected) <= (isZero ? 1e-7 : rms(theirs, expected) / 10),
          `${testCase.name} ${name}: ${rms(data, expected)} and ${rms(theirs, expected)}`,
        );
      }
    }
  });
});

test("2N steps are N steps, a state, and N steps, in each dtype of the state", async () => {
  for (const { optimizer } of [...matrixVariants, ...["BF16", "Q8"].map((state_dtype) => ({ optimizer: { name: "muon", state_dtype } }))]) {
    const whole = await run(service, { optimizer, shapes: MATRICES, steps: 4 });
    const half = await run(service, { optimizer, shapes: MATRICES, steps: 2 });
    const rest = await run(service, { optimizer, shapes: MATRICES, steps: 2, from: 2, params: half.params, state: half.state });
    assert.deepEqual([rest.params, rest.state], [whole.params, whole.state]);
  }
});

test("BF16 parameters are stepped in float32 and rounded once; statistics report the norms", async () => {
  const [params, grads] = [typed(startParams(SHAPES), "BF16"), typed(gradsAt(SHAPES, 0), "BF16")];
  const widened = await service.call<StepReply>("optimizer.step", {
    optimizer: { name: "muon" },
    params: writeTyped(typed(readTensorsOf(params), "F32")),
    grads: writeTyped(typed(readTensorsOf(grads), "F32")),
    reply: { params: "bf16" },
  });
  const reply = await service.call<StepReply & { stats: { update_norm: number } }>("optimizer.step", {
    optimizer: { name: "muon" },
    params: writeTyped(params),
    grads: writeTyped(grads),
    stats: "global",
  });
  assert.deepEqual(readTyped(reply.params), readTyped(widened.params));
  assert.ok(reply.stats.update_norm > 0);
});

const readTensorsOf = (all: Parameters<typeof writeTyped>[0]): TestTensors => readTensors(writeTensors(floatsOf(all)));
const floatsOf = (all: Parameters<typeof writeTyped>[0]): TestTensors =>
  Object.fromEntries(Object.entries(all).map(([name, { shape, values: own }]) => [name, { shape, data: Float32Array.from(own as number[]) }]));

test("matrices by muon and the rest by adamw have the bits of two calls", async () => {
  const shapes = { "layer.weight": [12, 20], "layer.bias": [12], "head.weight": [7, 12] } as const;
  const [params, grads] = [startParams(shapes), gradsAt(shapes, 0)];
  const pick = (all: TestTensors, ...names: string[]): Uint8Array =>
    writeTensors(Object.fromEntries(names.map((name) => [name, all[name] as TestTensors[string]])));
  const both = await service.call<StepReply>("optimizer.step", {
    optimizer: { name: "adamw" },
    groups: [{ tensors: ["layer.weight"], optimizer: { name: "muon", lr: 0.02 } }],
    params: writeTensors(params),
    grads: writeTensors(grads),
  });
  const muon = await service.call<StepReply>("optimizer.step", {
    optimizer: { name: "muon", lr: 0.02 },
    params: pick(params, "layer.weight"),
    grads: pick(grads, "layer.weight"),
  });
  const adamw = await service.call<StepReply>("optimizer.step", {
    optimizer: { name: "adamw" },
    params: pick(params, "layer.bias", "head.weight"),
    grads: pick(grads, "layer.bias", "head.weight"),
  });
  const found = readTensors(both.params);
  for (const [name, tensor] of Object.entries({ ...readTensors(muon.params), ...readTensors(adamw.params) })) assert.deepEqual(found[name], tensor, name);
  assert.deepEqual(readState(both.state).slots["momentum_buffer"], readState(muon.state).slots["momentum_buffer"]);
});

suite("refused", () => {
  const call = (optimizer: object, shape: readonly number[], more: object = {}): object => {
    const file = writeTensors(startParams({ w: shape }));
    return { optimizer: { name: "muon", ...optimizer }, params: file, grads: file, ...more };
  };
  for (const [what, params, expected] of [
    ["a vector", call({}, [3]), /^TENSOR_MISMATCH \/params\/w: a matrix for muon, or a group .* found shape \[3\]/],
    ["a convolution", call({}, [2, 3, 3, 3]), /^TENSOR_MISMATCH \/params\/w: .* found shape \[2,3,3,3\]/],
    ["half an iteration", call({ ns_steps: 2.5 }, [2, 2]), /^INVALID_PARAMS \/optimizer\/ns_steps: a whole number from 0 to 99, found 2.5/],
    ["two coefficients", call({ ns_coefficients: [1, 2] }, [2, 2]), /^INVALID_PARAMS \/optimizer\/ns_coefficients/],
  ] as const) {
    test(what, async () => {
      await assert.rejects(service.call("optimizer.step", params), ({ data: { name, field, expected: wanted, found } }: RpcError) => {
        assert.match(`${name} ${field}: ${wanted}, found ${found}`, expected);
        return true;
      });
    });
  }
});

test("optimizer.plan counts the work of the products and the memory of the buffers", async () => {
  const plan = (shape: readonly number[], optimizer: object): Promise<{ matrix_flops: number; arena_bytes: number }> =>
    service.call("optimizer.plan", { optimizer, tensors: { w: { shape } } });
  const [muon, adamw] = [await plan([100, 40], { name: "muon" }), await plan([100, 40], { name: "sgd", momentum: 0.9 })];
  assert.equal(muon.matrix_flops, 5 * 2 * (2 * 100 * 40 * 40 + 40 ** 3));
  assert.equal(adamw.matrix_flops, 0);
  assert.ok(muon.arena_bytes - adamw.arena_bytes >= 4 * (100 * 40 + 2 * 40 * 40));
  assert.equal((await plan([40, 100], { name: "muon" })).matrix_flops, muon.matrix_flops);
});
