/** Writes and reads tensors of any dtype for tests, without the code under test. */
import { rawTensors, readFile, type TestTensors } from "./tensors.ts";

export type Dtype = "F32" | "F64" | "BF16" | "F16";
export const DTYPES: readonly Dtype[] = ["F32", "F64", "BF16", "F16"];

export interface Typed {
  readonly dtype: Dtype;
  readonly shape: readonly number[];
  readonly values: readonly number[];
}

const WIDTH: Readonly<Record<Dtype, number>> = { F32: 4, F64: 8, BF16: 2, F16: 2 };

interface HalfView extends DataView {
  getFloat16(at: number, little: boolean): number;
  setFloat16(at: number, value: number, little: boolean): void;
}

const single = new DataView(new ArrayBuffer(4));
const half = new DataView(new ArrayBuffer(2)) as HalfView;

/** Rounds a float32 to the nearest BF16, ties to even. */
export const toBf16 = (value: number): number => {
  single.setFloat32(0, value);
  if (Number.isNaN(value)) return value;
  const bits = single.getUint32(0);
  const below = bits & 0xffff;
  let upper = bits >>> 16;
  if (below > 0x8000 || (below === 0x8000 && (upper & 1) === 1)) upper++;
  single.setUint32(0, (upper * 65536) >>> 0);
  return single.getFloat32(0);
};

/** Rounds a number to a dtype, ties to even. */
export const round = (value: number, dtype: Dtype): number => {
  if (dtype === "F64") return value;
  if (dtype === "F32") return Math.fround(value);
  if (dtype === "BF16") return toBf16(Math.fround(value));
  half.setFloat16(0, value, true);
  return half.getFloat16(0, true);
};

export const toBytes = ({ dtype, values }: Typed): Buffer => {
  const view = new DataView(new ArrayBuffer(values.length * WIDTH[dtype])) as HalfView;
  values.forEach((value, index) => {
    if (dtype === "F32") view.setFloat32(4 * index, value, true);
    else if (dtype === "F64") view.setFloat64(8 * index, value, true);
    else if (dtype === "F16") view.setFloat16(2 * index, value, true);
    else {
      single.setFloat32(0, toBf16(Math.fround(value)));
      view.setUint16(2 * index, single.getUint16(0), true);
    }
  });
  return Buffer.from(view.buffer);
};

const fromBytes = (bytes: Buffer, dtype: Dtype): number[] => {
  const view = new DataView(Uint8Array.from(bytes).buffer) as HalfView;
  return Array.from({ length: bytes.length / WIDTH[dtype] }, (_, index) => {
    if (dtype === "F32") return view.getFloat32(4 * index, true);
    if (dtype === "F64") return view.getFloat64(8 * index, true);
    if (dtype === "F16") return view.getFloat16(2 * index, true);
    single.setUint32(0, 0);
    single.setUint16(0, view.getUint16(2 * index, true));
    return single.getFloat32(0);
  });
};

export const typed = (tensors: TestTensors, dtype: Dtype): Record<string, Typed> =>
  Object.fromEntries(Object.entries(tensors).map(([name, { shape, data }]) => [name, { dtype, shape, values: [...data].map((value) => round(value, dtype)) }]));

export const writeTyped = (tensors: Readonly<Record<string, Typed>>): Buffer => {
  let offset = 0;
  const data = Object.values(tensors).map(toBytes);
  const header = Object.entries(tensors).map(([name, { dtype, shape }], index) => {
    const start = offset;
    offset += (data[index] as Buffer).length;
    return `${JSON.stringify(name)}:${JSON.stringify({ dtype, shape, data_offsets: [start, offset] })}`;
  });
  return rawTensors(`{${header.join(",")}}`, Buffer.concat(data));
};

/** Returns all tensors of a file, including steps and scalar slots. */
export const readTyped = (file: Uint8Array): Record<string, Typed> =>
  Object.fromEntries(
    [...readFile(file).entries]
      .filter(([, { dtype }]) => dtype !== "I64")
      .map(([name, { dtype, shape, bytes }]) => [name, { dtype: dtype as Dtype, shape, values: fromBytes(bytes, dtype as Dtype) }]),
  );
