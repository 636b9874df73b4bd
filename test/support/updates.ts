/** Makes updates for the tests of optimizer.reduce, and computes their pseudo-gradient by plain loops in float64. */
import { random, rawTensors } from "./tensors.ts";
import { type Dtype, round, type Typed, toBytes } from "./typed.ts";

/** A tensor of an update. `scale` multiplies I8 values: one number for all rows, or one for each row. */
export interface UpdateTensor {
  readonly dtype: Dtype | "I8";
  readonly shape: readonly number[];
  readonly values: readonly number[];
  readonly scale?: readonly number[];
}

export type UpdateTensors = Readonly<Record<string, UpdateTensor>>;

/** Writes a safetensors file of an update. */
export const writeUpdate = (tensors: UpdateTensors): Buffer => {
  let offset = 0;
  const header: string[] = [];
  const data: Buffer[] = [];
  const add = (name: string, dtype: string, shape: readonly number[], bytes: Buffer): void => {
    header.push(`${JSON.stringify(name)}:${JSON.stringify({ dtype, shape, data_offsets: [offset, offset + bytes.length] })}`);
    offset += bytes.length;
    data.push(bytes);
  };
  for (const [name, { dtype, shape, values, scale = [] }] of Object.entries(tensors)) {
    add(name, dtype, shape, dtype === "I8" ? Buffer.from(Int8Array.from(values).buffer) : toBytes({ dtype, shape, values }));
    if (dtype !== "I8") continue;
    const scaleShape = scale.length === 1 && shape[0] !== 1 ? [] : [scale.length];
    add(`${name}.scale`, "F32", scaleShape, toBytes({ dtype: "F32", shape: scaleShape, values: scale }));
  }
  return rawTensors(`{${header.join(",")}}`, Buffer.concat(data));
};

/** Returns an update with repeatable values in (-1, 1). */
export const updateOf = (shapes: Readonly<Record<string, readonly number[]>>, seed: number, dtype: Dtype | "I8"): UpdateTensors => {
  const next = random(seed);
  return Object.fromEntries(
    Object.entries(shapes).map(([name, shape]): [string, UpdateTensor] => {
      const values = Array.from({ length: shape.reduce((product, size) => product * size, 1) }, next);
      if (dtype !== "I8") return [name, { dtype, shape, values: values.map((value) => round(value, dtype)) }];
      const scale = Array.from({ length: shape[0] ?? 1 }, () => Math.fround(next() / 100));
      return [name, { dtype, shape, values: values.map((value) => Math.trunc(127 * value)), scale: shape.length === 0 ? scale.slice(0, 1) : scale }];
    }),
  );
};

/** Returns the values of a tensor in float64. */
const valuesOf = ({ dtype, values, scale = [] }: UpdateTensor): readonly number[] => {
  if (dtype !== "I8") return values;
  const perScale = values.length / scale.length;
  return values.map((value, index) => value * (scale[Math.floor(index / perScale)] as number));
};

export type Method =
  | { readonly name: "mean"; readonly divisor?: number }
  | { readonly name: "median" }
  | { readonly name: "trimmed_mean"; readonly cut: number };

export interface Weighted {
  readonly tensors: UpdateTensors;
  readonly weight?: number;
}

const meanOf = (values: readonly number[], weights: readonly number[], method: Method): number => {
  if (method.name === "mean") {
    const sum = values.reduce((total, value, index) => total + value * (weights[index] as number), 0);
    return sum / (method.divisor ?? weights.reduce((total, weight) => total + weight, 0));
  }
  const cut = method.name === "median" ? Math.floor((values.length - 1) / 2) : method.cut;
  const kept = [...values].sort((a, b) => a - b).slice(cut, values.length - cut);
  return kept.reduce((total, value) => total + value, 0) / kept.length;
};

/** Returns the pseudo-gradient of updates, computed by plain loops. */
export const combine = (
  updates: readonly Weighted[],
  {
    params,
    form = "params",
    method = { name: "mean" },
  }: { readonly params?: Readonly<Record<string, Typed>>; readonly form?: string; readonly method?: Method },
): Record<string, Typed> => {
  const names = Object.keys(params ?? updates[0]?.tensors ?? {});
  const weights = updates.map(({ weight = 1 }) => weight);
  return Object.fromEntries(
    names.map((name): [string, Typed] => {
      const all = updates.map(({ tensors }) => valuesOf(tensors[name] as UpdateTensor));
      const given = params ? [params[name]?.dtype] : updates.map(({ tensors }) => tensors[name]?.dtype);
      const dtype: Dtype = given.includes("F64") ? "F64" : "F32";
      const values = (all[0] ?? []).map((_, index) => {
        const mean = meanOf(
          all.map((values) => values[index] as number),
          weights,
          method,
        );
        const gradient = form === "params" ? (params?.[name]?.values[index] as number) - mean : form === "deltas" ? -mean : mean;
        return round(gradient, dtype);
      });
      return [name, { dtype, shape: updates[0]?.tensors[name]?.shape ?? [], values }];
    }),
  );
};
