/** The JSON codec of bodies. Blobs are base64 strings. */
import { randomUUID } from "node:crypto";
import { StepdError } from "../errors/errors.ts";
import { SpelledNumber } from "./_id.ts";
import { isLarge, sharesOf } from "./_shares.ts";
import { parseStrictJson } from "./_text.ts";
import { Parts } from "./parts.ts";
import type { Turns } from "./turns.ts";

/** Decodes a body. Calls `onValues` with the number of values so far, before any is created. Throws PARSE_ERROR and the errors of `onValues`. */
export function* decodeJson(bytes: Buffer, onValues?: (count: number) => void): Turns<unknown> {
  try {
    return yield* parseStrictJson(bytes, onValues);
  } catch (error) {
    if (error instanceof StepdError) throw error;
    throw new StepdError("PARSE_ERROR", `The body is not valid JSON: ${(error as Error).message}`, { expected: "one JSON value in UTF-8" });
  }
}

/** Replaces a blob in the text during JSON.stringify. Random, so that no caller's string can equal it. */
const PLACEHOLDER = randomUUID();

/** JSON.rawJSON, which TypeScript does not declare yet. */
const { rawJSON: rawJson } = JSON as typeof JSON & { rawJSON(text: string): unknown };

/** The bytes of a blob encoded at once: a multiple of 3, so that only the last piece is padded. */
const CHUNK_BYTES = 3 * 2 ** 20;

/** Encodes a value. `Parts` become base64 strings. Calls `onBytes` with the length so far, including base64 that is not encoded yet. */
export function* encodeJson(value: unknown, onBytes: (bytes: number) => void = () => {}): Turns<Parts> {
  const output: Output = { pieces: [], bytes: 0, onBytes };
  yield* write(value, output);
  return new Parts(output.pieces);
}

interface Output {
  readonly pieces: Uint8Array[];
  bytes: number;
  readonly onBytes: (bytes: number) => void;
}

function* write(value: unknown, output: Output): Turns<void> {
  if (!isLarge(value)) {
    yield* writeText(textOf(value), output);
    return;
  }
  const [open, close] = Array.isArray(value) ? ["[", "]"] : ["{", "}"];
  let before = open;
  for (const share of sharesOf(value)) {
    if ("large" in share) {
      output.pieces.push(Buffer.from(share.key === undefined ? before : `${before}${JSON.stringify(share.key)}:`));
      yield* write(share.large, output);
    } else {
      const { text, blobs } = textOf(share.small);
      yield* writeText({ text: before + text.slice(1, -1), blobs }, output);
    }
    before = ",";
    yield;
  }
  output.pieces.push(Buffer.from(before === open ? open + close : close));
}

interface Text {
  readonly text: string;
  /** The blobs to insert at the text's placeholders. */
  readonly blobs: readonly Parts[];
}

const textOf = (value: unknown): Text => {
  const blobs: Parts[] = [];
  const text = JSON.stringify(value, (_, item: unknown) => {
    if (typeof item === "bigint" || item instanceof SpelledNumber) return rawJson(String(item));
    // The sign of zero is part of a tensor's bits; JSON.stringify would drop it.
    if (Object.is(item, -0)) return rawJson("-0");
    // NaN and infinities become strings; JSON.stringify would write null.
    if (typeof item === "number" && !Number.isFinite(item)) return String(item);
    if (!(item instanceof Parts)) return item;
    blobs.push(item);
    return PLACEHOLDER;
  });
  return { text, blobs };
};

function* writeText({ text, blobs }: Text, output: Output): Turns<void> {
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

/** Joins encoded values to an encoded array. */
export const joinJson = (values: readonly Parts[]): Parts =>
  new Parts([...values.flatMap(({ pieces }, index) => [Buffer.from(index === 0 ? "[" : ","), ...pieces]), Buffer.from("]")]);

function* base64(blob: Parts): Generator<Buffer> {
  // The bytes at the end of a piece that do not fill a group of three. They precede the next piece.
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
