/**
 * Runs each step twice: with a layout that an earlier call cached, and on a new engine. Requires equal bytes, reports and
 * errors.
 */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, mock, suite, test } from "node:test";
import { Arena, type Lease } from "../../src/arena/arena.ts";
import type { Parts } from "../../src/codec/parts.ts";
import { Engine, type Loaded, type StepOutput } from "../../src/engine/engine.ts";
import type { StepParams } from "../../src/generated/wire.gen.ts";
import { Pool, poolBytes } from "../../src/pool/pool.ts";
import { gradsAt, LARGE, type Shapes, SMALL, startParams } from "../support/run.ts";
import { readFile, readState, type TestTensors, writeTensors } from "../support/tensors.ts";
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

/** No tensor has an even address, and one tensor takes two shards. */
const SHAPES = { ...SMALL, long: [70_001] } as const;

type Options = Omit<StepParams, "params" | "grads" | "reduce" | "state" | "receipt">;

interface Files {
  readonly params: Buffer;
  readonly grads: Buffer;
  readonly state: Buffer | null;
}

/** Copies files into a lease, one after the other, as blobs follow each other in a body. */
const load = (lease: Lease, { params, grads, state }: Files): Files => {
  const place = (bytes: Buffer): Buffer => {
    const at = lease.alloc(bytes.length + 1) + 1;
    lease.bytes.fill(bytes, at, at + bytes.length);
    return lease.view(at, bytes.length);
  };
  return { params: place(params), grads: place(grads), state: state && place(state) };
};

const join = (parts: unknown): Buffer => Buffer.concat((parts as Parts).pieces.map((piece) => Buffer.from(piece)));

/** The output of a step, with its tensors copied out of the arena, or the step's error. */
type Outcome = (Omit<StepOutput, "params" | "rounded" | "state"> & { readonly params: unknown; readonly state: Buffer }) | { readonly message: string };

const takeStep = async (engine: Engine, call: Loaded<StepParams>, lease: Lease): Promise<Outcome> => {
  try {
    const { params, rounded, state, ...rest } = await engine.step(call, lease, { seconds: 0 });
    const copied = (tensors: unknown) => (tensors && "pieces" in (tensors as object) ? join(tensors) : tensors);
    return { ...rest, params: copied(params), ...(rounded && { rounded: copied(rounded) }), state: join(state) };
  } catch (error) {
    return { message: (error as Error).message, ...(error as object) };
  }
};

const newEngine = (): Engine => new Engine(pool, arena.capacity);

/**
 * Takes a step on the engine `warm`, which may have the layout cached, and on a new engine. Requires equal outcomes, and
 * returns one.
 */
const requireSameOutcome = async (warm: Engine, options: Options, files: Files): Promise<Outcome> => {
  using lease = arena.lease(0);
  const expected = await takeStep(newEngine(), { ...options, ...load(lease, files) }, lease);
  assert.deepEqual(await takeStep(warm, { ...options, ...load(lease, files) }, lease), expected);
  return expected;
};

/** Returns the files of the next step. */
const nextFiles = (outcome: Outcome, grads: Buffer): Files => {
  if (!("state" in outcome)) assert.fail(outcome.message);
  return { params: outcome.params as Buffer, grads, state: outcome.state };
};

const gradsFile = (step: number, shapes: Shapes = SHAPES): Buffer => writeTensors(gradsAt(shapes, step));

const filesAt = (step: number, shapes: Shapes = SHAPES): Files => ({ params: writeTensors(startParams(shapes)), grads: gradsFile(step, shapes), state: null });

/** Returns an engine that has taken two steps, and the files of the third step. */
const afterTwo = async (options: Options, files: (step: number) => Files = filesAt): Promise<{ readonly warm: Engine; readonly files: Files }> => {
  const warm = newEngine();
  const first = await requireSameOutcome(warm, options, files(0));
  const second = await requireSameOutcome(warm, options, nextFiles(first, files(1).grads));
  return { warm, files: nextFiles(second, files(2).grads) };
};

const requireSameSteps = async (options: Options, files: (step: number) => Files = filesAt): Promise<void> => {
  const { warm, files: third } = await afterTwo(options, files);
  let now = third;
  for (let step = 3; step < 6; step++) now = nextFiles(await requireSameOutcome(warm, options, now), files(step).grads);
};

const cosine = { name: "cosine", T_max: 10 } as const;
const adamw = { name: "adamw" } as const;

suite("a cached layout gives the same bytes", () => {
  for (const { label, optimizer } of variants) test(label, () => requireSameSteps({ optimizer: optimizer as Options["optimizer"], schedule: cosine }));

  const cases: Readonly<Record<string, Partial<Options>>> = {
    "clipping by norm": { clip: { max_norm: 0.5 } },
    "clipping by the norm of more tensors": { clip: { max_norm: 0.5, total_norm: 3 } },
    "clipping by value": { clip: { max_value: 0.25 } },
    "a loss scale": { loss_scale: 8 },
    "statistics of each tensor": { stats: "tensor" },
    "gradients that are not looked at": { non_finite: "propagate" },
    "gradients that may be skipped": { non_finite: "skip", stats: "global" },
    "parameters rounded for the reply": { reply: { params: "bf16" } },
    "a schedule that cycles the momentum": { schedule: { name: "one_cycle", max_lr: 0.1, total_steps: 20 } },
  };
  for (const [what, more] of Object.entries(cases)) test(what, () => requireSameSteps({ optimizer: adamw, ...more }));

  for (const [what, more, params, grads] of [
    ["BF16", {}, "BF16", "BF16"],
    ["BF16 with master weights", { master_weights: true, clip: { max_norm: 0.5 } }, "BF16", "BF16"],
    ["BF16 rounded stochastically", { stochastic_rounding: { seed: 7 } }, "BF16", "F32"],
    ["F16 and F32", { loss_scale: 4 }, "F16", "F32"],
    ["F32 and BF16", {}, "F32", "BF16"],
    ["F32 and F64", { loss_scale: 3, stats: "tensor" }, "F32", "F64"],
    ["F64", {}, "F64", "F64"],
    ["F64 and F32", { stats: "tensor" }, "F64", "F32"],
  ] as const) {
    test(`tensors in ${what}`, () =>
      requireSameSteps({ optimizer: { name: "lamb" }, ...more }, (step) => ({
        params: writeTyped(typed(startParams(SHAPES), params)),
        grads: writeTyped(typed(gradsAt(SHAPES, step), grads)),
        state: null,
      })));
  }

  test("with groups, and gradients for only some tensors", async () => {
    const groups: Options["groups"] = [{ tensors: ["b*"], optimizer: { weight_decay: 0.5, betas: [0.5, 0.75] } }];
    const { scale, big } = startParams(SHAPES);
    await requireSameSteps({ optimizer: { name: "adamw", lr: 0.1 }, groups }, (step) =>
      step === 0 ? filesAt(0) : { ...filesAt(step), grads: writeTensors({ scale, big } as TestTensors) },
    );
  });

  test("with groups of other optimizers, whose state begins late", async () => {
    const groups: Options["groups"] = [{ tensors: ["b*"], optimizer: { name: "nadam" } }];
    const { scale, big } = startParams(SHAPES);
    await requireSameSteps({ optimizer: { name: "sgd", momentum: 0.9 }, groups }, (step) =>
      step === 0 ? { ...filesAt(0), grads: writeTensors({ scale } as TestTensors) } : { ...filesAt(step), grads: writeTensors({ scale, big } as TestTensors) },
    );
  });

  test("without slots, if a parameter gets its first gradient late", async () => {
    const { b, ...others } = gradsAt(SMALL, 0);
    const warm = newEngine();
    const first = await requireSameOutcome(warm, { optimizer: { name: "sgd" } }, { ...filesAt(0, SMALL), grads: writeTensors(others) });
    for (let time = 0; time < 3; time++) await requireSameOutcome(warm, { optimizer: { name: "sgd" } }, nextFiles(first, writeTensors({ b } as TestTensors)));
    const { params, state } = (await requireSameOutcome(warm, { optimizer: { name: "sgd" } }, nextFiles(first, gradsFile(1, SMALL)))) as {
      params: Buffer;
      state: Buffer;
    };
    assert.deepEqual(readState(state).steps, { b: 1, big: 2, empty: 2, scale: 2, w: 2 });
    assert.equal(params.length, filesAt(0, SMALL).params.length);
  });

  test("parameters that rest keep their steps and scalars where others make a new file", async () => {
    const { w, b } = gradsAt(SMALL, 0);
    const options: Options = { optimizer: { name: "nadam" } };
    const warm = newEngine();
    const first = await requireSameOutcome(warm, options, { ...filesAt(0, SMALL), grads: writeTensors({ w } as TestTensors) });
    const second = await requireSameOutcome(warm, options, nextFiles(first, writeTensors({ w } as TestTensors)));
    const before = readFile((second as { state: Buffer }).state).entries;
    const third = await requireSameOutcome(warm, options, nextFiles(second, writeTensors({ b } as TestTensors)));
    const { state, report } = third as { state: Buffer } & Pick<StepOutput, "report">;
    assert.deepEqual(readState(state).steps, { b: 1, w: 2 });
    assert.equal(report.step, 2);
    const after = readFile(state).entries;
    assert.ok(before.has("mu_product/w"));
    for (const [key, { bytes }] of before) assert.deepEqual(after.get(key)?.bytes, bytes, key);
    // Without gradients no parameter moves, and the learning rate is that of the parameter with the most steps.
    const decays: Options = { optimizer: { name: "nadam", lr: 1 }, schedule: { name: "exponential", gamma: 0.5 } };
    const { report: last } = (await requireSameOutcome(warm, decays, nextFiles(third, writeTensors({})))) as Pick<StepOutput, "report">;
    assert.deepEqual([last.step, last.lr], [2, 0.25]);
  });

  test("a momentum that begins late starts from the gradient, as in a first step", async () => {
    const { warm, files } = await afterTwo({ optimizer: { name: "sgd" } }, (step) => filesAt(step, SMALL));
    const { state } = (await requireSameOutcome(warm, { optimizer: { name: "sgd", momentum: 0.9, dampening: 0.5 } }, files)) as { state: Buffer };
    assert.deepEqual(readState(state).slots["momentum_buffer"]?.["big"], gradsAt(SMALL, 2)["big"]);
    assert.equal(readState(state).steps["big"], 3);
  });

  test("on the workers", () => requireSameSteps({ optimizer: { name: "lamb" } }, (step) => filesAt(step, LARGE)));

  test("with slots that are not in use", async () => {
    const first = await requireSameOutcome(newEngine(), { optimizer: { name: "adam", amsgrad: true } }, filesAt(0));
    await requireSameSteps({ optimizer: { name: "adam" } }, (step) => (step === 0 ? nextFiles(first, gradsFile(0)) : filesAt(step)));
  });

  test("with a momentum that a schedule lowers to 0 and raises again", () =>
    requireSameSteps({
      optimizer: { name: "sgd", momentum: 0.5 },
      schedule: { name: "cyclic", base_lr: 0.1, max_lr: 0.2, step_size_up: 2, base_momentum: 0 },
    }));
});

suite("a change of headers or options gets a layout of its own", () => {
  const cases: Readonly<Record<string, (files: Files) => Partial<Options> & Partial<Files>>> = {
    "tensors under other names": (files) => ({ params: withName(files.params), grads: withName(files.grads), state: null }),
    "a longer file": (files) => ({ params: Buffer.concat([files.params, Buffer.alloc(4)]) }),
    "no state": () => ({ state: null }),
    "a state with a space in its header": (files) => ({ state: withSpace(files.state) }),
    "a learning rate of -0": () => ({ optimizer: { name: "adamw", lr: -0 } }),
    "another optimizer of the family": () => ({ optimizer: { name: "lamb" } }),
    "a loss scale": () => ({ loss_scale: 3 }),
  };
  for (const [what, change] of Object.entries(cases)) {
    test(what, async () => {
      const { warm, files } = await afterTwo({ optimizer: adamw });
      const { params, grads, state, ...options } = { ...files, optimizer: adamw, ...change(files) };
      for (let time = 0; time < 3; time++) {
        await requireSameOutcome(warm, options, { params, grads, state });
        await requireSameOutcome(warm, { optimizer: adamw }, files);
      }
    });
  }
});

/** Values for each option of a step. */
const VALUES: Readonly<Record<keyof Options, readonly unknown[]>> = {
  optimizer: [
    { name: "adamw", lr: 0.5 },
    { name: "lamb", lr: 0.25 },
  ],
  groups: [[{ tensors: ["w"], optimizer: { lr: 0.5 } }], [{ tensors: ["b"], optimizer: { lr: 0.5 } }]],
  slices: [{ long: { offset: 0 } }, { long: { offset: 65_536 } }, { long: { offset: 131_072 } }],
  schedule: [
    { name: "cosine", T_max: 10 },
    { name: "cosine", T_max: 20 },
  ],
  clip: [{ max_norm: 0.5 }, { max_norm: 0.5, total_norm: "Infinity" }, { max_norm: 0.5, total_norm: "NaN" }, { max_value: 0.25 }],
  loss_scale: [2, 3],
  non_finite: ["skip", "propagate"],
  others_non_finite: [true, false],
  stats: ["global", "tensor"],
  master_weights: [true, false],
  stochastic_rounding: [{ seed: 1 }, { seed: 2 }],
  reply: [{ params: "bf16" }, { params: "none" }],
};

test("every option of the schema takes effect in every call, in turn with the others", async () => {
  const schema = JSON.parse(readFileSync(new URL("../../schemas/step.schema.json", import.meta.url), "utf8")) as { readonly properties: object };
  const options = Object.keys(schema.properties).filter((name) => !["params", "grads", "reduce", "state", "receipt"].includes(name));
  assert.deepEqual(Object.keys(VALUES).sort(), options.sort(), "a new option has its values in this test");
  const { warm, files } = await afterTwo({ optimizer: adamw });
  const odd = { ...files, grads: withFloat(files.grads, Number.NaN) };
  for (let time = 0; time < 3; time++) {
    for (const [name, values] of Object.entries(VALUES)) {
      for (const value of values) for (const some of [files, odd]) await requireSameOutcome(warm, { optimizer: adamw, [name]: value }, some);
    }
  }
});

suite("a cached layout still checks values", () => {
  const cases: Readonly<Record<string, (files: Files) => Files>> = {
    "a step below 0": (files) => ({ ...files, state: withStep(files.state, -1n) }),
    "the last step that can be counted": (files) => ({ ...files, state: withStep(files.state, 2n ** 53n - 1n) }),
    "a step of 2^63 - 1": (files) => ({ ...files, state: withStep(files.state, 2n ** 63n - 1n) }),
    "a step of a tensor that rests": (files) => ({ ...files, grads: gradsFile(2, { w: SMALL.w }), state: withStep(files.state, -1n) }),
    "a schedule that has ended": (files) => ({ ...files, state: withStep(files.state, 30n) }),
  };
  for (const [what, change] of Object.entries(cases)) {
    test(what, async () => {
      const options: Options = { optimizer: adamw, schedule: { name: "one_cycle", max_lr: 0.1, total_steps: 20, cycle_momentum: false } };
      const { warm, files } = await afterTwo(options);
      assert.ok("message" in (await requireSameOutcome(warm, options, change(files))));
      assert.ok("state" in (await requireSameOutcome(warm, options, files)), "the step itself is taken");
    });
  }

  for (const [what, value, more] of [
    ["NaN", Number.NaN, {}],
    ["infinity, clipped", Number.POSITIVE_INFINITY, { clip: { max_norm: 1 } }],
    ["NaN, skipped", Number.NaN, { non_finite: "skip" }],
    ["NaN, propagated", Number.NaN, { non_finite: "propagate" }],
    ["a square that overflows", 1e30, {}],
  ] as const) {
    test(what, async () => {
      const options = { optimizer: adamw, ...more };
      const { warm, files } = await afterTwo(options);
      await requireSameOutcome(warm, options, { ...files, grads: withFloat(files.grads, value) });
      await requireSameOutcome(warm, options, files);
    });
  }
});

test("a step is counted beyond 32 bits, up to the last", async () => {
  const { warm, files } = await afterTwo({ optimizer: adamw }, (step) => filesAt(step, SMALL));
  for (const taken of [2n ** 32n - 1n, 2n ** 53n - 2n]) {
    const outcome = await requireSameOutcome(warm, { optimizer: adamw }, { ...files, state: withStep(files.state, taken) });
    assert.equal(readState((outcome as { state: Buffer }).state).steps["b"], Number(taken + 1n));
  }
});

test("other calls run while a step of many tensors is read and compiled", async () => {
  const shapes = Object.fromEntries(Array.from({ length: 30_000 }, (_, index) => [`layer.${index}.weight`, [1]]));
  const files = filesAt(0, shapes);
  using lease = arena.lease(0);
  let turns = 0;
  let next = setImmediate(function count() {
    turns++;
    next = setImmediate(count);
  });
  await takeStep(newEngine(), { optimizer: adamw, ...load(lease, files) }, lease);
  clearImmediate(next);
  assert.ok(turns >= 5, `${turns} turns`);
});

suite("a repeated call does not compile its layout again", () => {
  /** Counts kernel lookups, which happen only when a layout is compiled. */
  const countLookups = async (work: () => Promise<unknown>): Promise<number> => {
    const kernel = mock.method(pool, "kernel");
    await work();
    kernel.mock.restore();
    return kernel.mock.callCount();
  };
  const base64 = ({ params, grads, state }: Files) => ({
    params: params.toString("base64"),
    grads: grads.toString("base64"),
    state: state?.toString("base64"),
  });
  const plain = (tensors: TestTensors) =>
    Object.fromEntries(Object.entries(tensors).map(([name, { shape, data }]) => [name, { shape: [...shape], values: [...data] }]));

  for (const [what, form] of [
    ["blobs in MessagePack", (files: Files) => files],
    ["blobs in base64", base64],
    ["tensors by name", (files: Files) => ({ ...base64(files), params: plain(startParams(SMALL)), grads: plain(gradsAt(SMALL, 1)) })],
  ] as const) {
    test(what, async () => {
      const engine = newEngine();
      using lease = arena.lease(0);
      const options = { optimizer: adamw } as const;
      const first = await takeStep(newEngine(), { ...options, ...load(lease, filesAt(0, SMALL)) }, lease);
      const files = nextFiles(first, gradsFile(1, SMALL));
      const step = () => takeStep(engine, { ...options, ...(form(files) as Files) }, lease);
      let expected: Outcome | undefined;
      assert.ok((await countLookups(async () => (expected = await step()))) > 0);
      assert.equal(await countLookups(async () => assert.deepEqual(await step(), expected)), 0);
      assert.deepEqual(
        (expected as { readonly state: Buffer }).state,
        ((await takeStep(newEngine(), { ...options, ...load(lease, files) }, lease)) as { state: Buffer }).state,
      );
    });
  }
});

/** Replaces the last value of a file. */
const withFloat = (file: Buffer, value: number): Buffer => {
  const changed = Buffer.from(file);
  changed.writeFloatLE(value, file.length - 4);
  return changed;
};

/** Replaces a tensor's step count in a state. */
const withStep = (state: Buffer | null, step: bigint, name = "b"): Buffer => {
  const changed = Buffer.from(state as Buffer);
  const start = 8 + changed.readUInt32LE(0);
  const header = JSON.parse(changed.toString("utf8", 8, start)) as Record<string, { readonly data_offsets: readonly [number, number] }>;
  changed.writeBigInt64LE(step, start + (header[`step/${name}`]?.data_offsets[0] as number));
  return changed;
};

const withName = (file: Buffer): Buffer => Buffer.from(file.toString("latin1").replace('"big"', '"bog"'), "latin1");

/** Returns a state with other spaces in its header. It is equivalent to the state that stepd writes. */
const withSpace = (state: Buffer | null): Buffer => {
  const file = state as Buffer;
  const end = 8 + file.readUInt32LE(0);
  const header = file.toString("latin1", 8, end).replace('"revision":"', '"revision": "').trimEnd();
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  return Buffer.concat([length, Buffer.from(header, "latin1"), file.subarray(end)]);
};
