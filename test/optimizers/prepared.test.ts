/** A prepared step against the general one: the same bytes, and nothing touched where it leaves the step to the other. */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { Arena, type Lease } from "../../src/arena/arena.ts";
import type { Parts } from "../../src/codec/parts.ts";
import { makePlan } from "../../src/engine/plan.ts";
import { PreparedStep } from "../../src/engine/prepared.ts";
import { runStep, type StepInput, type StepOutput } from "../../src/engine/step.ts";
import type { StepOptions } from "../../src/engine/update.ts";
import { Pool, poolBytes } from "../../src/pool/pool.ts";
import { prepare } from "../../src/schedules/registry.ts";
import { gradsAt, LARGE, type Shapes, SMALL, startParams } from "../support/run.ts";
import { type TestTensors, writeTensors } from "../support/tensors.ts";
import { typed, writeTyped } from "../support/typed.ts";
import { variants } from "../support/variants.ts";

let arena: Arena;
let pool: Pool;
before(async () => {
  arena = new Arena(64, poolBytes(1));
  const onWorkerLost = (cause: unknown): void => assert.fail(String(cause));
  pool = await Pool.start(arena, new URL("../../build/kernels.wasm", import.meta.url), 1, { wideVectors: true, onWorkerLost });
});
after(() => pool[Symbol.asyncDispose]());

/** Tensors of which none has an even address, with one of two shards. */
const SHAPES = { ...SMALL, long: [70_001] } as const;

const optionsOf = (optimizer: { readonly name: string }, more: Partial<StepOptions> = {}): StepOptions => ({
  plan: makePlan(optimizer, []),
  clip: {},
  lossScale: 1,
  nonFinite: "error",
  stats: "none",
  masterWeights: false,
  seed: undefined,
  roundsReply: false,
  ...more,
});

interface Files {
  readonly params: Buffer;
  readonly grads: Buffer;
  readonly state: Buffer | null;
}

/** Copies files into a lease, one after the other as in a body. */
const load = (lease: Lease, { params, grads, state }: Files): StepInput => {
  const place = (bytes: Buffer): Buffer => {
    const at = lease.alloc(bytes.length + 1) + 1;
    lease.bytes.fill(bytes, at, at + bytes.length);
    return lease.view(at, bytes.length);
  };
  return { params: place(params), grads: place(grads), state: state && place(state) };
};

const join = (parts: unknown): Buffer => Buffer.concat((parts as Parts).pieces.map((piece) => Buffer.from(piece)));

const copy = ({ params, grads, state }: StepInput): Files => ({
  params: Buffer.from(params as Buffer),
  grads: Buffer.from(grads as Buffer),
  state: state === null ? null : Buffer.from(state as Buffer),
});

const gradsFile = (step: number, shapes: Shapes = SHAPES): Buffer => writeTensors(gradsAt(shapes, step));

/** The files of the next step. */
const follow = (output: StepOutput, grads: Buffer): Files => ({ params: join(output.params), grads, state: join(output.state) });

const general = async (options: StepOptions, files: Files): Promise<{ output: StepOutput; next: Files }> => {
  using lease = arena.lease(0);
  const output = await runStep(options, load(lease, files), lease, pool, { seconds: 0 });
  return { output, next: follow(output, files.grads) };
};

/** A step prepared after two, and the files that follow. */
const prepareAfterTwo = async (
  options: StepOptions,
  files: (step: number) => Files = filesAt,
): Promise<{ prepared: PreparedStep | undefined; files: Files }> => {
  const { next } = await general(options, files(0));
  using lease = arena.lease(0);
  const input = load(lease, { ...next, grads: files(1).grads });
  const output = await runStep(options, input, lease, pool, { seconds: 0 });
  return { prepared: PreparedStep.like(options, input, lease, pool, MOST), files: follow(output, files(2).grads) };
};

const filesAt = (step: number, shapes: Shapes = SHAPES): Files => ({ params: writeTensors(startParams(shapes)), grads: gradsFile(step, shapes), state: null });

const run = (prepared: PreparedStep | undefined, input: StepInput, lease: Lease): StepOutput | Promise<StepOutput> | undefined =>
  prepared?.run(input, lease, pool, { seconds: 0 });

/** Takes steps both ways, and asserts that a prepared one gives what the general one does. */
const requireSameSteps = async (options: StepOptions, files: (step: number) => Files = filesAt): Promise<void> => {
  const { prepared, files: third } = await prepareAfterTwo(options, files);
  assert.notEqual(prepared, undefined);
  let now = third;
  for (let step = 2; step < 5; step++) {
    const expected = await general(options, now);
    using lease = arena.lease(0);
    const output = (await run(prepared, load(lease, now), lease)) as StepOutput;
    assert.ok(join(output.params).equals(expected.next.params), `params of step ${step}`);
    assert.ok(join(output.state).equals(expected.next.state as Buffer), `state of step ${step}`);
    const { params: _, state: __, ...rest } = output;
    const { params: ___, state: ____, ...expectedRest } = expected.output;
    assert.deepEqual(rest, expectedRest);
    now = { ...expected.next, grads: files(step + 1).grads };
  }
};

const MOST = 2 ** 25;

const cosine = { name: "cosine", T_max: 10 } as const;
const adamw = { name: "adamw" };

suite("the same bytes as the general step", () => {
  for (const { label, optimizer } of variants) test(label, () => requireSameSteps(optionsOf(optimizer, { plan: makePlan(optimizer, [], prepare(cosine)) })));

  const cases: Readonly<Record<string, Partial<StepOptions>>> = {
    "clipping by norm": { clip: { max_norm: 0.5 } },
    "clipping by the norm of more tensors": { clip: { max_norm: 0.5, total_norm: 3 } },
    "clipping by value": { clip: { max_value: 0.25 } },
    "a loss scale": { lossScale: 8 },
    "statistics of each tensor": { stats: "tensor" },
    "gradients that are not looked at": { nonFinite: "propagate" },
    "gradients that may be skipped": { nonFinite: "skip", stats: "global" },
  };
  for (const [what, more] of Object.entries(cases)) test(what, () => requireSameSteps(optionsOf(adamw, more)));

  for (const [what, more, params, grads] of [
    ["BF16", {}, "BF16", "BF16"],
    ["BF16 with master weights", { masterWeights: true, clip: { max_norm: 0.5 } }, "BF16", "BF16"],
    ["BF16 rounded stochastically", { seed: 7 }, "BF16", "F32"],
    ["F16 and F32", { lossScale: 4 }, "F16", "F32"],
    ["F32 and BF16", {}, "F32", "BF16"],
    ["F32 and F64", { lossScale: 3, stats: "tensor" }, "F32", "F64"],
    ["F64", {}, "F64", "F64"],
    ["F64 and F32", { stats: "tensor" }, "F64", "F32"],
  ] as const) {
    test(`tensors in ${what}`, () =>
      requireSameSteps(optionsOf({ name: "lamb" }, more), (step) => ({
        params: writeTyped(typed(startParams(SHAPES), params)),
        grads: writeTyped(typed(gradsAt(SHAPES, step), grads)),
        state: null,
      })));
  }

  test("with groups, and gradients of some tensors only", async () => {
    const optimizer = { name: "adamw", lr: 0.1 };
    const groups = [{ tensors: ["b*"], optimizer: { ...optimizer, weight_decay: 0.5, betas: [0.5, 0.75] } }];
    const options = optionsOf(optimizer, { plan: makePlan(optimizer, groups) });
    const { scale, big } = startParams(SHAPES);
    await requireSameSteps(options, (step) => (step === 0 ? filesAt(0) : { ...filesAt(step), grads: writeTensors({ scale, big } as TestTensors) }));
  });

  test("on the workers", () => requireSameSteps(optionsOf({ name: "lamb" }), (step) => filesAt(step, LARGE)));

  test("slots that are not in use", async () => {
    const first = await general(optionsOf({ name: "adam", amsgrad: true } as never), filesAt(0));
    await requireSameSteps(optionsOf({ name: "adam" }), (step) => (step === 0 ? { ...first.next, grads: gradsFile(0) } : filesAt(step)));
  });
});

suite("is left to the general step, with nothing touched", () => {
  const cases: Readonly<Record<string, (files: Files) => Files>> = {
    "a step below 0": (files) => ({ ...files, state: withStep(files.state, -1n) }),
    "the last step that can be counted": (files) => ({ ...files, state: withStep(files.state, 2n ** 53n - 1n) }),
    "a step of 2^63 - 1": (files) => ({ ...files, state: withStep(files.state, 2n ** 63n - 1n) }),
    "tensors under other names": (files) => ({ ...files, params: withName(files.params), grads: withName(files.grads) }),
    "a longer file": (files) => ({ ...files, params: Buffer.concat([files.params, Buffer.alloc(4)]) }),
    "no state": (files) => ({ ...files, state: null }),
  };
  for (const [what, change] of Object.entries(cases)) {
    test(what, async () => {
      const { prepared, files } = await prepareAfterTwo(optionsOf(adamw));
      using lease = arena.lease(0);
      const input = load(lease, change(files));
      const before = copy(input);
      assert.equal(run(prepared, input, lease), undefined);
      assert.deepEqual(
        Object.entries(copy(input)).map(([name, bytes]) => [name, bytes?.equals(before[name as keyof Files] as Buffer)]),
        Object.entries(before).map(([name, bytes]) => [name, bytes ? true : undefined]),
      );
      assert.notEqual(await run(prepared, load(lease, files), lease), undefined, "the step itself is taken");
    });
  }

  test("a step of a tensor without a gradient that cannot be", async () => {
    const files = (step: number): Files => (step === 0 ? filesAt(0) : { ...filesAt(step), grads: writeTensors({ b: gradsAt(SHAPES, 3)["b"] } as TestTensors) });
    const { prepared, files: third } = await prepareAfterTwo(optionsOf(adamw), files);
    using lease = arena.lease(0);
    assert.equal(run(prepared, load(lease, { ...third, state: withStep(third.state, -1n, "w") }), lease), undefined);
    assert.notEqual(await run(prepared, load(lease, third), lease), undefined);
  });

  test("bytes outside of the lease", async () => {
    const { prepared, files } = await prepareAfterTwo(optionsOf(adamw));
    using lease = arena.lease(0);
    assert.equal(run(prepared, files, lease), undefined);
  });

  test("a schedule that cycles the momentum", async () => {
    const schedule = { name: "sequence", milestones: [3], schedules: [cosine, { name: "one_cycle", max_lr: 0.1, total_steps: 20 }] };
    const { prepared, files } = await prepareAfterTwo(optionsOf(adamw, { plan: makePlan(adamw, [], prepare(schedule as never)) }));
    using lease = arena.lease(0);
    assert.notEqual(await run(prepared, load(lease, files), lease), undefined);
    assert.equal(run(prepared, load(lease, { ...files, state: withStep(files.state, 5n) }), lease), undefined);
  });
});

suite("values that are out of the ordinary are found", () => {
  /** What both ways come to: an output without its tensors, or an error. */
  const outcome = async (output: StepOutput | Promise<StepOutput> | undefined): Promise<unknown> => {
    try {
      const { params, state, ...rest } = (await output) as StepOutput;
      return { params: join(params).toString("base64"), state: join(state).toString("base64"), ...rest };
    } catch (error) {
      return { message: (error as Error).message, ...(error as object) };
    }
  };
  for (const [what, value, more] of [
    ["NaN", Number.NaN, {}],
    ["infinity, clipped", Number.POSITIVE_INFINITY, { clip: { max_norm: 1 } }],
    ["NaN, skipped", Number.NaN, { nonFinite: "skip" }],
    ["NaN, propagated", Number.NaN, { nonFinite: "propagate" }],
    ["a square that overflows", 1e30, {}],
  ] as const) {
    test(what, async () => {
      const options = optionsOf(adamw, more);
      const { prepared, files } = await prepareAfterTwo(options);
      const odd = { ...files, grads: withFloat(files.grads, value) };
      using lease = arena.lease(0);
      const found = await outcome(run(prepared, load(lease, odd), lease));
      assert.deepEqual(found, await outcome(runStep(options, load(lease, odd), lease, pool, { seconds: 0 })));
    });
  }
});

suite("is not prepared", () => {
  test("parameters rounded for the reply", async () => {
    assert.equal((await prepareAfterTwo(optionsOf(adamw, { roundsReply: true }))).prepared, undefined);
  });

  test("a state that would be written in another order", async () => {
    const options = optionsOf({ name: "sgd" });
    const { files } = await prepareAfterTwo(options, (step) => filesAt(step, { w: [3] }));
    // A header with other spaces says the same and is not what stepd writes.
    const state = files.state as Buffer;
    const text = state.toString("latin1").replace('"revision":"1"}', '"revision": "1"}').replace("}}  ", "}} ");
    const spaced = Buffer.from(text, "latin1");
    assert.equal(spaced.length, state.length);
    using lease = arena.lease(0);
    assert.notEqual(PreparedStep.like(options, load(lease, files), lease, pool, MOST), undefined);
    assert.equal(PreparedStep.like(options, load(lease, { ...files, state: spaced }), lease, pool, MOST), undefined);
  });
});

/** A file whose last value is another. */
const withFloat = (file: Buffer, value: number): Buffer => {
  const changed = Buffer.from(file);
  changed.writeFloatLE(value, file.length - 4);
  return changed;
};

/** A state whose count of steps of a tensor is another. */
const withStep = (state: Buffer | null, step: bigint, name = "b"): Buffer => {
  const changed = Buffer.from(state as Buffer);
  const start = 8 + changed.readUInt32LE(0);
  const header = JSON.parse(changed.toString("utf8", 8, start)) as Record<string, { readonly data_offsets: readonly [number, number] }>;
  changed.writeBigInt64LE(step, start + (header[`step/${name}`]?.data_offsets[0] as number));
  return changed;
};

const withName = (file: Buffer): Buffer => Buffer.from(file.toString("latin1").replace('"big"', '"bog"'), "latin1");
