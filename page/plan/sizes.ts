/** Parses tensor shapes that the visitor typed, and computes transfer times on a network. */

export interface Size {
  readonly name: string;
  readonly shape: readonly number[];
}

/** Parses one tensor per line: a name and a shape such as 768x3072, or only a number of parameters. Throws an Error that names the line. */
export const parseSizes = (text: string): readonly Size[] => {
  const sizes = text.split("\n").flatMap((line, index): Size[] => {
    const content = line.trim();
    if (content === "") return [];
    const [, name = `tensor ${index + 1}`, shape = ""] = /^(?:(\S+?)[\s:=]+)?\[?\s*([\d_]+(?:\s*[x×,*]\s*[\d_]+)*)\s*\]?$/.exec(content) ?? [];
    const numbers = shape.split(/[x×,*]/).map((part) => Number(part.replaceAll("_", "")));
    if (shape === "" || !numbers.every((size) => Number.isSafeInteger(size)))
      throw new Error(`line ${index + 1}: expected a name and a shape, such as “layer.weight 768x3072”, found “${content}”`);
    return [{ name, shape: numbers }];
  });
  const names = sizes.map(({ name }) => name);
  const twice = names.find((name, index) => names.indexOf(name) !== index);
  if (twice !== undefined) throw new Error(`expected each name once, found “${twice}” twice`);
  if (sizes.length === 0) throw new Error("expected at least one tensor");
  return sizes;
};

/** The bytes that a step sends and receives. */
export interface Traffic {
  readonly name: string;
  readonly bytesIn: number;
  readonly bytesOut: number;
}

/** Base64 encodes three bytes as four characters. */
const BASE64 = 4 / 3;

export interface Cost {
  readonly bytes_in: number;
  readonly bytes_out: number;
  readonly state_bytes: number;
}

/** Computes a step's traffic for each transport. */
export const trafficOf = ({ bytes_in, bytes_out, state_bytes }: Cost, gradientBytes: number): readonly Traffic[] => [
  { name: "MessagePack", bytesIn: bytes_in, bytesOut: bytes_out },
  { name: "JSON with base64", bytesIn: bytes_in * BASE64, bytesOut: bytes_out * BASE64 },
  { name: "MessagePack, parameters and state cached on the server", bytesIn: gradientBytes, bytesOut: bytes_out - state_bytes },
  { name: "Shared memory, on the same host", bytesIn: 0, bytesOut: 0 },
];

const BITS = 8;

/** Returns the transfer time on a link of `gigabits` Gbit/s. Request and reply do not overlap. */
export const transferSeconds = ({ bytesIn, bytesOut }: Traffic, gigabits: number): number => ((bytesIn + bytesOut) * BITS) / (gigabits * 1e9);
