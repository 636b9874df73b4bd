/**
 * Writes files in other libraries' formats, without the code under test, and converts the peers' recorded states to such files.
 */
import assert from "node:assert/strict";
import { registry } from "../../src/optimizers/registry.ts";
import { rawTensors, readFile } from "../support/tensors.ts";
import { type Case, gradientCounts, values } from "../support/vectors.ts";

/** Encoders for the dtypes that tests write. */
const writers = {
  F32: (numbers: readonly number[]) => Buffer.from(Float32Array.from(numbers).buffer),
  F64: (numbers: readonly number[]) => Buffer.from(Float64Array.from(numbers).buffer),
  I32: (numbers: readonly number[]) => Buffer.from(Int32Array.from(numbers).buffer),
  I64: (numbers: readonly number[]) => Buffer.from(BigInt64Array.from(numbers, BigInt).buffer),
  BF16: (numbers: readonly number[]) => {
    const wide = new Uint16Array(Float32Array.from(numbers).buffer);
    return Buffer.from(Uint16Array.from(numbers, (_, index) => wide[2 * index + 1] as number).buffer);
  },
} as const;

export interface Entry {
  readonly dtype: keyof typeof writers;
  readonly shape: readonly number[];
  readonly values: readonly number[];
}

export type Entries = Readonly<Record<string, Entry>>;

export const f32 = (...numbers: readonly number[]): Entry => ({ dtype: "F32", shape: [numbers.length], values: numbers });
export const f64 = (...numbers: readonly number[]): Entry => ({ dtype: "F64", shape: [numbers.length], values: numbers });
export const scalar = (dtype: Entry["dtype"], value: number): Entry => ({ dtype, shape: [], values: [value] });

/** Writes a safetensors file in the given order, as Python's package does without metadata. */
export const writeEntries = (entries: Entries, metadata?: Readonly<Record<string, string>>): Buffer => {
  let offset = 0;
  const data = Object.values(entries).map(({ dtype, values: numbers }) => writers[dtype](numbers));
  const header = Object.entries(entries).map(([name, { dtype, shape }], index) => {
    const start = offset;
    offset += data[index]?.length ?? 0;
    return `${JSON.stringify(name)}:${JSON.stringify({ dtype, shape, data_offsets: [start, offset] })}`;
  });
  const all = metadata ? [`"__metadata__":${JSON.stringify(metadata)}`, ...header] : header;
  return rawTensors(`{${all.join(",")}}`, Buffer.concat(data));
};

/** Returns the values of a file, by key. */
export const readEntries = (file: Uint8Array): Record<string, Entry> =>
  Object.fromEntries(
    [...readFile(file).entries].map(([name, { dtype, shape, bytes }]) => {
      const { buffer } = Uint8Array.from(bytes);
      const numbers =
        dtype === "F32"
          ? new Float32Array(buffer)
          : dtype === "F64"
            ? new Float64Array(buffer)
            : dtype === "I32"
              ? new Int32Array(buffer)
              : Array.from(new BigInt64Array(buffer), Number);
      return [name, { dtype: dtype as Entry["dtype"], shape, values: [...numbers] }];
    }),
  );

export type Format = "torch" | "qhoptim" | "optax";

/** Returns the file format of a peer's states. */
export const formatOf = ({ peer }: Case): Format => (peer === "optax" ? "optax" : peer === "qhoptim" || peer === "iprally" ? "qhoptim" : "torch");

/** The names that optax gives the recorded slots, and those that an optimizer of optax has for itself. */
const OPTAX: Readonly<Record<string, string>> = { exp_avg: "mu", exp_avg_sq: "nu", exp_avg_var: "nu", momentum_buffer: "ema", trace: "trace" };
const OWN_OPTAX: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  adan: { exp_avg: "m", exp_avg_diff: "v", exp_avg_sq: "n", pre_grad: "g" },
  ademamix: { exp_avg: "m1", exp_avg_slow: "m2" },
};

/** pytorch_optimizer's name of a slot that timm and stepd call otherwise. */
const TORCH: Readonly<Record<string, string>> = { previous_grad: "neg_pre_grad" };

/**
 * Returns the peer's float32 state after `count` steps in its own format: by index into `names` (torch, qhoptim) or by name
 * (optax).
 */
export const peerState = (testCase: Case, count: number, names: readonly string[]): Entries => {
  const format = formatOf(testCase);
  const entries: Record<string, Entry> = {};
  const optax = { ...OPTAX, ...OWN_OPTAX[testCase.optimizer] };
  for (const [name, slots] of Object.entries(testCase.steps[count - 1]?.f32.state ?? {})) {
    const keyOf = (slot: string): string => (format === "optax" ? `${optax[slot]}/${name}` : `state.${names.indexOf(name)}.${TORCH[slot] ?? slot}`);
    for (const [slot, raw] of Object.entries(slots)) {
      // x is the average that schedulefree computes from its state.
      if (raw === null || slot === "x") continue;
      if (slot === "step") {
        // The recorder counts the steps of an optimizer whose peer keeps no count, such as pytorch_optimizer's SignSGD.
        if (format === "torch" && registry.get(testCase.optimizer)?.hasNoStepInTorch) continue;
        if (format === "optax") entries["count"] = scalar("I32", raw as number);
        else entries[keyOf(slot)] = scalar("F32", raw as number);
        continue;
      }
      assert.ok(typeof raw === "object", `${testCase.name} ${slot}`);
      entries[keyOf(slot)] = { dtype: raw.dtype === "f32" ? "F32" : "F64", shape: raw.shape, values: [...values(raw)] };
    }
  }
  return entries;
};

/** Returns the largest number of steps of any tensor, for formats without step counts. */
export const mostSteps = (testCase: Case, count: number): number => Math.max(1, ...Object.values(gradientCounts(testCase, count)));
