/** Tensors as typed arrays, and the safetensors files that they travel in. */

export type DType = "F32" | "F64" | "BF16" | "F16";

/** Data in row-major order. BF16 and F16 are their bits: JavaScript has no arrays of them everywhere. */
export interface Tensor {
  readonly shape: readonly number[];
  readonly data: Float32Array | Float64Array | Uint16Array;
  /** Needed for Uint16Array (BF16 or F16); else it follows from the array. */
  readonly dtype?: DType;
}

export type Tensors = Readonly<Record<string, Tensor>>;

/** A tensor of a file, as it stands there: `bytes` is a view, not a copy. */
export interface FileTensor {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

export interface SafetensorsFile {
  readonly metadata: Readonly<Record<string, string>>;
  readonly tensors: ReadonlyMap<string, FileTensor>;
}

const LENGTH_BYTES = 8;

export const dtypeOf = ({ data, dtype }: Tensor): DType => {
  if (data instanceof Float32Array) return "F32";
  if (data instanceof Float64Array) return "F64";
  if (dtype !== "BF16" && dtype !== "F16") throw new TypeError("a tensor of Uint16Array needs the dtype BF16 or F16");
  return dtype;
};

/** Bytes of a tensor's data, without a copy. */
export const bytesOf = ({ data }: Tensor): Uint8Array<ArrayBuffer> => new Uint8Array(data.buffer as ArrayBuffer, data.byteOffset, data.byteLength);

/** The parts of a safetensors file: the header, then each tensor's own bytes. */
export const fileParts = (tensors: Tensors): readonly Uint8Array<ArrayBuffer>[] => {
  let offset = 0;
  const entries = Object.entries(tensors).map(([name, tensor]) => {
    const elements = tensor.shape.reduce((product, size) => product * size, 1);
    if (elements !== tensor.data.length)
      throw new TypeError(`tensor ${name}: expected ${elements} values for shape [${tensor.shape}], found ${tensor.data.length}`);
    const start = offset;
    offset += tensor.data.byteLength;
    return `${JSON.stringify(name)}:${JSON.stringify({ dtype: dtypeOf(tensor), shape: tensor.shape, data_offsets: [start, offset] })}`;
  });
  const json = new TextEncoder().encode(`{${entries.join(",")}}`);
  const header = new Uint8Array(LENGTH_BYTES + json.length);
  new DataView(header.buffer).setBigUint64(0, BigInt(json.length), true);
  header.set(json, LENGTH_BYTES);
  return [header, ...Object.values(tensors).map(bytesOf)];
};

const HEADER_ALIGNMENT = 8;

/** A file of entries in their order, with a header padded as the server does. */
export const fileOf = (metadata: Readonly<Record<string, string>>, entries: readonly (readonly [string, FileTensor])[]): Uint8Array => {
  let offset = 0;
  const described = entries.map(([key, { dtype, shape, bytes }]) => {
    const start = offset;
    offset += bytes.length;
    return `${JSON.stringify(key)}:${JSON.stringify({ dtype, shape, data_offsets: [start, offset] })}`;
  });
  const json = new TextEncoder().encode(`{${[`"__metadata__":${JSON.stringify(metadata)}`, ...described].join(",")}}`);
  const padded = Math.ceil(json.length / HEADER_ALIGNMENT) * HEADER_ALIGNMENT;
  const file = new Uint8Array(LENGTH_BYTES + padded + offset).fill(0x20, LENGTH_BYTES, LENGTH_BYTES + padded);
  new DataView(file.buffer).setBigUint64(0, BigInt(padded), true);
  file.set(json, LENGTH_BYTES);
  let at = LENGTH_BYTES + padded;
  for (const [, { bytes }] of entries) {
    file.set(bytes, at);
    at += bytes.length;
  }
  return file;
};

/** Orders strings as their UTF-8 bytes, which is the order of code points. */
export const compareUtf8 = (a: string, b: string): number => {
  const [left, right] = [[...a], [...b]];
  const index = left.findIndex((character, at) => character !== right[at]);
  if (index < 0) return left.length - right.length;
  return (left[index]?.codePointAt(0) ?? 0) - (right[index]?.codePointAt(0) ?? -1);
};

/** Reads a file; the tensors are views of it. Throws RangeError for what is no such file. */
export const readFile = (file: Uint8Array): SafetensorsFile => {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  if (file.length < LENGTH_BYTES) throw new RangeError(`a safetensors file has at least 8 bytes, this has ${file.length}`);
  const start = LENGTH_BYTES + Number(view.getBigUint64(0, true));
  if (start > file.length) throw new RangeError("the header of the safetensors file is longer than the file");
  const { __metadata__: metadata = {}, ...header } = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(file.slice(LENGTH_BYTES, start))) as Record<
    string,
    HeaderEntry
  > & { __metadata__?: Record<string, string> };
  const tensors = Object.entries(header as Record<string, HeaderEntry>).map(
    ([
      name,
      {
        dtype,
        shape,
        data_offsets: [from, to],
      },
    ]): [string, FileTensor] => {
      if (!(from >= 0 && from <= to && start + to <= file.length)) throw new RangeError(`tensor ${name} lies outside of the file`);
      return [name, { dtype, shape, bytes: file.subarray(start + from, start + to) }];
    },
  );
  return { metadata: metadata as Record<string, string>, tensors: new Map(tensors) };
};

interface HeaderEntry {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data_offsets: readonly [number, number];
}

/** A file's tensor as a typed array: a view where the bytes are aligned, else a copy. */
export const toTensor = ({ dtype, shape, bytes }: FileTensor): Tensor => {
  const width = dtype === "F64" ? 8 : dtype === "F32" ? 4 : 2;
  const { buffer, byteOffset, byteLength } = bytes.byteOffset % width === 0 ? bytes : bytes.slice();
  if (dtype === "F32") return { shape, data: new Float32Array(buffer, byteOffset, byteLength / width) };
  if (dtype === "F64") return { shape, data: new Float64Array(buffer, byteOffset, byteLength / width) };
  if (dtype === "BF16" || dtype === "F16") return { shape, data: new Uint16Array(buffer, byteOffset, byteLength / width), dtype };
  throw new RangeError(`a tensor of dtype ${dtype} is none that stepd steps`);
};

/** All tensors of a file. */
export const toTensors = (file: Uint8Array): Record<string, Tensor> =>
  Object.fromEntries([...readFile(file).tensors].map(([name, tensor]) => [name, toTensor(tensor)]));
