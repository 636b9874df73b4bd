/** A prepared step against the general one: the same bytes, and nothing touched where it leaves the step to the other. */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { Arena, type Lease } from "../../src/arena/arena.ts";
import type { Parts } from "../../src/codec/parts.ts";
import { makePlan } from "../../src/engine/plan.ts";
import { PreparedStep } from "../../src/engine/prepared.ts";
import { runStep, type StepInput, type StepOptions, type StepOutput } from "../../src/engine/step.ts";
import { Pool, poolBytes } from "../../src/pool/pool.ts";
import { prepare } from "../../src/schedules/registry.ts";
import { gradsAt, type Shapes, SMALL, startParams } from "../support/run.ts";
import { type TestTensors, writeTensors } from "../support/tensors.ts";
import { variants } from "../support/variants.ts";

let arena: Arena;
let pool: Pool;
before(async () => {
  arena = new Arena(64, poolBytes(1));
  const onWorkerLost = (cause: unknown): void => assert.fail(String(cause));
  pool = await Pool.start(arena, new URL("../../build/kernels.wasm", import.meta.url), 1, { onWorkerLost });
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
const prepareAfterTwo = async (options: StepOptions, shapes: Shapes = SHAPES): Promise<{ prepared: PreparedStep | undefined; files: Files }> => {
  const start: Files = { params: writeTensors(startParams(shapes)), grads: gradsFile(0, shapes), state: null };
  const { next } = await general(options, start);
  using lease = arena.lease(0);
  const input = load(lease, { ...next, grads: gradsFile(1, shapes) });
  const output = await runStep(options, input, lease, pool, { seconds: 0 });
  return { prepared: PreparedStep.like(options, input, lease, pool), files: follow(output, gradsFile(2, shapes)) };
};

/** Variants with more to do than their stages in place. */
const isGeneral = (optimizer: Readonly<Record<string, unknown>>): boolean =>
  optimizer["max_grad_norm"] !== undefined || optimizer["maximize"] === true || optimizer["name"] === "nadam";

const cosine = { name: "cosine", T_max: 10 } as const;

suite("the same bytes as the general step", () => {
  for (const { label, optimizer } of variants) {
    test(label, async () => {
      const options = optionsOf(optimizer, { plan: makePlan(optimizer, [], prepare(cosine)) });
      const { prepared, files } = await prepareAfterTwo(options);
      assert.equal(prepared === undefined, isGeneral(optimizer));
      if (!prepared) return;
      let now = files;
      for (let step = 2; step < 6; step++) {
        const expected = await general(options, now);
        using lease = arena.lease(0);
        const output = prepared.run(load(lease, now), lease) as StepOutput;
        assert.ok(join(output.params).equals(expected.next.params), `params of step ${step}`);
        assert.ok(join(output.state).equals(expected.next.state as Buffer), `state of step ${step}`);
        const { params: _, state: __, ...rest } = output;
        const { params: ___, state: ____, ...expectedRest } = expected.output;
        assert.deepEqual(rest, expectedRest);
        now = { ...expected.next, grads: gradsFile(step + 1) };
      }
    });
  }

  test("with groups, and gradients of some tensors only", async () => {
    const optimizer = { name: "adamw", lr: 0.1 };
    const groups = [{ tensors: ["b*"], optimizer: { ...optimizer, weight_decay: 0.5, betas: [0.5, 0.75] } }];
    const options = optionsOf(optimizer, { plan: makePlan(optimizer, groups) });
    const { files } = await prepareAfterTwo(options);
    const { big, scale } = gradsAt(SHAPES, 3);
    const some = { ...files, grads: writeTensors({ scale, big } as TestTensors) };
    using lease = arena.lease(0);
    const prepared = PreparedStep.like(options, load(lease, some), lease, pool);
    let now: Files = some;
    for (let step = 0; step < 2; step++) {
      const expected = await general(options, now);
      const output = prepared?.run(load(lease, now), lease) as StepOutput;
      assert.ok(join(output.params).equals(expected.next.params), "params");
      assert.ok(join(output.state).equals(expected.next.state as Buffer), "state");
      assert.deepEqual(output.report, expected.output.report);
      now = expected.next;
    }
  });
});

const adamw = { name: "adamw" };

suite("is left to the general step, with nothing touched", () => {
  const cases: Readonly<Record<string, (files: Files) => Files>> = {
    "a gradient with NaN": (files) => ({ ...files, grads: withFloat(files.grads, Number.NaN) }),
    "a gradient whose square overflows": (files) => ({ ...files, grads: withFloat(files.grads, 1e30) }),
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
      assert.equal(prepared?.run(input, lease), undefined);
      assert.deepEqual(
        Object.entries(copy(input)).map(([name, bytes]) => [name, bytes?.equals(before[name as keyof Files] as Buffer)]),
        Object.entries(before).map(([name, bytes]) => [name, bytes ? true : undefined]),
      );
      assert.notEqual(prepared?.run(load(lease, files), lease), undefined, "the step itself is taken");
    });
  }

  test("a step of a tensor without a gradient that cannot be", async () => {
    const options = optionsOf(adamw);
    const { files } = await prepareAfterTwo(options);
    const some = { ...files, grads: writeTensors({ b: gradsAt(SHAPES, 3)["b"] } as TestTensors) };
    using lease = arena.lease(0);
    const prepared = PreparedStep.like(options, load(lease, some), lease, pool);
    // The first tensor of a state by name is `b`, the last `w`.
    assert.equal(prepared?.run(load(lease, { ...some, state: withStep(files.state, -1n, "w") }), lease), undefined);
    assert.notEqual(prepared?.run(load(lease, some), lease), undefined);
  });

  test("bytes outside of the lease", async () => {
    const { prepared, files } = await prepareAfterTwo(optionsOf(adamw));
    using lease = arena.lease(0);
    assert.equal(prepared?.run(files, lease), undefined);
  });

  test("a schedule that cycles the momentum", async () => {
    const schedule = { name: "sequence", milestones: [3], schedules: [cosine, { name: "one_cycle", max_lr: 0.1, total_steps: 20 }] };
    const { prepared, files } = await prepareAfterTwo(optionsOf(adamw, { plan: makePlan(adamw, [], prepare(schedule as never)) }));
    using lease = arena.lease(0);
    assert.notEqual(prepared?.run(load(lease, files), lease), undefined);
    assert.equal(prepared?.run(load(lease, { ...files, state: withStep(files.state, 5n) }), lease), undefined);
  });
});

suite("is not prepared", () => {
  const cases: Readonly<Record<string, Partial<StepOptions>>> = {
    clipping: { clip: { max_norm: 1 } },
    "clipping by value": { clip: { max_value: 1 } },
    "a loss scale": { lossScale: 2 },
    statistics: { stats: "global" },
    "parameters rounded for the reply": { roundsReply: true },
  };
  for (const [what, more] of Object.entries(cases)) {
    test(what, async () => {
      assert.equal((await prepareAfterTwo(optionsOf(adamw, more))).prepared, undefined);
    });
  }

  test("a step for the workers", async () => {
    assert.equal((await prepareAfterTwo(optionsOf(adamw), { w: [140_000] })).prepared, undefined);
  });

  test("a state that would be written in another order", async () => {
    const options = optionsOf({ name: "sgd" });
    const { files } = await prepareAfterTwo(options, { w: [3] });
    // A header with other spaces says the same and is not what stepd writes.
    const state = files.state as Buffer;
    const text = state.toString("latin1").replace('"revision":"1"}', '"revision": "1"}').replace("}}  ", "}} ");
    const spaced = Buffer.from(text, "latin1");
    assert.equal(spaced.length, state.length);
    using lease = arena.lease(0);
    assert.notEqual(PreparedStep.like(options, load(lease, files), lease, pool), undefined);
    assert.equal(PreparedStep.like(options, load(lease, { ...files, state: spaced }), lease, pool), undefined);
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
