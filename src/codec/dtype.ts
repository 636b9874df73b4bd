/** Element types of safetensors files. */

/** Bits of an element, by dtype, of all that safetensors has in stable use. */
const BITS: Readonly<Record<string, number>> = {
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

/** The order in which the safetensors library lays tensors out: by this number from high to low, then by name. */
const RANK = Object.keys(BITS);

/** Bytes of an element; undefined for a name that is no dtype. */
export const bytesOf = (dtype: string): number | undefined => (Object.hasOwn(BITS, dtype) ? (BITS[dtype] as number) / 8 : undefined);

export const rankOf = (dtype: string): number => RANK.indexOf(dtype);

export const elementsOf = (shape: readonly number[]): number => shape.reduce((product, size) => product * size, 1);
