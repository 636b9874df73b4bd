/** Encodes and decodes the narrow formats of moments as docs/state-format.md specifies, without the code under test. */
import { createHash } from "node:crypto";
import { rawTensors, readFile } from "./tensors.ts";

export type Kind = "signed" | "square";

const f = Math.fround;
const BLOCK = 64;
const bits = (value: number): number => new Uint32Array(Float32Array.of(value).buffer)[0] as number;
const value = (bits: number): number => new Float32Array(Uint32Array.of(bits).buffer)[0] as number;

const floats = (bytes: Buffer): Float32Array => new Float32Array(Uint8Array.from(bytes).buffer);
const halves = (bytes: Buffer): number[] => [...new Uint16Array(Uint8Array.from(bytes).buffer)].map((half) => value(half * 65536));
const ofHalves = (values: readonly number[]): Buffer => Buffer.from(Uint16Array.from(values, (value) => bits(value) >>> 16).buffer);

const mix = (start: number): number => {
  let x = start ^ (start >>> 16);
  x = Math.imul(x, 0x7feb352d);
  x ^= x >>> 15;
  x = Math.imul(x, 0x846ca68b);
  return (x ^ (x >>> 16)) >>> 0;
};

/** Returns a function from an element's index to 16 random bits. In 16 elements, e and e + 8 take the halves of one hash. */
const noise = (seed: string): ((element: number) => number) => {
  const key = createHash("sha256").update(seed).digest();
  const [low, high] = [key.readUInt32LE(0), key.readUInt32LE(4)];
  return (element) => {
    const hash = (mix(((element & ~15) + (element & 7)) ^ low) ^ high) >>> 0;
    return (element & 8) === 0 ? hash & 0xffff : hash >>> 16;
  };
};

const scaleOf = (block: Float32Array, kind: Kind): number => {
  let largest = Math.max(...block.map(Math.abs));
  if (kind === "square") largest = f(Math.sqrt(largest));
  if (Number.isNaN(largest)) return Number.NaN;
  const up = value(((bits(largest) + 0xffff) & 0xffff0000) >>> 0);
  return up === Number.POSITIVE_INFINITY && Number.isFinite(largest) ? value(0x7f7f0000) : up;
};

const signedCode = (m: number, scale: number, noise: number): number => {
  if (!(scale > 0 && scale < Number.POSITIVE_INFINITY)) return 0;
  const half = f(Math.abs(m) * 0.5);
  const x = f(254 * f(half / f(f(scale * 0.5) + half)));
  const down = Math.floor(x);
  const goesUp = f(f(noise / 65536) * f(254 - x)) < f(f(x - down) * f(253 - down));
  return Math.sign(m) * (down + (goesUp ? 1 : 0));
};

const squareCode = (v: number, scale: number, noise: number): number => {
  if (!(scale > 0 && scale < Number.POSITIVE_INFINITY)) return scale === Number.POSITIVE_INFINITY && v > 0 ? 1 : 0;
  const x = f(f(Math.sqrt(v)) * f(255 / scale));
  const down = Math.floor(x);
  const goesUp = f(f(noise / 65536) * f(f(down + down) + 1)) < f(f(x - down) * f(x + down));
  return Math.min(255, Math.max(down + (goesUp ? 1 : 0), v > 0 ? 1 : 0));
};

/** One slot of one parameter: its values, or its codes with their scales. */
export interface Stored {
  readonly dtype: string;
  readonly bytes: Buffer;
  readonly scales?: Buffer | undefined;
}

export const decode = ({ dtype, bytes, scales }: Stored): Float32Array => {
  if (dtype === "BF16") return Float32Array.from(halves(bytes));
  if (dtype === "F32") return floats(bytes);
  const scale = halves(scales as Buffer);
  return Float32Array.from(bytes, (byte, index) => {
    const s = scale[Math.floor(index / BLOCK)] as number;
    if (dtype === "U8") {
      const root = f(f(Math.min(s, value(0x7f7fffff)) / 255) * byte);
      return f(root * root);
    }
    const code = (byte << 24) >> 24;
    return f(s * f(code / (254 - Math.abs(code))));
  });
};

export const encode = (values: Float32Array, dtype: string, kind: Kind, seed: string): Stored => {
  const noiseAt = noise(seed);
  if (dtype === "BF16") {
    const rounded = values.map((v, index) => (Number.isNaN(v) ? v : value(((bits(v) + noiseAt(index)) & 0xffff0000) >>> 0)));
    return { dtype, bytes: ofHalves([...rounded]) };
  }
  const scales: number[] = [];
  for (let at = 0; at < values.length; at += BLOCK) scales.push(scaleOf(values.subarray(at, at + BLOCK), kind));
  const codes =
    values.length === 0
      ? []
      : [...values].map((v, index) => {
          const scale = scales[Math.floor(index / BLOCK)] as number;
          return kind === "signed" ? signedCode(v, scale, noiseAt(index)) : squareCode(v, scale, noiseAt(index));
        });
  return { dtype, bytes: Buffer.from(Uint8Array.from(codes, (code) => code & 0xff)), scales: ofHalves(scales) };
};

/** Returns a state's metadata, and its entries by key. Codes and their scales form one entry. */
export const storedIn = (state: Uint8Array): { metadata: Readonly<Record<string, string>>; stored: Map<string, Stored & { shape: readonly number[] }> } => {
  const { metadata, entries } = readFile(state);
  const stored = new Map<string, Stored & { shape: readonly number[] }>();
  for (const [key, { dtype, shape, bytes }] of entries) {
    const [slot = "", ...name] = key.split("/");
    if (slot.endsWith(".scale")) continue;
    stored.set(key, { dtype, shape, bytes, scales: entries.get(`${slot}.scale/${name.join("/")}`)?.bytes });
  }
  return { metadata, stored };
};

/** Returns the state with all moments in F32. */
export const widened = (state: Uint8Array): Buffer => {
  const { metadata, stored } = storedIn(state);
  let offset = 0;
  const data: Buffer[] = [];
  const header = [`"__metadata__":${JSON.stringify(metadata)}`];
  for (const [key, item] of stored) {
    const isScalar = item.dtype === "I64" || item.dtype === "F64";
    const bytes = isScalar ? item.bytes : Buffer.from(decode(item).buffer);
    header.push(
      `${JSON.stringify(key)}:${JSON.stringify({ dtype: isScalar ? item.dtype : "F32", shape: item.shape, data_offsets: [offset, offset + bytes.length] })}`,
    );
    offset += bytes.length;
    data.push(bytes);
  }
  return rawTensors(`{${header.join(",")}}`, Buffer.concat(data));
};
