/**
 * Tests that training with narrow moments ends where training in float32 ends, also where moments are tiny, zero or of very
 * different sizes. The engine steps one tensor for each optimizer and format in one call.
 */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { Arena } from "../../src/arena/arena.ts";
import type { Parts } from "../../src/codec/parts.ts";
import { Engine, type Loaded } from "../../src/engine/engine.ts";
import type { StepParams } from "../../src/generated/wire.gen.ts";
import { Pool, poolBytes } from "../../src/pool/pool.ts";
import { writeTensors } from "../support/tensors.ts";

/** The smallest tensor that Q8 stores in codes. */
const SIZE = 4096;
const FORMATS = ["F32", "BF16", "Q8"] as const;
const OPTIMIZERS = {
  adamw: { name: "adamw", lr: 3e-3 },
  qhadamw: { name: "qhadamw", lr: 3e-3 },
  lamb: { name: "lamb", lr: 3e-3 },
  sgd: { name: "sgd", lr: 0.1, momentum: 0.9 },
} as const;

type Label = keyof typeof OPTIMIZERS;
const labels = Object.keys(OPTIMIZERS) as Label[];
const names = labels.flatMap((label) => FORMATS.map((format) => `${label}.${format}`));

let arena: Arena;
let pool: Pool;
let engine: Engine;
before(async () => {
  arena = new Arena(64, poolBytes(1));
  const onWorkerLost = (cause: unknown): void => assert.fail(String(cause));
  pool = await Pool.start(arena, new URL("../../build/kernels.wasm", import.meta.url), 1, { wideVectors: true, onWorkerLost });
  engine = new Engine(pool, arena.capacity);
});
after(() => pool[Symbol.asyncDispose]());

const fileOf = (start: Float32Array): Buffer => Buffer.from(writeTensors(Object.fromEntries(names.map((name) => [name, { shape: [SIZE], data: start }]))));

/** Returns the tensors of a file as views, in the order of `runs`. The file's values are its last bytes. */
const views = (file: Buffer): Float32Array[] => {
  const first = file.byteOffset + file.length - names.length * SIZE * 4;
  return names.map((_, at) => new Float32Array(file.buffer, first + at * SIZE * 4, SIZE));
};

const joined = (parts: unknown): Buffer => {
  const { pieces } = parts as Pick<Parts, "pieces">;
  const length = pieces.reduce((sum, piece) => sum + piece.length, 0);
  // The end is aligned to 8 bytes, so that the values can be viewed as floats.
  const buffer = new Uint8Array(Math.ceil(length / 8) * 8);
  const file = Buffer.from(buffer.buffer, buffer.length - length, length);
  let at = 0;
  for (const piece of pieces) {
    file.set(piece, at);
    at += piece.length;
  }
  return file;
};

interface Problem {
  readonly steps: number;
  readonly start: (at: number) => number;
  readonly curvature: (at: number) => number;
  /** Maps the exact gradient to the one that the optimizer gets. */
  readonly gradient?: (exact: number, step: number, at: number) => number;
  /** Hyperparameters that the problem needs. */
  readonly more?: Partial<Record<Label, object>>;
}

/** Minimizes the mean of curvature * x^2 / 2, and returns the last mean of each optimizer by format. */
const minimize = async ({ steps, start, curvature, gradient = (exact) => exact, more = {} }: Problem): Promise<Record<Label, number[]>> => {
  const h = Float32Array.from({ length: SIZE }, (_, at) => curvature(at));
  const groups = labels.flatMap((label) =>
    FORMATS.map((state_dtype) => ({ tensors: [`${label}.${state_dtype}`], optimizer: { ...OPTIMIZERS[label], ...more[label], state_dtype } })),
  );
  const options = { optimizer: { name: "adamw" }, groups, schedule: { name: "cosine", T_max: steps } };
  let params = joined({ pieces: [fileOf(Float32Array.from({ length: SIZE }, (_, at) => start(at)))] });
  const grads = joined({ pieces: [params] });
  const allGrads = views(grads);
  let state: Buffer | null = null;
  for (let step = 0; step < steps; step++) {
    for (const [index, x] of views(params).entries()) {
      const g = allGrads[index] as Float32Array;
      for (let at = 0; at < SIZE; at++) g[at] = gradient((h[at] as number) * (x[at] as number), step, at);
    }
    using lease = arena.lease(0);
    const placed = (bytes: Buffer): Buffer => {
      const place = lease.alloc(bytes.length);
      lease.bytes.set(bytes, place);
      return lease.view(place, bytes.length) as Buffer;
    };
    const call = { ...options, params: placed(params), grads: placed(grads), state: state && placed(state) };
    const output = await engine.step(call as unknown as Loaded<StepParams>, lease, { seconds: 0 });
    params = joined(output.params);
    state = joined(output.state);
  }
  const losses = views(params).map((x) => x.reduce((sum, value, at) => sum + 0.5 * (h[at] as number) * value * value, 0) / SIZE);
  return Object.fromEntries(labels.map((label, at) => [label, losses.slice(at * FORMATS.length, (at + 1) * FORMATS.length)])) as Record<Label, number[]>;
};

/** Curvatures from 1e-3 to 1, so that the elements of a block have moments of different sizes. */
const spread = (at: number): number => 10 ** (-3 * ((at * 0.6180339887) % 1));

const PROBLEMS: Readonly<Record<string, Problem>> = {
  "gradients times 1e-6": {
    steps: 300,
    start: () => 1,
    curvature: spread,
    gradient: (exact) => 1e-6 * exact,
    more: { adamw: { eps: 1e-14 }, qhadamw: { eps: 1e-14 }, lamb: { eps: 1e-12 }, sgd: { lr: 1e5 } },
  },
  "gradients with many zeros": {
    steps: 400,
    start: () => 1,
    curvature: spread,
    gradient: (exact, step, at) => (Math.imul(step * SIZE + at, 0x9e3779b1) >>> 0 < 2 ** 32 / 20 ? exact : 0),
  },
  "gradients that end": { steps: 400, start: () => 1, curvature: spread, gradient: (exact, step) => (step < 100 ? exact : 0) },
  "one element 1e4 times the rest": { steps: 300, start: (at) => (at === 70 ? 1e4 : 1), curvature: spread },
  "two thousand steps": { steps: 2000, start: () => 1, curvature: spread },
};

suite("a quadratic ends where it ends in float32", () => {
  for (const [title, problem] of Object.entries(PROBLEMS)) {
    test(title, async () => {
      const found = await minimize(problem);
      for (const label of labels) {
        const [wide = Number.NaN, ...narrow] = found[label];
        for (const [at, loss] of narrow.entries()) {
          // Far below the start, the formats stop at different distances from the minimum.
          assert.ok(loss <= 1.3 * wide + 5e-5, `${label}, ${FORMATS[at + 1]}: ${loss}, in float32 ${wide}`);
        }
      }
    });
  }
});
