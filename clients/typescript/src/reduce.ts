/** Checks the arguments of optimizer.reduce and optimizer.distances, reads their results, and splits both over several calls. */
import { bytesIn } from "./blobs.ts";
import { describeValue, requireObject, requireTensors } from "./checks.ts";
import { compareCanonical, compareUtf8, type FileTensor, fileOf, readFile, type Tensor, type Tensors, toTensors, type UpdateTensors } from "./tensors.ts";
import type { ReduceParams } from "./wire.gen.ts";

export interface Update {
  readonly tensors: UpdateTensors;
  /** The weight in the mean; 1 if absent. Other methods accept only 1. */
  readonly weight?: number | undefined;
}

/** The options of a reduction, under their wire names. */
export type ReduceSettings = Pick<ReduceParams, "form" | "method" | "finish" | "non_finite" | "missing">;

export interface ReduceInput extends ReduceSettings {
  /** The server combines the updates in this order. The same order gives the same bits. */
  readonly updates: readonly Update[];
  /** The parameters that the updates started from. The form `params` needs them. */
  readonly params?: Tensors | undefined;
  /** The accumulator of an earlier result. */
  readonly accumulator?: Uint8Array | undefined;
}

export interface ReduceResult {
  /** The pseudo-gradient, for a step. Empty if skipped, and with `finish: false`. */
  readonly grads: Record<string, Tensor>;
  /** The sums so far, with `finish: false`. */
  readonly accumulator?: Uint8Array;
  /** The number of updates in the result, including those in the accumulator. */
  readonly count: number;
  /** The sum of the weights of these updates. */
  readonly weight: number;
  /** The indexes of the updates that `non_finite: "drop"` left out. */
  readonly dropped: readonly number[];
  /** True if there is nothing to step: no update, or only weights of 0. */
  readonly skipped: boolean;
}

/** Squared distances between updates: a symmetric matrix in the order of the updates. */
export type Distances = readonly (readonly number[])[];

export interface DistancesInput {
  /** All updates have the same tensors. Weights have no influence. */
  readonly updates: readonly Update[];
  /** The result of an earlier call for other tensors of the same updates, to which this call adds. */
  readonly distances?: Distances | undefined;
}

/** Checks the types of a reduction's arguments. */
export const requireReduce = (input: unknown): void => {
  requireObject("reduce", input, "an object with updates");
  const { updates, params, accumulator, method } = input as Record<string, unknown>;
  requireUpdates(updates);
  if (params !== undefined) requireTensors("params", params);
  if (accumulator !== undefined && !(accumulator instanceof Uint8Array))
    throw new TypeError(`accumulator: expected the bytes of an earlier result, found ${describeValue(accumulator)}`);
  if (method !== undefined) requireObject("method", method, 'a method such as { name: "median" }');
};

/** Checks the types of the arguments of optimizer.distances. */
export const requireDistances = (input: unknown): void => {
  requireObject("distances", input, "an object with updates");
  const { updates, distances } = input as Record<string, unknown>;
  requireUpdates(updates);
  const isMatrix = Array.isArray(distances) && distances.every((row) => Array.isArray(row) && row.every((value) => typeof value === "number"));
  if (distances !== undefined && !isMatrix) throw new TypeError(`distances: expected an earlier result, found ${describeValue(distances)}`);
};

const requireUpdates = (updates: unknown): void => {
  if (!Array.isArray(updates)) throw new TypeError(`updates: expected a list such as [{ tensors, weight: 1 }], found ${describeValue(updates)}`);
  for (const [index, update] of (updates as readonly unknown[]).entries()) {
    requireObject(`updates[${index}]`, update, "{ tensors, weight }");
    requireTensors(`updates[${index}].tensors`, (update as Partial<Update>).tensors);
  }
};

/** Encodes values that are not finite as strings, as the wire format requires. */
export const distancesOnWire = (distances: Distances): unknown => distances.map((row) => row.map((value) => (Number.isFinite(value) ? value : String(value))));

/** Reads a matrix of `count` rows. Throws RangeError for another reply. */
export const distancesOf = (reply: unknown, count: number): number[][] => {
  const { distances } = reply as { readonly distances?: unknown };
  if (!Array.isArray(distances) || distances.length !== count) throw new RangeError(`expected distances of ${count} updates, found another reply`);
  return (distances as unknown[][]).map((row) => row.map(Number));
};

/** Reads a reply. `params` give the order of the gradients. */
export const reduceResultOf = (reply: unknown, params: Tensors | undefined): ReduceResult => {
  const { grads, accumulator, count, weight, dropped, skipped } = reply as Readonly<Record<string, unknown>>;
  if (typeof count !== "number" || !Array.isArray(dropped)) throw new RangeError("expected the result of a reduction, found another reply");
  return {
    grads: grads === undefined ? {} : inOrderOf(params, toTensors(bytesIn("grads", grads))),
    ...(accumulator !== undefined && { accumulator: bytesIn("accumulator", accumulator) }),
    count,
    weight: Number(weight),
    dropped: dropped as readonly number[],
    skipped: skipped === true,
  };
};

/** Returns the gradients in the order of the parameters, or in file order without parameters. */
const inOrderOf = (params: Tensors | undefined, grads: Record<string, Tensor>): Record<string, Tensor> =>
  Object.fromEntries(
    (params ? Object.keys(params) : Object.keys(grads).sort((a, b) => widthOf(grads[b]) - widthOf(grads[a]) || compareUtf8(a, b)))
      .filter((name) => Object.hasOwn(grads, name))
      .map((name) => [name, grads[name] as Tensor]),
  );

const widthOf = (tensor: Tensor | undefined): number => tensor?.data.BYTES_PER_ELEMENT ?? 0;

const SCALE = ".scale";

/** Returns the parameter that a tensor of an update belongs to. Scales belong to the parameter of their I8 tensor. */
const ownerOf = (name: string, tensors: UpdateTensors): string => {
  const stem = name.endsWith(SCALE) ? name.slice(0, -SCALE.length) : name;
  return Object.hasOwn(tensors, stem) && tensors[stem]?.data instanceof Int8Array ? stem : name;
};

/** Returns the parameter that an entry of an accumulator belongs to. */
const parameterOf = (key: string): string => key.slice(key.indexOf("/") + 1);

/** Splits a reduction by tensors into one or more calls of about the given size. */
export const splitReduction = ({ updates, params, accumulator, ...settings }: ReduceInput, requestBytes: number): readonly ReduceInput[] => {
  const sums = accumulator && readFile(accumulator);
  const sizes = new Map<string, number>();
  const add = (name: string, bytes: number): void => {
    sizes.set(name, (sizes.get(name) ?? 0) + bytes);
  };
  for (const [name, { data }] of Object.entries(params ?? {})) add(name, data.byteLength);
  for (const [key, { bytes }] of sums?.tensors ?? []) add(parameterOf(key), bytes.length);
  for (const { tensors } of updates) for (const [name, { data }] of Object.entries(tensors)) add(ownerOf(name, tensors), data.byteLength);

  const { callOf, calls } = packed(sizes, requestBytes);
  return Array.from({ length: calls }, (_, call): ReduceInput => {
    const isOwn = (name: string): boolean => callOf.get(name) === call;
    const own = <T>(record: Readonly<Record<string, T>>, nameOf: (name: string) => string = (name) => name): Record<string, T> =>
      Object.fromEntries(Object.entries(record).filter(([name]) => isOwn(nameOf(name))));
    return {
      ...settings,
      updates: updates.map(({ tensors, ...more }) => ({ ...more, tensors: own(tensors, (name) => ownerOf(name, tensors)) })),
      params: params && own(params),
      accumulator:
        sums &&
        fileOf(
          Object.fromEntries(Object.entries(sums.metadata).filter(([key]) => !key.startsWith("dtype/") || isOwn(parameterOf(key)))),
          [...sums.tensors].filter(([key]) => isOwn(parameterOf(key))),
        ),
    };
  });
};

/** Assigns names to calls of about the given size, in their order. There is at least one call. */
const packed = (sizes: Iterable<readonly [name: string, size: number]>, requestBytes: number): { callOf: ReadonlyMap<string, number>; calls: number } => {
  const callOf = new Map<string, number>();
  let calls = 1;
  let room = requestBytes;
  for (const [name, size] of sizes) {
    if (size > room && room < requestBytes) {
      calls++;
      room = requestBytes;
    }
    callOf.set(name, calls - 1);
    room -= size;
  }
  return { callOf, calls };
};

/** Splits updates by tensors, in the order of the names' UTF-8 bytes. In this order, the calls have the bits of one call. */
export const splitByName = (updates: readonly Update[], requestBytes: number): readonly (readonly Update[])[] => {
  const sizes = new Map<string, number>();
  for (const { tensors } of updates) {
    for (const [name, { data }] of Object.entries(tensors)) {
      const owner = ownerOf(name, tensors);
      sizes.set(owner, (sizes.get(owner) ?? 0) + data.byteLength);
    }
  }
  const { callOf, calls } = packed(
    [...sizes].sort(([a], [b]) => compareUtf8(a, b)),
    requestBytes,
  );
  return Array.from({ length: calls }, (_, call) =>
    updates.map(({ tensors, ...more }) => ({
      ...more,
      tensors: Object.fromEntries(Object.entries(tensors).filter(([name]) => callOf.get(ownerOf(name, tensors)) === call)),
    })),
  );
};

/** Joins the results of all calls. */
export const joinReduced = (results: readonly ReduceResult[], dropped: readonly number[], params: Tensors | undefined): ReduceResult => {
  const largest = (value: (result: ReduceResult) => number): number => Math.max(...results.map(value));
  const files = results.flatMap(({ accumulator }) => (accumulator ? [readFile(accumulator)] : []));
  return {
    grads: inOrderOf(params, Object.assign({}, ...results.map(({ grads }) => grads))),
    ...(files.length > 0 && { accumulator: joinedFile(files) }),
    count: largest(({ count }) => count),
    weight: largest(({ weight }) => weight),
    dropped,
    skipped: results.every(({ skipped }) => skipped),
  };
};

const joinedFile = (files: readonly ReturnType<typeof readFile>[]): Uint8Array => {
  const metadata: Record<string, string> = Object.assign({}, ...files.map((file) => file.metadata));
  const entries = files.flatMap(({ tensors }) => [...tensors]);
  const sorted = Object.fromEntries(Object.entries(metadata).sort(([a], [b]) => (a < b ? -1 : 1)));
  return fileOf(sorted, entries.sort(compareCanonical) satisfies readonly (readonly [string, FileTensor])[]);
};
