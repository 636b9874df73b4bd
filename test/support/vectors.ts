/**
 * Reads the golden vectors in test/vectors (format: test/vectors/record/format.schema.json), and translates the peers' settings
 * and states.
 */
import { readdirSync, readFileSync } from "node:fs";
import { slotShape } from "../../src/engine/state.ts";
import { type OptimizerDefinition, registry } from "../../src/optimizers/registry.ts";
import type { TestState, TestTensor, TestTensors } from "./tensors.ts";

interface RawArray {
  readonly dtype: "f32" | "f64";
  readonly shape: readonly number[];
  readonly b64: string;
}

type RawState = Readonly<Record<string, Readonly<Record<string, RawArray | number | null>>>>;

interface RawRun {
  readonly params: Readonly<Record<string, RawArray>>;
  readonly state: RawState;
}

export interface RawStep {
  readonly grads: Readonly<Record<string, RawArray>>;
  readonly lr?: number;
  readonly f32: RawRun;
  readonly f64: RawRun;
}

export interface Case {
  readonly name: string;
  readonly optimizer: string;
  readonly peer: string;
  readonly hyperparameters: Readonly<Record<string, unknown>>;
  readonly groups?: readonly { readonly tensors: readonly string[]; readonly hyperparameters: Readonly<Record<string, unknown>> }[];
  readonly grad_kind: string;
  readonly initial: Readonly<Record<string, RawArray>>;
  readonly steps: readonly RawStep[];
  readonly f32_range?: readonly string[];
}

const folder = new URL("../vectors/", import.meta.url);

/** All cases, by file name without its extension (`adamw.torch`). */
export const vectorFiles: ReadonlyMap<string, readonly Case[]> = new Map(
  readdirSync(folder)
    .filter((file) => file.endsWith(".json"))
    .map((file) => [file.replace(/\.json$/, ""), (JSON.parse(readFileSync(new URL(file, folder), "utf8")) as { cases: Case[] }).cases]),
);

/** Returns the values of an array, in float32 or float64. */
export const values = ({ dtype, b64 }: RawArray): Float32Array | Float64Array => {
  const { buffer } = Uint8Array.from(Buffer.from(b64, "base64"));
  return dtype === "f32" ? new Float32Array(buffer) : new Float64Array(buffer);
};

const tensor = (raw: RawArray): TestTensor => ({ shape: raw.shape, data: Float32Array.from(values(raw)) });

export const tensors = (raw: Readonly<Record<string, RawArray>>): TestTensors =>
  Object.fromEntries(Object.entries(raw).map(([name, array]) => [name, tensor(array)]));

type Settings = Readonly<Record<string, unknown>>;

/** Translates the hyperparameters of Keras. Its Adam corrects the step size, and its RMSprop adds epsilon under the root. */
const fromKeras = ({ lr, beta_1, beta_2, rho, epsilon, weight_decay, amsgrad, centered }: Settings): Settings =>
  rho === undefined
    ? { lr, betas: [beta_1, beta_2], eps: epsilon, weight_decay: weight_decay ?? 0, amsgrad, bias_correction: "step_size" }
    : { lr, alpha: rho, eps: 0, eps_root: epsilon, centered };

/** Translates the hyperparameters of pytorch_optimizer's Yogi, AdaBelief and SignSGD. AdaBelief's eps is stepd's eps and eps_root. */
const fromPytorchOptimizer = ({ lr, betas, momentum, eps, weight_decay, weight_decouple, initial_accumulator, rectify }: Settings): Settings => ({
  lr,
  weight_decay,
  decoupled_weight_decay: weight_decouple,
  ...(betas === undefined ? { momentum } : { betas, eps }),
  ...(rectify !== undefined && { rectify, eps_root: eps }),
  ...(initial_accumulator !== undefined && { initial_accumulator_value: initial_accumulator }),
});

/** Translates the hyperparameters of the peers' Adan and AdEMAMix. In pytorch_optimizer, weight_decouple is Adan's no_prox. */
const fromThreeBetas = (
  optimizer: string,
  peer: string,
  { b1, b2, b3, weight_decouple, caution: _, max_grad_norm: __, fixed_decay: ___, ...rest }: Settings,
): Settings => {
  const isAdan = optimizer === "adan";
  if (peer === "optax") return { ...rest, betas: [b1, b2, b3], ...(isAdan && { no_prox: true, diff_weight: 1 - (b2 as number) }) };
  return { ...rest, ...(peer === "pytorch_optimizer" && { [isAdan ? "no_prox" : "decoupled_weight_decay"]: weight_decouple }) };
};

/** optax adds eps to the squared gradient, and has no bound of 1/sqrt(t). */
const fromOptaxAdafactor = ({ eps, decay_rate, clipping_threshold, lr }: Settings): Settings => ({
  lr,
  beta2_decay: -(decay_rate as number),
  d: clipping_threshold ?? 1e30,
  eps: [Math.sqrt(eps as number), 1e-3],
});

/** Translates a peer's hyperparameters into stepd's. */
const translate = (optimizer: string, peer: string, given: Settings): Settings => {
  const {
    decouple_weight_decay: _,
    no_decay: __,
    corrected_weight_decay: ___,
    clipping_threshold: ____,
    decoupled_weight_decay: decoupled,
    b1,
    b2,
    ...common
  } = given;
  // torch implements decoupled weight decay as this flag. stepd's nadam and radam have the flag too.
  const rest = ["nadam", "radam"].includes(optimizer) ? { ...common, decoupled_weight_decay: decoupled } : common;
  if (peer === "keras") return fromKeras(rest);
  if (optimizer === "adafactor") return peer === "optax" ? fromOptaxAdafactor(given) : given;
  if (optimizer === "prodigy" && peer === "optax") {
    const { estim_lr0: d0, estim_lr_coef: d_coef, ...prodigy } = given;
    return { ...prodigy, d0, d_coef, use_bias_correction: true };
  }
  if (optimizer === "adan" || optimizer === "ademamix") return fromThreeBetas(optimizer, peer, { ...rest, b1, b2 });
  if (peer === "pytorch_optimizer") return fromPytorchOptimizer(rest);
  if (peer === "timm" && optimizer === "adabelief") {
    const { lr, betas, eps, weight_decay, decoupled_decay, rectify } = rest;
    return { lr, betas, eps, eps_root: eps, weight_decay, decoupled_weight_decay: decoupled_decay, rectify };
  }
  if (peer === "timm" && optimizer === "adopt") {
    const { lr, betas, eps, weight_decay, decoupled, clip_exp } = rest;
    return { lr, betas, eps, weight_decay, decoupled_weight_decay: decoupled, use_clipping: clip_exp !== null, clip_exp: clip_exp ?? 1 };
  }
  if (peer === "optax" && optimizer === "signum") return { lr: rest["lr"], momentum: rest["beta"] };
  if (peer === "optax" && ["yogi", "adabelief", "adopt"].includes(optimizer)) {
    const { nesterov: _____, ...settings } = rest;
    return { ...settings, betas: [b1, b2] };
  }
  if (peer === "timm" && optimizer === "adam") {
    const { lr, betas, eps, bias_correction } = rest;
    return { lr, betas, eps, bias_correction: bias_correction ? "moments" : "none" };
  }
  if (peer === "iprally") return { ...rest, weight_decay_scale: "none" };
  if (optimizer === "lars") {
    const { trust_coeff, ...lars } = rest;
    if (peer === "optax") return { ...lars, trust_denominator: "decayed_grad", lr_in_momentum: true };
    return { ...lars, ...(trust_coeff !== undefined && { trust_coefficient: trust_coeff }) };
  }
  if (peer === "optax" && optimizer === "rmsprop") {
    const { lr, decay, eps, centered } = rest;
    return { lr, alpha: decay, eps: 0, eps_root: eps, centered };
  }
  if (optimizer === "muon") {
    const { adjust_lr_fn } = rest;
    return { ...rest, adjust_lr_fn: adjust_lr_fn ?? "original" };
  }
  if (peer === "optax") return { ...rest, betas: [b1, b2] };
  if (optimizer !== "lamb") return rest;
  const { bias_correction, trust_clip, always_adapt, decoupled_decay, ...timm } = rest;
  const isWhole = bias_correction !== undefined;
  return {
    ...timm,
    ...(isWhole && {
      bias_correction: bias_correction ? "moments" : "none",
      trust_max: trust_clip ? 1 : null,
      adapt: always_adapt ? "always" : "decayed_only",
      weight_decay_mode: decoupled_decay ? "decoupled" : "in_update",
    }),
  };
};

/** Returns the `optimizer` and `groups` of a call that repeats the peer's step. */
export const settings = ({ optimizer, peer, hyperparameters, groups = [] }: Case, { lr }: RawStep): { optimizer: Settings; groups: unknown[] } => {
  const noDecay = hyperparameters["no_decay"] as readonly string[] | undefined;
  return {
    optimizer: { name: optimizer, ...translate(optimizer, peer, hyperparameters), ...(lr !== undefined && { lr }) },
    groups: [
      ...groups.map(({ tensors, hyperparameters }) => ({ tensors, optimizer: translate(optimizer, peer, hyperparameters) })),
      ...(noDecay ? [{ tensors: noDecay, optimizer: { weight_decay: 0 } }] : []),
    ],
  };
};

/** The slots of these peers hold bias-corrected moments. stepd's slots are 1 - beta^t times as large. */
const CORRECTED = ["qhadam", "qhadamw"];

const NOT_SLOTS = ["step", "beta1_weight", "beta2_weight", "mu_product", "eta", "mu", "lr_max", "weight_sum", "x", "d", "d_max", "d_numerator", "k"];

/** These slots of optax are stepd's negated slots of other names. */
const NEGATED: Readonly<Record<string, string>> = { trace: "momentum_buffer", pre_grad: "neg_pre_grad" };

/** pytorch_optimizer's Adan calls the negated gradient previous_grad. */
const slotName = (slot: string): string => NEGATED[slot] ?? (slot === "previous_grad" ? "neg_pre_grad" : slot);

/** Returns the number of gradients of each tensor in the first `count` steps. */
export const gradientCounts = ({ steps }: Case, count: number): Record<string, number> => {
  const counts: Record<string, number> = {};
  for (const { grads } of steps.slice(0, count)) for (const name of Object.keys(grads)) counts[name] = (counts[name] ?? 0) + 1;
  return counts;
};

/** Returns a peer's slots after `count` steps, converted to stepd's definition, in float64. */
export const slotsAfter = (testCase: Case, count: number, precision: "f32" | "f64"): Record<string, Record<string, Float64Array>> => {
  const state = testCase.steps[count - 1]?.[precision].state ?? {};
  const [beta1 = 0, beta2 = 0] = (testCase.hyperparameters["betas"] ?? []) as readonly number[];
  const counts = gradientCounts(testCase, count);
  const slots: Record<string, Record<string, Float64Array>> = {};
  for (const [name, entries] of Object.entries(state)) {
    for (const [slot, raw] of Object.entries(entries)) {
      if (NOT_SLOTS.includes(slot) || raw === null || typeof raw === "number") continue;
      const beta = slot === "exp_avg" ? beta1 : beta2;
      const factor = slot in NEGATED ? -1 : CORRECTED.includes(testCase.optimizer) ? 1 - beta ** (counts[name] ?? 0) : 1;
      const bySlot = slots[slotName(slot)] ?? {};
      slots[slotName(slot)] = bySlot;
      bySlot[name] = Float64Array.from(values(raw), (value) => value * factor);
    }
  }
  return slots;
};

/** Returns the peer's float32 state after `count` steps as a stepd state; null before the first step. */
export const stateAfter = (testCase: Case, count: number): TestState | null => {
  if (count === 0) return null;
  const raw = testCase.steps[count - 1]?.f32.state ?? {};
  const counts = gradientCounts(testCase, count);
  const steps = Object.fromEntries(Object.keys(raw).map((name) => [name, (raw[name]?.["step"] as number | undefined) ?? counts[name] ?? 0]));
  const slots: Record<string, Record<string, TestTensor>> = {};
  for (const [slot, byName] of Object.entries(slotsAfter(testCase, count, "f32"))) {
    slots[slot] = Object.fromEntries(
      Object.entries(byName).map(([name, data]) => {
        const shape = slotShape(registry.get(testCase.optimizer) as OptimizerDefinition, slot, testCase.initial[name]?.shape ?? []) ?? [];
        return [name, { shape, data: Float32Array.from(data) }];
      }),
    );
  }
  const scalars = Object.keys(registry.get(testCase.optimizer)?.scalarSlots ?? {}).map((slot): [string, Record<string, number>] => {
    const found = Object.entries(raw).flatMap(([name, { [slot]: value }]): [string, number][] =>
      typeof value === "object" && value !== null ? [[name, values(value)[0] as number]] : [],
    );
    return [slot, Object.fromEntries(found)];
  });
  return { optimizer: testCase.optimizer, steps, slots, ...(scalars.length > 0 && { scalars: Object.fromEntries(scalars) }) };
};

/** Returns the peer's averaged parameters after `count` steps; undefined if the peer has none. */
export const averagesAfter = ({ steps, initial }: Case, count: number, precision: "f32" | "f64"): Record<string, Float64Array> | undefined => {
  const state = steps[count - 1]?.[precision].state ?? {};
  const averages = Object.keys(initial).flatMap((name): [string, Float64Array][] => {
    const raw = state[name]?.["x"];
    return typeof raw === "object" && raw !== null ? [[name, Float64Array.from(values(raw))]] : [];
  });
  return averages.length > 0 ? Object.fromEntries(averages) : undefined;
};

/** Returns the spacing of float32 at a value, at least 2^-149. */
export const ulp = (value: number): number => {
  const size = Math.abs(value);
  if (!Number.isFinite(size)) return Number.NaN;
  return size < 2 ** -126 ? 2 ** -149 : 2 ** (Math.floor(Math.log2(size)) - 23);
};
