/** Defines the dtypes of safetensors files. */

/** Bits per element for each stable dtype of safetensors. */
const BITS_PER_ELEMENT: Readonly<Record<string, number>> = {
  BOOL: 8,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
};

/** The safetensors library writes tensors in descending order of their dtype's index in this list, then in order of their names. */
const WRITE_ORDER = Object.keys(BITS_PER_ELEMENT);

/** Returns the bytes per element, or undefined for an unknown dtype. */
export const bytesOf = (dtype: string): number | undefined => (Object.hasOwn(BITS_PER_ELEMENT, dtype) ? (BITS_PER_ELEMENT[dtype] as number) / 8 : undefined);

export const rankOf = (dtype: string): number => WRITE_ORDER.indexOf(dtype);

export const elementsOf = (shape: readonly number[]): number => shape.reduce((product, size) => product * size, 1);

/** True if no product of the first sizes exceeds 2^53 - 1. A size of 0 at the end would hide such an overflow from some readers. */
export const isCountable = (shape: readonly number[]): boolean => {
  let product = 1;
  for (const size of shape) {
    product *= size;
    if (product > Number.MAX_SAFE_INTEGER) return false;
  }
  return true;
};

/** Parameters and gradients have one of these dtypes. */
export const COMPUTED = ["F32", "F64", "BF16", "F16"] as const;

/** Reads one element. `dtype` must be one of COMPUTED. */
export const readElement = (bytes: Buffer, at: number, dtype: string): number => {
  if (dtype === "F32") return bytes.readFloatLE(at);
  if (dtype === "F64") return bytes.readDoubleLE(at);
  const bits = bytes.readUInt16LE(at);
  if (dtype === "BF16") {
    view.setUint32(0, bits * 65536);
    return view.getFloat32(0);
  }
  view.setUint16(0, bits);
  return view.getFloat16(0);
};

/** Writes one element, rounded to nearest even. `dtype` must be one of COMPUTED. */
export const writeElement = (bytes: Buffer, at: number, dtype: string, value: number): void => {
  if (dtype === "F32") bytes.writeFloatLE(value, at);
  else if (dtype === "F64") bytes.writeDoubleLE(value, at);
  else if (dtype === "BF16") bytes.writeUInt16LE(bf16Bits(value), at);
  else {
    view.setFloat16(0, value);
    bytes.writeUInt16LE(view.getUint16(0), at);
  }
};

const view = new DataView(new ArrayBuffer(8)) as DataView & { getFloat16(at: number): number; setFloat16(at: number, value: number): void };

const bf16Bits = (value: number): number => {
  view.setFloat32(0, value);
  let bits = view.getUint32(0);
  if (Number.isNaN(value)) return (bits >>> 16) | 0x40;
  // Rounding to float32 can produce a tie. The float64 value then decides the direction, so that the value is rounded only once.
  const single = Math.fround(value);
  if ((bits & 0xffff) === 0x8000 && single !== value) bits += Math.abs(value) > Math.abs(single) ? 1 : -1;
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) / 65536) & 0xffff;
};
