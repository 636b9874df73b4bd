/** Converts typed arrays to the safetensors files that carry them, and back. */

export type DType = "F32" | "F64" | "BF16" | "F16" | "I8" | "U8";

/** A tensor's data in row-major order. BF16 and F16 are raw bits, because not every platform has such arrays. */
export interface Tensor {
  readonly shape: readonly number[];
  readonly data: Float32Array | Float64Array | Uint16Array | Int8Array | Uint8Array;
  /** Required for Uint16Array (BF16 or F16). Otherwise the array's type implies the dtype. */
  readonly dtype?: DType | undefined;
}

export type Tensors = Readonly<Record<string, Tensor>>;

/** A tensor of an update. The values of an Int8Array `w` are multiplied by the tensor `w.scale`: one number, or one per row. */
export type UpdateTensor = Tensor | { readonly shape: readonly number[]; readonly data: Int8Array; readonly dtype?: "I8" | undefined };

export type UpdateTensors = Readonly<Record<string, UpdateTensor>>;

/** A tensor in a file. `bytes` is a view of the file. */
export interface FileTensor {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

export interface SafetensorsFile {
  readonly metadata: Readonly<Record<string, string>>;
  readonly tensors: ReadonlyMap<string, FileTensor>;
}

/** Bytes per element of each dtype in parameters and slots. */
const DTYPE_BYTES: Readonly<Record<string, number>> = { F32: 4, F64: 8, BF16: 2, F16: 2, I64: 8, I32: 4, I8: 1, U8: 1 };

/** A safetensors file begins with the length of its header, in this many bytes. */
export const LENGTH_BYTES = 8;
const HEADER_ALIGNMENT = 8;

export const elementsOf = (shape: readonly number[]): number => shape.reduce((product, size) => product * size, 1);

/** Returns a tensor's dtype. Throws TypeError, with the tensor's name, if array, shape and dtype contradict each other. */
const checkedDtype = (name: string, { shape, data, dtype }: UpdateTensor): DType | "I8" => {
  const fail = (expected: string, found: unknown): never => {
    throw new TypeError(`tensor ${JSON.stringify(name)}: expected ${expected}, found ${found}`);
  };
  const implied = data instanceof Float32Array ? "F32" : data instanceof Float64Array ? "F64" : data instanceof Int8Array ? "I8" : undefined;
  if (!implied && !(data instanceof Uint16Array)) fail("data in a Float32Array, Float64Array or Uint16Array", kindOf(data));
  if (implied ? dtype !== undefined && dtype !== implied : dtype !== "BF16" && dtype !== "F16")
    fail(`dtype ${implied ?? "BF16 or F16"} for a ${kindOf(data)}`, dtype ?? "none");
  if (!Array.isArray(shape) || !shape.every((size) => Number.isSafeInteger(size) && size >= 0))
    fail("a shape of sizes from 0 on", Array.isArray(shape) ? `[${shape}]` : JSON.stringify(shape));
  if (elementsOf(shape) !== data.length) fail(`${elementsOf(shape)} values for shape [${shape}]`, data.length);
  return implied ?? (dtype as DType);
};

/** Throws TypeError if array, shape and dtype of a tensor contradict each other. */
export const checkTensors = (tensors: Tensors): void => {
  for (const [name, tensor] of Object.entries(tensors)) checkedDtype(name, tensor);
};

const kindOf = (value: unknown): string => (value as object | null | undefined)?.constructor?.name ?? String(value);

export const dtypeOf = ({ data, dtype }: Tensor): DType => (data instanceof Float32Array ? "F32" : data instanceof Float64Array ? "F64" : (dtype as DType));

/** Returns a tensor's data as bytes, without a copy. */
export const bytesOf = ({ data }: UpdateTensor): Uint8Array<ArrayBuffer> => new Uint8Array(data.buffer as ArrayBuffer, data.byteOffset, data.byteLength);

/** Returns a safetensors file in parts: the header, then the bytes of each tensor. */
export const fileParts = (tensors: UpdateTensors): [header: Uint8Array<ArrayBuffer>, ...data: Uint8Array<ArrayBuffer>[]] => {
  const entries = Object.entries(tensors).map(([name, tensor]): [string, FileTensor] => [
    name,
    { dtype: checkedDtype(name, tensor), shape: tensor.shape, bytes: bytesOf(tensor) },
  ]);
  return [headerOf([], entries), ...Object.values(tensors).map(bytesOf)];
};

/** Returns a file's length field and JSON header, padded as the server pads them. */
const headerOf = (first: readonly string[], entries: readonly (readonly [string, FileTensor])[]): Uint8Array<ArrayBuffer> => {
  let offset = 0;
  const described = entries.map(([key, { dtype, shape, bytes }]) => {
    const start = offset;
    offset += bytes.length;
    return `${JSON.stringify(key)}:${JSON.stringify({ dtype, shape, data_offsets: [start, offset] })}`;
  });
  const json = new TextEncoder().encode(`{${[...first, ...described].join(",")}}`);
  const padded = Math.ceil(json.length / HEADER_ALIGNMENT) * HEADER_ALIGNMENT;
  const header = new Uint8Array(LENGTH_BYTES + padded).fill(0x20, LENGTH_BYTES + json.length);
  new DataView(header.buffer).setBigUint64(0, BigInt(padded), true);
  header.set(json, LENGTH_BYTES);
  return header;
};

/** Returns a safetensors file with the entries in the given order. */
export const fileOf = (metadata: Readonly<Record<string, string>>, entries: readonly (readonly [string, FileTensor])[]): Uint8Array<ArrayBuffer> => {
  const header = headerOf([`"__metadata__":${JSON.stringify(metadata)}`], entries);
  const file = new Uint8Array(entries.reduce((sum, [, { bytes }]) => sum + bytes.length, header.length));
  file.set(header);
  let at = header.length;
  for (const [, { bytes }] of entries) {
    file.set(bytes, at);
    at += bytes.length;
  }
  return file;
};

/** Dtypes in the order of a canonical file. */
const FILE_ORDER = ["I64", "F64", "F32"];

/** Compares entries by dtype, then by name: the order in which the server writes an accumulator. */
export const compareCanonical = ([a, { dtype: left }]: readonly [string, FileTensor], [b, { dtype: right }]: readonly [string, FileTensor]): number =>
  FILE_ORDER.indexOf(left) - FILE_ORDER.indexOf(right) || compareUtf8(a, b);

/** Compares strings in UTF-8 order, which is code-point order: surrogates come after all other code units. */
export const compareUtf8 = (a: string, b: string): number => {
  const length = Math.min(a.length, b.length);
  for (let index = 0; index < length; index++) {
    const [left, right] = [a.charCodeAt(index), b.charCodeAt(index)];
    if (left !== right) return rank(left) - rank(right);
  }
  return a.length - b.length;
};

const rank = (unit: number): number => (unit >= 0xe000 ? unit - 0x800 : unit >= 0xd800 ? unit + 0x2000 : unit);

/** Returns the offset of a file's data. Throws RangeError if the offset is beyond the end of the file. */
export const dataStartOf = (file: Uint8Array): number => {
  if (file.length < LENGTH_BYTES) throw new RangeError(`a safetensors file has at least ${LENGTH_BYTES} bytes, this has ${file.length}`);
  const length = new DataView(file.buffer, file.byteOffset, LENGTH_BYTES).getBigUint64(0, true);
  if (length > file.length - LENGTH_BYTES) throw new RangeError(`the header of the safetensors file has ${length} bytes, the file ${file.length}`);
  return LENGTH_BYTES + Number(length);
};

/** Parses a safetensors file. The tensors are views of the file. Throws RangeError for an invalid file. */
export const readFile = (file: Uint8Array): SafetensorsFile => {
  const start = dataStartOf(file);
  const { __metadata__: metadata = {}, ...header } = parseHeader(file.slice(LENGTH_BYTES, start));
  if (!isObject(metadata) || !Object.values(metadata).every((value) => typeof value === "string"))
    throw new RangeError("__metadata__: expected strings by name");
  const data = file.subarray(start);
  const tensors = Object.entries(header).map(([name, entry]): [string, FileTensor] => [name, viewOf(name, entry, data)]);
  // Gaps, overlaps and trailing bytes are errors. Two readers could otherwise see different tensors in one file.
  let end = data.byteOffset;
  for (const { byteOffset, length } of tensors.map(([, { bytes }]) => bytes).sort((a, b) => a.byteOffset - b.byteOffset || a.length - b.length)) {
    if (byteOffset !== end) throw new RangeError("the tensors of the safetensors file do not cover its data exactly");
    end += length;
  }
  if (end !== data.byteOffset + data.length) throw new RangeError("the tensors of the safetensors file do not cover its data exactly");
  return { metadata: metadata as Record<string, string>, tensors: new Map(tensors) };
};

const isObject = (value: unknown): value is Record<string, unknown> => typeof value === "object" && value !== null && !Array.isArray(value);

const parseHeader = (json: Uint8Array): Record<string, unknown> => {
  try {
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(json);
    const header: unknown = JSON.parse(text);
    // Sizes must be digits only. safetensors rejects 2.0, 2e0 and -0, but JSON.parse turns them into integers.
    if (isObject(header) && !/[-+.eE]/.test(text.replaceAll(/"(?:[^"\\]|\\.)*"/g, ""))) return header;
  } catch {
    // The throw below reports a header that cannot be parsed.
  }
  throw new RangeError("the header of the safetensors file is no JSON object in UTF-8, or has numbers that are not written as digits alone");
};

/** Returns an entry's view of the data. Throws RangeError if the view's size does not match dtype and shape. */
const viewOf = (name: string, entry: unknown, data: Uint8Array): FileTensor => {
  const { dtype, shape, data_offsets: offsets } = (isObject(entry) ? entry : {}) as Partial<Record<"dtype" | "shape" | "data_offsets", unknown>>;
  const width = typeof dtype === "string" && Object.hasOwn(DTYPE_BYTES, dtype) ? DTYPE_BYTES[dtype] : undefined;
  const isSizes = (list: unknown): list is number[] => Array.isArray(list) && list.every((size) => Number.isSafeInteger(size) && size >= 0);
  if (width === undefined)
    throw new RangeError(`tensor ${JSON.stringify(name)}: expected a dtype of ${Object.keys(DTYPE_BYTES)}, found ${JSON.stringify(dtype)}`);
  if (!isSizes(shape) || !isSizes(offsets) || offsets.length !== 2)
    throw new RangeError(`tensor ${JSON.stringify(name)}: shape and data_offsets are not whole`);
  // Every partial product is checked, because a later 0 would hide an overflow.
  if (shape.some((_, index) => elementsOf(shape.slice(0, index + 1)) > Number.MAX_SAFE_INTEGER))
    throw new RangeError(`tensor ${JSON.stringify(name)}: the product of shape [${shape}] is too large`);
  const [from = 0, to = 0] = offsets;
  if (to > data.length || to - from !== elementsOf(shape) * width)
    throw new RangeError(`tensor ${JSON.stringify(name)}: expected ${elementsOf(shape) * width} bytes of ${data.length}, found ${from} to ${to}`);
  return { dtype: dtype as string, shape, bytes: data.subarray(from, to) };
};

/** Returns a file's tensor as a typed array: a view if the bytes are aligned, otherwise a copy. */
export const toTensor = ({ dtype, shape, bytes }: FileTensor): Tensor => {
  const width = DTYPE_BYTES[dtype] ?? 1;
  const { buffer, byteOffset, byteLength } = bytes.byteOffset % width === 0 ? bytes : bytes.slice();
  if (dtype === "F32") return { shape, data: new Float32Array(buffer, byteOffset, byteLength / width) };
  if (dtype === "F64") return { shape, data: new Float64Array(buffer, byteOffset, byteLength / width) };
  if (dtype === "BF16" || dtype === "F16") return { shape, data: new Uint16Array(buffer, byteOffset, byteLength / width), dtype };
  if (dtype === "I8") return { shape, data: new Int8Array(buffer, byteOffset, byteLength), dtype };
  if (dtype === "U8") return { shape, data: new Uint8Array(buffer, byteOffset, byteLength), dtype };
  throw new RangeError(`a tensor of dtype ${dtype} is none that stepd steps`);
};

/**
 * Returns all tensors of a file. Throws RangeError for an invalid safetensors file, and for dtypes that no parameter can have.
 */
export const toTensors = (file: Uint8Array): Record<string, Tensor> =>
  Object.fromEntries([...readFile(file).tensors].map(([name, tensor]) => [name, toTensor(tensor)]));

/**
 * Returns the tensors of a reply. Throws RangeError unless the reply's header equals the header that was sent, byte for byte.
 */
export const toTensorsLike = (sent: Tensors, [header, ...parts]: ReturnType<typeof fileParts>, file: Uint8Array): Record<string, Tensor> => {
  const length = parts.reduce((sum, part) => sum + part.length, header.length);
  if (file.length !== length || !header.every((byte, index) => byte === file[index]))
    throw new RangeError("params: expected the tensors that were sent, found others");
  let at = header.length;
  return Object.fromEntries(
    Object.entries(sent).map(([name, tensor]) => {
      const bytes = file.subarray(at, at + tensor.data.byteLength);
      at += bytes.length;
      return [name, toTensor({ dtype: dtypeOf(tensor), shape: tensor.shape, bytes })];
    }),
  );
};

/** Returns the tensors of a reply with another header. Throws RangeError if their names or shapes differ from `sent`. */
export const toTensorsNamed = (sent: Tensors | undefined, file: Uint8Array): Record<string, Tensor> => {
  const found = toTensors(file);
  const shapesOf = (tensors: Tensors): readonly string[] =>
    Object.entries(tensors)
      .map(([name, { shape }]) => `${JSON.stringify(name)} [${shape}]`)
      .sort();
  if (sent && String(shapesOf(found)) !== String(shapesOf(sent))) throw new RangeError("params: expected the tensors that were sent, found others");
  return found;
};
