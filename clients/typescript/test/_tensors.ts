/** Converts the tensors of the wire's JSON to typed arrays, exactly. */
import type { DType, Tensor } from "../src/index.ts";

type Value = number | string;

export interface WireTensor {
  readonly shape: readonly number[];
  readonly dtype?: DType;
  readonly values: readonly Value[];
}

const SPECIAL: Readonly<Record<string, number>> = { NaN: Number.NaN, Infinity: Number.POSITIVE_INFINITY, "-Infinity": Number.NEGATIVE_INFINITY };

/** Converts the strings "NaN", "Infinity" and "-Infinity" to numbers. Returns any other value unchanged. */
export const floatOf = (value: unknown): unknown => (typeof value === "string" && Object.hasOwn(SPECIAL, value) ? SPECIAL[value] : value);

/** The bits of every F16 number, by value. */
const halves = new Map<number, number>();
for (let bits = 0; bits < 2 ** 16; bits++) {
  const [sign, exponent, fraction] = [bits >> 15 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
  const finite = exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15);
  const value = exponent < 31 ? finite : fraction === 0 ? Number.POSITIVE_INFINITY : Number.NaN;
  if (!(Number.isNaN(value) && bits !== 0x7e00) && !(value === 0 && sign < 0)) halves.set(sign * value, bits);
}

const bitsOf = (value: number, dtype: "BF16" | "F16"): number => {
  if (Object.is(value, -0)) return 0x8000;
  if (dtype === "F16") {
    const bits = halves.get(value);
    if (bits === undefined) throw new RangeError(`${value} is no F16`);
    return bits;
  }
  const [word = 0] = new Uint32Array(Float32Array.of(value).buffer);
  if ((word & 0xffff) !== 0 || !(Math.fround(value) === value || Number.isNaN(value))) throw new RangeError(`${value} is no BF16`);
  return word >>> 16;
};

export const toTensor = ({ shape, dtype = "F32", values }: WireTensor): Tensor => {
  const numbers = values.map((value) => floatOf(value) as number);
  if (dtype === "F64") return { shape, data: Float64Array.from(numbers) };
  if (dtype === "F32") return { shape, data: Float32Array.from(numbers) };
  if (dtype !== "BF16" && dtype !== "F16") throw new RangeError(`no tensor of a case has dtype ${dtype}`);
  return { shape, dtype, data: Uint16Array.from(numbers, (value) => bitsOf(value, dtype)) };
};

/** Returns the bytes of an array in hexadecimal. */
export const bits = ({ buffer, byteOffset, byteLength }: Tensor["data"]): string => Buffer.from(buffer, byteOffset, byteLength).toString("hex");
