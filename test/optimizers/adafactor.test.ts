/** Tests adafactor: against the formula in float64 by shape and dtype, the shapes of its slots, the cost, and what it refuses. */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { gradsAt, run, type Shapes, type StepReply, startParams } from "../support/run.ts";
import { type RpcError, TestService } from "../support/service.ts";
import { readState, readTensors, type TestTensors, writeState, writeTensors } from "../support/tensors.ts";
import { readTyped, typed, writeTyped } from "../support/typed.ts";
import { variants } from "../support/variants.ts";

let service: TestService;
before(async () => {
  service = await TestService.start();
});
after(() => service[Symbol.asyncDispose]());

interface Options {
  readonly lr: number;
  readonly beta2_decay: number;
  readonly eps: readonly [number | null, number];
  readonly d: number;
  readonly weight_decay: number;
  readonly maximize: boolean;
}

const DEFAULTS: Options = { lr: 1e-2, beta2_decay: -0.8, eps: [null, 1e-3], d: 1, weight_decay: 0, maximize: false };

type Slots = Record<"row_var" | "col_var" | "variance", Float64Array>;

const rms = (values: ArrayLike<number>): number => Math.sqrt(Array.from(values).reduce((sum, value) => sum + value * value, 0) / Math.max(1, values.length));

/** The formula of docs/hyperparameters.md in float64. Changes the slots. */
const reference = (
  options: Options,
  epsilon: number,
  shape: readonly number[],
  p: ArrayLike<number>,
  given: ArrayLike<number>,
  slots: Slots,
  t: number,
): Float64Array => {
  const {
    lr,
    beta2_decay,
    eps: [eps1, eps2],
    d,
    weight_decay,
    maximize,
  } = options;
  const floor = eps1 ?? epsilon;
  const g = Float64Array.from(given, (value) => (maximize ? -value : value));
  const weight = t ** beta2_decay;
  const lerp = (average: Float64Array, at: number, sample: number): void => {
    average[at] = (1 - weight) * (average[at] as number) + weight * sample;
  };
  const v = new Float64Array(g.length);
  if (shape.length < 2) {
    for (const [i, value] of g.entries()) lerp(slots.variance, i, value * value);
    v.set(slots.variance);
  } else {
    const [rows = 0, columns = 0] = shape.slice(-2);
    const squareAt = (matrix: number, row: number, column: number): number => (g[(matrix * rows + row) * columns + column] as number) ** 2;
    const range = (count: number): number[] => Array.from({ length: count }, (_, i) => i);
    const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;
    for (const b of range(g.length / (rows * columns || 1))) {
      for (const i of range(rows)) lerp(slots.row_var, b * rows + i, mean(range(columns).map((j) => squareAt(b, i, j))));
      for (const j of range(columns)) lerp(slots.col_var, b * columns + j, mean(range(rows).map((i) => squareAt(b, i, j))));
      const whole = mean(range(rows).map((i) => slots.row_var[b * rows + i] as number));
      for (const i of range(rows))
        for (const j of range(columns))
          v[(b * rows + i) * columns + j] = ((slots.row_var[b * rows + i] as number) * (slots.col_var[b * columns + j] as number)) / Math.max(whole, floor);
    }
  }
  const u = g.map((value, i) => value / Math.sqrt(Math.max(v[i] as number, floor ** 2)));
  const rate = (Math.max(eps2, rms(p)) * Math.min(lr, 1 / Math.sqrt(t))) / Math.max(1, rms(u) / d);
  return u.map((value, i) => (p[i] as number) - (lr * weight_decay * (p[i] as number) + rate * value));
};

/** Shards of elements, rows and tiles end within rows, matrices and columns. */
const SHAPES: Shapes = {
  wide: [4, 17_011],
  tall: [23_001, 3],
  batch: [2, 2, 70, 301],
  convolution: [17, 5, 3, 3],
  row: [1, 7],
  column: [5, 1],
  vector: [70_001],
  scalar: [],
  empty: [0, 4],
  hollow: [4, 0],
};

const STEPS = 3;

suite("steps are the formula in float64", () => {
  for (const { label, optimizer } of variants.filter((one) => one.optimizer.name === "adafactor")) {
    for (const [dtype, limit] of [
      ["F32", 3e-7],
      ["F64", 1e-13],
    ] as const) {
      test(`${label}, ${dtype}`, async () => {
        const options = { ...DEFAULTS, ...optimizer, lr: 0.5 };
        const call = { ...options, name: "adafactor" };
        let params = writeTyped(typed(startParams(SHAPES), dtype));
        let state: Uint8Array | null = null;
        const slots = new Map(
          Object.entries(startParams(SHAPES)).map(([name, { data }]) => {
            const zeros = (): Float64Array => new Float64Array(data.length);
            return [name, { row_var: zeros(), col_var: zeros(), variance: zeros() }];
          }),
        );
        for (let step = 0; step < STEPS; step++) {
          const [before, grads] = [readTyped(params), gradsAt(SHAPES, step)];
          const reply: StepReply = await service.call<StepReply>("optimizer.step", { optimizer: call, params, grads: writeTensors(grads), state });
          params = Buffer.from(reply.params);
          state = reply.state;
          for (const [name, { shape, values: found }] of Object.entries(readTyped(params))) {
            const old = before[name]?.values as number[];
            const expected = reference(options, dtype === "F32" ? 2 ** -23 : 2 ** -52, shape, old, grads[name]?.data ?? [], slots.get(name) as Slots, step + 1);
            const error = rms(expected.map((value, i) => (found[i] as number) - value));
            assert.ok(error <= limit, `${name}, step ${step + 1}: ${error}`);
          }
        }
      });
    }
  }
});

test("slots have torch's shapes: one number for each row and each column", async () => {
  const file = writeTensors(startParams(SHAPES));
  const init = await service.call<{ state: Uint8Array }>("optimizer.init", { optimizer: { name: "adafactor" }, params: file });
  const step = await service.call<StepReply>("optimizer.step", { optimizer: { name: "adafactor" }, params: file, grads: file, state: init.state });
  for (const state of [init.state, step.state]) {
    const { slots } = readState(state);
    const shapes = (slot: string) => Object.fromEntries(Object.entries(slots[slot] ?? {}).map(([name, { shape }]) => [name, shape]));
    assert.deepEqual(shapes("row_var"), {
      batch: [2, 2, 70, 1],
      column: [5, 1],
      convolution: [17, 5, 3, 1],
      empty: [0, 1],
      hollow: [4, 1],
      row: [1, 1],
      tall: [23_001, 1],
      wide: [4, 1],
    });
    assert.deepEqual(shapes("col_var"), {
      batch: [2, 2, 1, 301],
      column: [1, 1],
      convolution: [17, 5, 1, 3],
      empty: [1, 4],
      hollow: [1, 0],
      row: [1, 7],
      tall: [1, 3],
      wide: [1, 17_011],
    });
    assert.deepEqual(shapes("variance"), { scalar: [], vector: [70_001] });
  }
});

test("torch's file becomes the same state, and comes back", async () => {
  const shapes: Shapes = { w: [3, 5], b: [4] };
  const { state } = await run(service, { optimizer: { name: "adafactor" }, shapes, steps: 2 });
  const there = await service.call<{ state: Uint8Array; lost: string[] }>("state.convert", { state, to: { format: "torch" } });
  assert.deepEqual(there.lost, []);
  assert.deepEqual(Object.keys(readTensors(there.state)).sort(), ["state.b.step", "state.b.variance", "state.w.col_var", "state.w.row_var", "state.w.step"]);
  const back = await service.call<{ state: Uint8Array }>("state.convert", { state: there.state, from: { format: "torch" }, optimizer: "adafactor" });
  assert.deepEqual(Buffer.from(back.state), Buffer.from(state));
});

test("optimizer.plan counts the bytes that a state takes", async () => {
  const shapes: Shapes = { w: [300, 700], b: [300] };
  const { state_bytes } = await service.call<{ state_bytes: number }>("optimizer.plan", {
    optimizer: { name: "adafactor" },
    tensors: Object.fromEntries(Object.entries(shapes).map(([name, shape]) => [name, { shape }])),
  });
  const { state } = await run(service, { optimizer: { name: "adafactor" }, shapes, steps: 1 });
  assert.equal(state_bytes, state.length);
});

suite("refused", () => {
  const params = writeTensors(startParams({ w: [2, 3] }));
  const slot = (shape: readonly number[]): TestTensors => ({ w: { shape, data: new Float32Array(shape.reduce((a, b) => a * b, 1)) } });
  const state = (slots: Readonly<Record<string, TestTensors>>): Uint8Array => writeState({ optimizer: "adafactor", steps: { w: 1 }, slots });
  for (const [what, call, expected] of [
    [
      "a row_var of the parameter's shape",
      { state: state({ row_var: slot([2, 3]), col_var: slot([1, 3]) }) },
      /STATE_MISMATCH \/state: row_var\/w to be F32 \[2,1\].*found F32 \[2,3\]/,
    ],
    ["a variance of a matrix", { state: state({ variance: slot([2, 3]) }) }, /STATE_MISMATCH \/state: no slot variance for a parameter of shape \[2,3\]/],
    ["a state without col_var", { state: state({ row_var: slot([2, 1]) }) }, /STATE_MISMATCH \/state: slot col_var\/w, after 1 steps, found none/],
    ["a decay above 0", { optimizer: { name: "adafactor", beta2_decay: 0.1 } }, /INVALID_PARAMS \/optimizer\/beta2_decay/],
    ["no smallest size of parameters", { optimizer: { name: "adafactor", eps: [null, null] } }, /INVALID_PARAMS \/optimizer\/eps\/1: a number, found null/],
    ["a threshold below 1", { optimizer: { name: "adafactor", d: 0.5 } }, /INVALID_PARAMS \/optimizer\/d/],
  ] as const) {
    test(what, async () => {
      const step = { optimizer: { name: "adafactor" }, params, grads: params, ...call };
      await assert.rejects(service.call("optimizer.step", step), ({ data: { name, field, expected: wanted, found } }: RpcError) => {
        assert.match(`${name} ${field}: ${wanted}, found ${found}`, expected);
        return true;
      });
    });
  }
});
