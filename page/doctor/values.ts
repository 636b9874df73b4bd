/** Decodes tensors, and computes statistics of their elements. */
import { BYTES, type DType, Q8_BLOCK, type Tensor, Unreadable } from "./checkpoint.ts";

type Elements = Float32Array | Float64Array | BigInt64Array | Int32Array | Int16Array | Int8Array | Uint8Array;

/** Converts BF16 to float32: BF16 is the upper half of the bits. */
const fromBf16 = (bits: Uint16Array): Float32Array => {
  const words = new Uint32Array(bits.length);
  for (let at = 0; at < bits.length; at++) words[at] = (bits[at] as number) << 16;
  return new Float32Array(words.buffer);
};

const fromF16 = (bits: Uint16Array): Float32Array => {
  const values = new Float32Array(bits.length);
  for (let at = 0; at < bits.length; at++) {
    const word = bits[at] as number;
    const [sign, exponent, fraction] = [word & 0x8000 ? -1 : 1, (word >> 10) & 31, word & 1023];
    if (exponent === 31) values[at] = fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
    else values[at] = sign * (exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15));
  }
  return values;
};

/** Decodes little-endian bytes. All browsers run on little-endian machines. */
export const decode = (bytes: Uint8Array<ArrayBuffer>, dtype: DType): Elements => {
  const size = BYTES[dtype];
  const { buffer, byteOffset, length } = isAligned(bytes, size) ? bytes : bytes.slice();
  const count = length / size;
  switch (dtype) {
    case "F64":
      return new Float64Array(buffer, byteOffset, count);
    case "F32":
      return new Float32Array(buffer, byteOffset, count);
    case "F16":
      return fromF16(new Uint16Array(buffer, byteOffset, count));
    case "BF16":
      return fromBf16(new Uint16Array(buffer, byteOffset, count));
    case "I64":
      return new BigInt64Array(buffer, byteOffset, count);
    case "I32":
      return new Int32Array(buffer, byteOffset, count);
    case "I16":
      return new Int16Array(buffer, byteOffset, count);
    case "I8":
      return new Int8Array(buffer, byteOffset, count);
    default:
      return new Uint8Array(buffer, byteOffset, count);
  }
};

const isAligned = ({ byteOffset }: Uint8Array, size: number): boolean => byteOffset % size === 0;

/** Decodes elements of any dtype as numbers. */
export const decodeNumbers = (bytes: Uint8Array<ArrayBuffer>, dtype: DType): ArrayLike<number> => {
  const elements = decode(bytes, dtype);
  return elements instanceof BigInt64Array ? Float64Array.from(elements, Number) : elements;
};

/** The largest code of a signed moment, and the largest code of a moment of squares. */
const [SIGNED_CODE, SQUARE_CODE] = [254, 255];
const MAX_BF16 = 3.3895313892515355e38;

/** Converts Q8 codes to float32: I8 codes of signed moments, or U8 codes of squares. Each operation is rounded to float32, as in the service. */
const widen = (codes: ArrayLike<number>, scales: ArrayLike<number>, isSigned: boolean): Float32Array => {
  const values = new Float32Array(codes.length);
  for (let at = 0; at < codes.length; at++) {
    const [code, scale] = [codes[at] as number, scales[Math.floor(at / Q8_BLOCK)] as number];
    if (isSigned) values[at] = scale * Math.fround(code / (SIGNED_CODE - Math.abs(code)));
    else values[at] = Math.fround(Math.fround(Math.min(scale, MAX_BF16) / SQUARE_CODE) * code) ** 2;
  }
  return values;
};

/** Reads the values of a tensor of any dtype. Throws Unreadable. */
export const valuesOf = async (tensor: Tensor): Promise<ArrayLike<number>> => {
  const values = decodeNumbers(await tensor.read(), tensor.dtype);
  if (!tensor.readScales) return values;
  const scales = decodeNumbers(await tensor.readScales(), "BF16");
  const blocks = Math.ceil(values.length / Q8_BLOCK);
  if (scales.length !== blocks)
    throw new Unreadable("bad-scales", `${tensor.slot} of “${tensor.parameter}” has ${scales.length} scales; its ${values.length} elements need ${blocks}.`);
  return widen(values, scales, tensor.dtype === "I8");
};

/** The histogram has one bin for each power of two in float32's range. */
const [LEAST, MOST] = [-149, 127];

export interface Statistics {
  count: number;
  zeros: number;
  nonFinite: number;
  negative: number;
  min: number;
  max: number;
  sumOfMagnitudes: number;
  /** The number of finite, nonzero values in each bin. A value's bin is the power of two of its magnitude. */
  readonly histogram: number[];
}

export const newStatistics = (): Statistics => ({
  count: 0,
  zeros: 0,
  nonFinite: 0,
  negative: 0,
  min: Number.POSITIVE_INFINITY,
  max: Number.NEGATIVE_INFINITY,
  sumOfMagnitudes: 0,
  histogram: new Array(MOST - LEAST + 1).fill(0),
});

/** Returns the power of two at the start of a bin. */
export const powerOf = (bin: number): number => bin + LEAST;

const scratch = new Float32Array(1);
const bits = new Uint32Array(scratch.buffer);

/** Returns a magnitude's power of two, from the exponent bits of float32. A logarithm would take five times as long (measured). */
const exponentOf = (magnitude: number): number => {
  scratch[0] = magnitude;
  const word = bits[0] as number;
  const exponent = word >>> 23;
  return exponent === 0 ? (word === 0 ? LEAST : 31 - Math.clz32(word) + LEAST) : Math.min(exponent - 127, MOST);
};

/** Adds values to statistics. */
export const addValues = (statistics: Statistics, values: ArrayLike<number>): void => {
  const { histogram } = statistics;
  let { zeros, nonFinite, negative, min, max, sumOfMagnitudes } = statistics;
  for (let at = 0; at < values.length; at++) {
    const value = values[at] as number;
    if (value === 0) zeros++;
    else if (value - value !== 0) {
      nonFinite++;
      continue;
    } else {
      const magnitude = value < 0 ? -value : value;
      if (value < 0) negative++;
      sumOfMagnitudes += magnitude;
      const bin = exponentOf(magnitude) - LEAST;
      histogram[bin] = (histogram[bin] as number) + 1;
    }
    if (value < min) min = value;
    if (value > max) max = value;
  }
  Object.assign(statistics, { count: statistics.count + values.length, zeros, nonFinite, negative, min, max, sumOfMagnitudes });
};

export const mergeStatistics = (into: Statistics, from: Statistics): void => {
  for (const [bin, count] of from.histogram.entries()) into.histogram[bin] = (into.histogram[bin] as number) + count;
  Object.assign(into, {
    count: into.count + from.count,
    zeros: into.zeros + from.zeros,
    nonFinite: into.nonFinite + from.nonFinite,
    negative: into.negative + from.negative,
    min: Math.min(into.min, from.min),
    max: Math.max(into.max, from.max),
    sumOfMagnitudes: into.sumOfMagnitudes + from.sumOfMagnitudes,
  });
};
