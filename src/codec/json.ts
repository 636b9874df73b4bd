/** Encodes and decodes bodies in JSON. Blobs are base64 strings. */
import { randomUUID } from "node:crypto";
import { StepdError } from "../errors/errors.ts";
import { isLarge, splitIntoChunks } from "./_chunks.ts";
import { SpelledNumber } from "./_id.ts";
import { parseStrictJson } from "./_text.ts";
import { Parts } from "./parts.ts";
import type { Task } from "./turns.ts";

/** Decodes a body. Before any value is created, the scan reports its count of values to `onProgress`. Throws PARSE_ERROR and the errors of `onProgress`. */
export function* decodeJson(bytes: Buffer, onProgress?: (count: number) => void): Task<unknown> {
  try {
    return yield* parseStrictJson(bytes, onProgress);
  } catch (error) {
    if (error instanceof StepdError) throw error;
    throw new StepdError("PARSE_ERROR", `The body is not valid JSON: ${(error as Error).message}`, { expected: "one JSON value in UTF-8" });
  }
}

/** A placeholder stands for a blob in JSON.stringify's output. It is random, so no caller's string can equal it. */
const PLACEHOLDER = randomUUID();

// TypeScript does not declare JSON.rawJSON yet.
const { rawJSON: rawJson } = JSON as typeof JSON & { rawJSON(text: string): unknown };

/** A blob is encoded in chunks of this many bytes: a multiple of 3, so only the last chunk is padded. */
const CHUNK_BYTES = 3 * 2 ** 20;

/** Encodes a value. `Parts` become base64 strings. `onBytes` receives the length so far, including base64 not yet encoded. */
export function* encodeJson(value: unknown, onBytes: (bytes: number) => void = () => {}): Task<Parts> {
  const output: Output = { pieces: [], bytes: 0, onBytes };
  yield* write(value, output);
  return new Parts(output.pieces);
}

interface Output {
  readonly pieces: Uint8Array[];
  bytes: number;
  readonly onBytes: (bytes: number) => void;
}

function* write(value: unknown, output: Output): Task<void> {
  if (!isLarge(value)) {
    yield* writeText(textOf(value), output);
    return;
  }
  const [open, close] = Array.isArray(value) ? ["[", "]"] : ["{", "}"];
  let before = open;
  for (const chunk of splitIntoChunks(value)) {
    if ("large" in chunk) {
      output.pieces.push(Buffer.from(chunk.key === undefined ? before : `${before}${JSON.stringify(chunk.key)}:`));
      yield* write(chunk.large, output);
    } else {
      const { text, blobs } = textOf(chunk.small);
      yield* writeText({ text: before + text.slice(1, -1), blobs }, output);
    }
    before = ",";
    yield;
  }
  output.pieces.push(Buffer.from(before === open ? open + close : close));
}

interface TextWithBlobs {
  readonly text: string;
  /** Each blob replaces one placeholder of the text, in order. */
  readonly blobs: readonly Parts[];
}

const textOf = (value: unknown): TextWithBlobs => {
  const blobs: Parts[] = [];
  const text = JSON.stringify(value, (_, item: unknown) => {
    if (typeof item === "bigint" || item instanceof SpelledNumber) return rawJson(String(item));
    // JSON.stringify would drop the sign of -0, which is part of a tensor's bits.
    if (Object.is(item, -0)) return rawJson("-0");
    // JSON.stringify would write NaN and infinities as null, so they become strings.
    if (typeof item === "number" && !Number.isFinite(item)) return String(item);
    if (!(item instanceof Parts)) return item;
    blobs.push(item);
    return PLACEHOLDER;
  });
  return { text, blobs };
};

function* writeText({ text, blobs }: TextWithBlobs, output: Output): Task<void> {
  const { pieces } = output;
  output.bytes += blobs.reduce((sum, { length }) => sum + Math.ceil(length / 3) * 4, text.length);
  output.onBytes(output.bytes);
  const fragments = text.split(`"${PLACEHOLDER}"`);
  for (const [index, fragment] of fragments.entries()) {
    if (index > 0) {
      pieces.push(Buffer.from('"'));
      for (const piece of base64(blobs[index - 1] as Parts)) {
        pieces.push(piece);
        yield;
      }
      pieces.push(Buffer.from('"'));
    }
    pieces.push(Buffer.from(fragment));
  }
}

/** Builds an encoded array from encoded items. */
export const joinJson = (values: readonly Parts[]): Parts =>
  new Parts([...values.flatMap(({ pieces }, index) => [Buffer.from(index === 0 ? "[" : ","), ...pieces]), Buffer.from("]")]);

function* base64(blob: Parts): Generator<Buffer> {
  // base64 encodes groups of 3 bytes. `carry` holds an incomplete group between two pieces.
  let carry = Buffer.alloc(0);
  for (const piece of blob.pieces) {
    const bytes = Buffer.from(piece.buffer, piece.byteOffset, piece.byteLength);
    const lead = Math.min((3 - carry.length) % 3, bytes.length);
    carry = Buffer.concat([carry, bytes.subarray(0, lead)]);
    if (carry.length % 3 !== 0) continue;
    yield Buffer.from(carry.toString("base64"), "latin1");
    const whole = lead + Math.floor((bytes.length - lead) / 3) * 3;
    for (let at = lead; at < whole; at += CHUNK_BYTES) yield Buffer.from(bytes.toString("base64", at, Math.min(at + CHUNK_BYTES, whole)), "latin1");
    carry = Buffer.from(bytes.subarray(whole));
  }
  yield Buffer.from(carry.toString("base64"), "latin1");
}
