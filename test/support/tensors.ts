/** Writes and reads safetensors files for tests, without the code under test. */

export interface TestTensor {
  readonly shape: readonly number[];
  readonly data: Float32Array;
}

export type TestTensors = Readonly<Record<string, TestTensor>>;

/** Writes a safetensors file of F32 tensors, in the given order. */
export const writeTensors = (tensors: TestTensors): Buffer => {
  let offset = 0;
  const header = Object.entries(tensors).map(([name, { shape, data }]) => {
    const start = offset;
    offset += data.byteLength;
    return `${JSON.stringify(name)}:${JSON.stringify({ dtype: "F32", shape, data_offsets: [start, offset] })}`;
  });
  const chunks = Object.values(tensors).map(({ data }) => Buffer.from(data.buffer, data.byteOffset, data.byteLength));
  return rawTensors(`{${header.join(",")}}`, Buffer.concat(chunks));
};

/** Writes a file from the text of a header and data, without checks. */
export const rawTensors = (header: string, data: Uint8Array = Buffer.alloc(0)): Buffer => {
  const text = Buffer.from(header);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, text, data]);
};

interface Entry {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data_offsets: readonly [number, number];
}

/** Reads a file's metadata, and the bytes of each tensor. */
export const readFile = (
  file: Uint8Array,
): { readonly metadata: Readonly<Record<string, string>>; readonly entries: ReadonlyMap<string, Entry & { readonly bytes: Buffer }> } => {
  const bytes = Buffer.from(file.buffer, file.byteOffset, file.byteLength);
  const start = 8 + Number(bytes.readBigUInt64LE(0));
  const { __metadata__: metadata = {}, ...header } = JSON.parse(bytes.toString("utf8", 8, start)) as Record<string, Entry> & {
    __metadata__?: Record<string, string>;
  };
  const entries = Object.entries(header as Record<string, Entry>).map(([name, entry]) => {
    const [from, to] = entry.data_offsets;
    return [name, { ...entry, bytes: Buffer.from(bytes.subarray(start + from, start + to)) }] as const;
  });
  return { metadata: metadata as Record<string, string>, entries: new Map(entries) };
};

/** Returns the F32 tensors of a file. */
export const readTensors = (file: Uint8Array): Record<string, TestTensor> => {
  const floats = [...readFile(file).entries].filter(([, { dtype }]) => dtype === "F32");
  return Object.fromEntries(floats.map(([name, { shape, bytes }]) => [name, { shape, data: new Float32Array(Uint8Array.from(bytes).buffer) }]));
};

export interface TestState {
  readonly optimizer: string;
  readonly steps: Readonly<Record<string, number>>;
  /** The slots by name, then by parameter. */
  readonly slots: Readonly<Record<string, TestTensors>>;
  /** The slots that hold one float64 number, by name, then by parameter. */
  readonly scalars?: Readonly<Record<string, Readonly<Record<string, number>>>>;
}

/** Writes a stepd state whose entries are not in canonical order, as another language might. */
export const writeState = ({ optimizer, steps, slots, scalars = {} }: TestState): Buffer => {
  let offset = 0;
  const header = [`"__metadata__":${JSON.stringify({ format: "stepd.state/1", optimizer, revision: "1" })}`];
  const data: Buffer[] = [];
  const add = (key: string, dtype: string, shape: readonly number[], bytes: Buffer): void => {
    header.push(`${JSON.stringify(key)}:${JSON.stringify({ dtype, shape, data_offsets: [offset, offset + bytes.length] })}`);
    offset += bytes.length;
    data.push(bytes);
  };
  for (const [slot, tensors] of Object.entries(slots)) {
    for (const [name, { shape, data: values }] of Object.entries(tensors))
      add(`${slot}/${name}`, "F32", shape, Buffer.from(values.buffer, values.byteOffset, values.byteLength));
  }
  for (const [slot, byName] of Object.entries(scalars)) {
    for (const [name, value] of Object.entries(byName)) add(`${slot}/${name}`, "F64", [], Buffer.from(Float64Array.of(value).buffer));
  }
  for (const [name, step] of Object.entries(steps)) {
    const bytes = Buffer.alloc(8);
    bytes.writeBigInt64LE(BigInt(step));
    add(`step/${name}`, "I64", [], bytes);
  }
  return rawTensors(`{${header.join(",")}}`, Buffer.concat(data));
};

/** Reads a state file. */
export const readState = (file: Uint8Array): TestState => {
  const { metadata, entries } = readFile(file);
  const steps: Record<string, number> = {};
  const slots: Record<string, Record<string, TestTensor>> = {};
  for (const [key, { dtype, shape, bytes }] of entries) {
    const slot = key.slice(0, key.indexOf("/"));
    const name = key.slice(key.indexOf("/") + 1);
    if (slot === "step") steps[name] = Number(bytes.readBigInt64LE(0));
    if (dtype !== "F32") continue;
    slots[slot] ??= {};
    slots[slot][name] = { shape, data: new Float32Array(Uint8Array.from(bytes).buffer) };
  }
  return { optimizer: metadata["optimizer"] ?? "", steps, slots };
};

/** Returns a repeatable random generator of values in (-1, 1) (mulberry32). */
export const random = (seed: number): (() => number) => {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2147483648 - 1;
  };
};

type Shapes = Readonly<Record<string, readonly number[]>>;

const generate = (shapes: Shapes, seed: number): Record<string, TestTensor> => {
  const next = random(seed);
  return Object.fromEntries(
    Object.entries(shapes).map(([name, shape]) => [
      name,
      { shape, data: Float32Array.from({ length: shape.reduce((product, size) => product * size, 1) }, next) },
    ]),
  );
};

/** The largest number of generated models that are kept. */
const KEPT_MODELS = 16;

/** Generated tensors by shapes and seed, because most tests take the same few, and generating them takes longer than a step. */
const generated = new Map<string, TestTensors>();

/** Returns tensors of repeatable random values, which the caller may change. */
export const randomTensors = (shapes: Shapes, seed: number): Record<string, TestTensor> => {
  const key = JSON.stringify([seed, shapes]);
  const kept = generated.get(key);
  const tensors = kept ?? generate(shapes, seed);
  if (!kept && generated.size < KEPT_MODELS) generated.set(key, tensors);
  return Object.fromEntries(Object.entries(tensors).map(([name, { shape, data }]) => [name, { shape, data: data.slice() }]));
};
