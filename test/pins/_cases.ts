/** Lists all cases whose results have pinned bits. Each case calls a service and hashes the replies. */
import { createHash, type Hash } from "node:crypto";
import { registry } from "../../src/optimizers/registry.ts";
import { gradsAt, MATRICES, type Shapes, SMALL, type StepReply, startParams } from "../support/run.ts";
import { examples as schedules } from "../support/schedules.ts";
import type { TestService } from "../support/service.ts";
import { readFile, type TestTensor, type TestTensors, writeTensors } from "../support/tensors.ts";
import { DTYPES, type Dtype, typed, writeTyped } from "../support/typed.ts";
import { updateOf, writeUpdate } from "../support/updates.ts";
import { matrixVariants, narrowVariants, type Variant, variants } from "../support/variants.ts";

export interface Case {
  /** The optimizer to which the bits belong, or a part of the service in `REVISIONS`. */
  readonly owner: string;
  readonly label: string;
  /** True if the tensors are large enough to run on workers. */
  readonly isLarge: boolean;
  /** Returns the SHA-256 digest of the replies, in hexadecimal. */
  digest(service: TestService): Promise<string>;
}

/** The revisions of the parts that belong to no optimizer. Raise a revision to change the bits of its part on purpose. */
const REVISIONS: Readonly<Record<string, number>> = { norms: 1, reduce: 1, schedules: 1, conversions: 1 };

/** Returns the current revision of an owner. A pinned digest belongs to one revision. */
export const revisionOf = (owner: string): number => {
  const revision = registry.get(owner)?.revision ?? REVISIONS[owner];
  if (revision === undefined) throw new Error(`no revision of ${owner}`);
  return revision;
};

const isNaNAt = (bytes: Buffer, at: number, dtype: string): boolean => {
  if (dtype === "F64") return Number.isNaN(bytes.readDoubleLE(at));
  if (dtype === "F32") return Number.isNaN(bytes.readFloatLE(at));
  const magnitude = bytes.readUInt16LE(at) & 0x7fff;
  return magnitude > (dtype === "BF16" ? 0x7f80 : 0x7c00);
};

const WIDTH: Readonly<Record<string, number>> = { F64: 8, F32: 4, BF16: 2, F16: 2 };

/** Hashes a safetensors file. `hasNaN` hashes every NaN as all ones, because NaN payloads differ between machines. */
const hashFile = (hash: Hash, file: Uint8Array, hasNaN = false): void => {
  const { metadata, entries } = readFile(file);
  // The hash omits the revision, which is pinned separately.
  hash.update(JSON.stringify(Object.entries({ ...metadata, revision: "" }).sort()));
  for (const [name, { dtype, shape, bytes }] of entries) {
    hash.update(JSON.stringify([name, dtype, shape]));
    const width = hasNaN ? (WIDTH[dtype] ?? 0) : 0;
    if (width > 0) for (let at = 0; at < bytes.length; at += width) if (isNaNAt(bytes, at, dtype)) bytes.fill(0xff, at, at + width);
    hash.update(bytes);
  }
};

/** Hashes numbers as float64. */
const hashNumbers = (hash: Hash, values: readonly (number | null | undefined)[]): void => {
  for (const value of values) hash.update(Float64Array.of(typeof value === "number" && !Number.isNaN(value) ? value : Number.MAX_VALUE));
};

/** Hashes the names and numbers of a report. */
const hashReport = (hash: Hash, report: object): void => {
  for (const [name, value] of Object.entries(report)) {
    hash.update(name);
    if (typeof value === "number") hashNumbers(hash, [value]);
    else if (typeof value === "string") hash.update(value);
    else if (typeof value === "object" && value !== null) hashReport(hash, value);
  }
};

/** Tensors too large for the main thread, with several blocks and odd ends. */
const LARGE = { "encoder.weight": [211, 331], "encoder/bias": [66_001], scale: [], ünï: [3] } as const;

const SMALL_MATRICES = { wide: [3, 10], tall: [9, 2], empty: [0, 4] } as const;

/** A tensor with moments in 8 bits, a tensor that is too small for them, a scalar, and an empty tensor. */
const CODED = { coded: [4096 + 21], small: [99], scale: [], empty: [0] } as const;

interface Reply extends StepReply {
  readonly lr: number;
  readonly stats?: object;
}

interface Run {
  readonly optimizer: unknown;
  readonly shapes: Shapes;
  readonly steps: number;
  readonly dtype: Dtype;
  readonly gradDtype?: Dtype;
  /** Returns tensors that replace `startParams` and `gradsAt`. */
  readonly tensors?: (step: number) => { readonly params: TestTensors; readonly grads: TestTensors };
  /** More options of the step. */
  readonly more?: Readonly<Record<string, unknown>>;
}

/** Encoded files of the usual tensors, which many cases share. */
const files = new Map<string, Buffer>();

const fileOf = (key: string, make: () => TestTensors, dtype: Dtype): Buffer => {
  const known = files.get(`${key} ${dtype}`);
  if (known) return known;
  // float32 is written unconverted, to keep the payloads of NaN.
  const file = dtype === "F32" ? writeTensors(make()) : writeTyped(typed(make(), dtype));
  files.set(`${key} ${dtype}`, file);
  return file;
};

const keys = new Map<object, string>([
  [SMALL, "small"],
  [LARGE, "large"],
  [CODED, "coded"],
  [MATRICES, "matrices"],
  [SMALL_MATRICES, "small matrices"],
]);

/** Takes steps and hashes each reply. */
const hashRun = async (service: TestService, { optimizer, shapes, steps, dtype, gradDtype = dtype, tensors, more = {} }: Run): Promise<string> => {
  const hash = createHash("sha256");
  const key = tensors ? "extreme" : keys.get(shapes);
  let params: Uint8Array = fileOf(`params ${key}`, () => tensors?.(0).params ?? startParams(shapes), dtype);
  let state: Uint8Array | null = null;
  for (let step = 0; step < steps; step++) {
    const grads = fileOf(`grads ${key} ${step}`, () => tensors?.(step).grads ?? gradsAt(shapes, step), gradDtype);
    const reply: Reply = await service.call<Reply>("optimizer.step", { optimizer, params, grads, state, ...more });
    ({ params, state } = reply);
    hashFile(hash, params, tensors !== undefined);
    hashFile(hash, state, tensors !== undefined);
    hashNumbers(hash, [reply.step, reply.lr]);
    if (reply.stats) hashReport(hash, reply.stats);
  }
  return hash.digest("hex");
};

/**
 * Values at the ends of float32's range and around zero. Each tensor starts at another value, so that all kinds of gradients
 * and parameters meet.
 */
const FINITE = [0, -0, 1e-45, -3e-39, 1.2e-38, 1, -1.5, 1e-20, 65504, -3e5, 1e19, -2e19, 3.4e38, 0.1, -7];
const SPECIAL = [...FINITE, Infinity, -Infinity, Number.NaN];

const spread = (values: readonly number[], shape: readonly number[], start: number) => ({
  shape,
  data: Float32Array.from({ length: shape.reduce((product, size) => product * size, 1) }, (_, i) => values[(start + i) % values.length] as number),
});

/** The payload of this NaN does not fit into BF16. Without the quiet bit, the BF16 value would be an infinity. */
const CUT_NAN = 0x7f800001;

const withCutNaN = ({ shape, data }: TestTensor): TestTensor => {
  new Uint32Array(data.buffer)[data.findIndex(Number.isNaN)] = CUT_NAN;
  return { shape, data };
};

/** Returns tensors of extreme values: `special` has NaN and infinities, `resting` has a gradient in every other step. */
const extremes = (step: number) => ({
  params: {
    finite: spread(FINITE, [7, 13], 0),
    resting: withCutNaN(spread(SPECIAL, [23], 0)),
    special: spread(SPECIAL, [331], 0),
    tail: spread([0.5], [3], 0),
  },
  grads: {
    finite: spread(FINITE, [7, 13], 4 + 3 * step),
    ...(step % 2 === 1 && { resting: spread(FINITE, [23], step) }),
    special: spread(SPECIAL, [331], 5 + 7 * step),
    tail: spread([0, -0, 1e-3], [3], step),
  },
});

const dtypesOf = (label: string, isLarge: boolean, owner: string, run: Omit<Run, "dtype">): readonly Case[] =>
  DTYPES.map((dtype) => ({ owner, label: `${label}, ${dtype}`, isLarge, digest: (service) => hashRun(service, { ...run, dtype }) }));

/** The number of steps is more than four, so that later steps use the server's cached layout. */
const SMALL_STEPS = 7;
const LARGE_STEPS = 3;
const EXTREME_STEPS = 4;

const variantCases = ({ label, optimizer }: Variant): readonly Case[] => [
  ...dtypesOf(`${label}: inline`, false, optimizer.name, { optimizer, shapes: SMALL, steps: SMALL_STEPS }),
  ...dtypesOf(`${label}: extremes`, false, optimizer.name, {
    optimizer,
    shapes: {},
    steps: EXTREME_STEPS,
    tensors: extremes,
    more: { non_finite: "propagate" },
  }),
  ...dtypesOf(`${label}: on workers`, true, optimizer.name, { optimizer, shapes: LARGE, steps: LARGE_STEPS }),
  {
    owner: optimizer.name,
    label: `${label}: init`,
    isLarge: false,
    digest: async (service) => {
      const hash = createHash("sha256");
      const params = fileOf("params small", () => startParams(SMALL), "F32");
      hashFile(hash, (await service.call<{ state: Uint8Array }>("optimizer.init", { optimizer, params })).state);
      return hash.digest("hex");
    },
  },
];

const matrixCases = matrixVariants.flatMap(({ label, optimizer }) => [
  ...dtypesOf(`${label}: on workers`, true, optimizer.name, { optimizer, shapes: MATRICES, steps: LARGE_STEPS }),
  ...dtypesOf(`${label}: inline`, false, optimizer.name, { optimizer, shapes: SMALL_MATRICES, steps: SMALL_STEPS }),
]);

/** Options of a step. Each is pinned with AdamW and with LAMB, which needs whole tensors. */
const OPTIONS: Readonly<Record<string, Readonly<Record<string, unknown>>>> = {
  "clip.max_norm": { clip: { max_norm: 0.5 } },
  "clip.max_value": { clip: { max_value: 0.25 } },
  "clip.max_norm, clip.total_norm": { clip: { max_norm: 0.5, total_norm: 7 } },
  "loss_scale 1024": { loss_scale: 1024 },
  "loss_scale 3": { loss_scale: 3, clip: { max_norm: 0.1 } },
  stats: { stats: "tensor" },
  "non_finite skip": { non_finite: "skip" },
  groups: { groups: [{ tensors: ["b", "encoder*"], optimizer: { weight_decay: 0.3, lr: 1e-2 } }] },
  "schedule cosine": { schedule: { name: "cosine", T_max: 5 } },
  "schedule one_cycle": { schedule: { name: "one_cycle", max_lr: 0.1, total_steps: 20 } },
  "schedule cyclic": { schedule: { name: "cyclic", base_lr: 0.01, max_lr: 0.3, step_size_up: 3 } },
};

const NARROW_OPTIONS: Readonly<Record<string, Readonly<Record<string, unknown>>>> = {
  master_weights: { master_weights: true },
  stochastic_rounding: { stochastic_rounding: { seed: 7 } },
  "master_weights, stats": { master_weights: true, stats: "tensor" },
};

const OPTION_OPTIMIZERS = [{ name: "adamw" }, { name: "lamb", weight_decay: 0.1 }] as const;

const optionCases: readonly Case[] = OPTION_OPTIMIZERS.flatMap((optimizer) => [
  ...Object.entries(OPTIONS).flatMap(([label, more]) =>
    dtypesOf(`${label}: inline`, false, optimizer.name, { optimizer, shapes: SMALL, steps: SMALL_STEPS, more }),
  ),
  ...Object.entries(OPTIONS).map(
    ([label, more]): Case => ({
      owner: optimizer.name,
      label: `${label}: on workers, F32`,
      isLarge: true,
      digest: (service) => hashRun(service, { optimizer, shapes: LARGE, steps: LARGE_STEPS, dtype: "F32", more }),
    }),
  ),
  ...Object.entries(NARROW_OPTIONS).flatMap(([label, more]) =>
    (["BF16", "F16"] as const).flatMap((dtype): Case[] => [
      {
        owner: optimizer.name,
        label: `${label}: inline, ${dtype}`,
        isLarge: false,
        digest: (service) => hashRun(service, { optimizer, shapes: SMALL, steps: SMALL_STEPS, dtype, more }),
      },
      {
        owner: optimizer.name,
        label: `${label}: on workers, ${dtype}`,
        isLarge: true,
        digest: (service) => hashRun(service, { optimizer, shapes: LARGE, steps: LARGE_STEPS, dtype, more }),
      },
      {
        owner: optimizer.name,
        label: `${label}: extremes, ${dtype}`,
        isLarge: false,
        digest: (service) =>
          hashRun(service, { optimizer, shapes: {}, steps: EXTREME_STEPS, dtype, tensors: extremes, more: { ...more, non_finite: "propagate" } }),
      },
    ]),
  ),
  ...DTYPES.flatMap((dtype) =>
    DTYPES.filter((gradDtype) => gradDtype !== dtype).map(
      (gradDtype): Case => ({
        owner: optimizer.name,
        label: `${dtype} with gradients in ${gradDtype}, loss_scale 12`,
        isLarge: false,
        digest: (service) => hashRun(service, { optimizer, shapes: SMALL, steps: SMALL_STEPS, dtype, gradDtype, more: { loss_scale: 12 } }),
      }),
    ),
  ),
  ...(["F32", "BF16", "F16"] as const).map(
    (dtype): Case => ({
      owner: optimizer.name,
      label: `reply.params bf16: ${dtype}`,
      isLarge: false,
      digest: (service) =>
        hashRun(service, {
          optimizer,
          shapes: {},
          steps: 1,
          dtype,
          tensors: extremes,
          more: { reply: { params: "bf16" }, non_finite: "propagate", ...(dtype === "F16" && { master_weights: true }) },
        }),
    }),
  ),
]);

/**
 * Optimizers whose averages give the newest sample a weight of a half, slightly less, or slightly more. From a half on, the
 * kernel uses another formula.
 */
const AVERAGED: readonly Variant["optimizer"][] = [
  ...["adamw", "adamax", "lamb", "lion", "qhadam", "radam"].flatMap((name) => [
    { name, betas: [0.5, 0.55] },
    { name, betas: [0.55, 0.5] },
    { name, betas: [0.45, 0.55] },
    { name, betas: [0.55, 0.45] },
  ]),
  ...[0.45, 0.5, 0.55].flatMap((weight) => [
    { name: "rmsprop", alpha: weight },
    { name: "adadelta", rho: weight },
  ]),
];

const averageCases: readonly Case[] = AVERAGED.flatMap(({ name, ...more }) =>
  (["F32", "F64"] as const).map(
    (dtype): Case => ({
      owner: name,
      label: `${JSON.stringify(more)}: inline, ${dtype}`,
      isLarge: false,
      digest: (service) => hashRun(service, { optimizer: { name, ...more }, shapes: SMALL, steps: SMALL_STEPS, dtype }),
    }),
  ),
);

const momentCases: readonly Case[] = narrowVariants.flatMap(({ label, optimizer }) => [
  {
    owner: optimizer.name,
    label: `${label}: inline`,
    isLarge: false,
    digest: (service) => hashRun(service, { optimizer, shapes: CODED, steps: SMALL_STEPS, dtype: "F32" }),
  },
  {
    owner: optimizer.name,
    label: `${label}: on workers`,
    isLarge: true,
    digest: (service) => hashRun(service, { optimizer, shapes: LARGE, steps: LARGE_STEPS, dtype: "F32" }),
  },
]);

interface Norms {
  readonly tensors: Readonly<Record<string, Readonly<Record<string, number>>>>;
  readonly grad_norm: number;
}

const normCases: readonly Case[] = [SMALL, LARGE].flatMap((shapes) =>
  DTYPES.flatMap((dtype) =>
    [1, 1024, 3].map((scale): Case => {
      const key = keys.get(shapes);
      return {
        owner: "norms",
        label: `${key}, loss_scale ${scale}, ${dtype}`,
        isLarge: shapes === LARGE,
        digest: async (service) => {
          const hash = createHash("sha256");
          const params = fileOf(`params ${key}`, () => startParams(shapes), dtype);
          const grads = fileOf(`grads ${key} 0`, () => gradsAt(shapes, 0), dtype);
          hashReport(hash, await service.call<Norms>("optimizer.norms", { grads, params, loss_scale: scale }));
          return hash.digest("hex");
        },
      };
    }),
  ),
);

const REDUCE_METHODS = [{ name: "mean" }, { name: "median" }, { name: "trimmed_mean", cut: 1 }] as const;

const REDUCED = 5;

const updateFile = (shapes: Shapes, seed: number, dtype: Dtype | "I8"): Buffer => {
  const key = `update ${keys.get(shapes)} ${seed} ${dtype}`;
  const file = files.get(key) ?? writeUpdate(updateOf(shapes, seed, dtype));
  files.set(key, file);
  return file;
};

/** Updates of every dtype, with parameters of a single dtype. */
const reduceCases: readonly Case[] = [SMALL, LARGE].flatMap((shapes) =>
  REDUCE_METHODS.flatMap((method) =>
    (shapes === SMALL ? [...DTYPES, "I8" as const] : (["F32", "F64", "I8"] as const)).map((dtype): Case => {
      const key = keys.get(shapes);
      return {
        owner: "reduce",
        label: `${key}, ${method.name}, ${dtype}`,
        isLarge: shapes === LARGE,
        digest: async (service) => {
          const hash = createHash("sha256");
          const params = fileOf(`params ${key}`, () => startParams(shapes), dtype === "I8" ? "F32" : dtype);
          const weighted = method.name === "mean";
          const updates = Array.from({ length: REDUCED }, (_, index) => ({
            tensors: updateFile(shapes, 2000 + index, dtype),
            ...(weighted && { weight: index + 0.7 }),
          }));
          const { grads } = await service.call<{ grads: Uint8Array }>("optimizer.reduce", { params, updates, method });
          hashFile(hash, grads);
          if (weighted) {
            const sum = { form: "deltas", updates, finish: false };
            hashFile(hash, (await service.call<{ accumulator: Uint8Array }>("optimizer.reduce", sum)).accumulator);
          }
          return hash.digest("hex");
        },
      };
    }),
  ),
);

const distanceCases: readonly Case[] = [SMALL, LARGE].map((shapes) => ({
  owner: "reduce",
  label: `${keys.get(shapes)}, distances`,
  isLarge: shapes === LARGE,
  digest: async (service) => {
    const hash = createHash("sha256");
    const updates = Array.from({ length: REDUCED }, (_, index) => ({ tensors: updateFile(shapes, 2000 + index, "F32") }));
    const { distances } = await service.call<{ distances: number[][] }>("optimizer.distances", { updates });
    hashNumbers(hash, distances.flat());
    return hash.digest("hex");
  },
}));

const SCHEDULE_STEPS = 300;

const scheduleCases: readonly Case[] = schedules.map((schedule) => ({
  owner: "schedules",
  label: JSON.stringify(schedule),
  isLarge: false,
  digest: async (service) => {
    const hash = createHash("sha256");
    const call = { schedule, lr: 0.1, count: SCHEDULE_STEPS };
    const { lrs, momentums = [] } = await service.call<{ lrs: number[]; momentums?: (number | null)[] }>("schedule.evaluate", call);
    hashNumbers(hash, [...lrs, ...momentums]);
    return hash.digest("hex");
  },
}));

/** Conversions to other formats and back. */
const FORMATS: readonly (readonly [optimizer: Readonly<Record<string, unknown>>, format: Readonly<Record<string, unknown>>, more?: object])[] = [
  [{ name: "adamw" }, { format: "torch" }],
  [{ name: "nadam" }, { format: "torch" }],
  [{ name: "adamw" }, { format: "optax" }],
  [{ name: "lion" }, { format: "optax" }],
  [{ name: "qhadam" }, { format: "qhoptim", betas: [0.995, 0.999] }],
  [{ name: "qhm", lr: 0.5, momentum: 0.9, nu: 0.7 }, { format: "qhoptim" }, { step: 1 }],
];

const conversionCases: readonly Case[] = FORMATS.map(([optimizer, to, more = {}]) => ({
  owner: "conversions",
  label: `${optimizer["name"]} to ${to["format"]}`,
  isLarge: false,
  digest: async (service) => {
    const hash = createHash("sha256");
    const params = fileOf("params small", () => startParams(SMALL), "F32");
    const grads = fileOf("grads small 0", () => gradsAt(SMALL, 0), "F32");
    const { state } = await service.call<StepReply>("optimizer.step", { optimizer, params, grads });
    const there = await service.call<{ state: Uint8Array }>("state.convert", { state, to });
    hashFile(hash, there.state);
    const back = await service.call<{ state: Uint8Array }>("state.convert", { state: there.state, from: { ...to, ...more }, optimizer: optimizer["name"] });
    hashFile(hash, back.state);
    return hash.digest("hex");
  },
}));

export const cases: readonly Case[] = [
  ...variants.flatMap(variantCases),
  ...matrixCases,
  ...optionCases,
  ...averageCases,
  ...momentCases,
  ...normCases,
  ...reduceCases,
  ...distanceCases,
  ...scheduleCases,
  ...conversionCases,
];
