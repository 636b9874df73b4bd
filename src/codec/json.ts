/** JSON bodies: values out of bytes, and bytes out of values with blobs as base64. */
import { randomUUID } from "node:crypto";
import { StepdError } from "../errors/errors.ts";
import { SpelledNumber } from "./_id.ts";
import { isLarge, sharesOf } from "./_shares.ts";
import { parseStrictJson } from "./_text.ts";
import { Parts } from "./parts.ts";
import type { Turns } from "./turns.ts";

/** The value of a body; `onValues` is told how many values it has while they are counted, before they are made. Throws PARSE_ERROR, and what `onValues` throws. */
export function* decodeJson(bytes: Buffer, onValues?: (count: number) => void): Turns<unknown> {
  try {
    return yield* parseStrictJson(bytes, onValues);
  } catch (error) {
    if (error instanceof StepdError) throw error;
    throw new StepdError("PARSE_ERROR", `The body is not valid JSON: ${(error as Error).message}`, { expected: "one JSON value in UTF-8" });
  }
}

/** Stands for a blob in the text while JSON.stringify runs. Random, so that no caller's string can be it. */
const PLACEHOLDER = randomUUID();

/** TypeScript does not declare it yet. */
const { rawJSON: rawJson } = JSON as typeof JSON & { rawJSON(text: string): unknown };

/** Base64 is written in pieces of this many bytes: a multiple of 3, so that no piece but the last is padded. */
const PIECE = 3 * 2 ** 20;

/** The JSON text of a value as pieces. `Parts` become base64 strings; `onBytes` is told the length of what is written so far, before base64 is made of it. */
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
  /** What stands where the text has a placeholder. */
  readonly blobs: readonly Parts[];
}

const textOf = (value: unknown): Text => {
  const blobs: Parts[] = [];
  const text = JSON.stringify(value, (_, item: unknown) => {
    // Ids, and the sign of a zero, which is part of a tensor's bits.
    if (typeof item === "bigint" || item instanceof SpelledNumber) return rawJson(String(item));
    if (Object.is(item, -0)) return rawJson("-0");
    // JSON has no word for these; JSON.stringify would write null.
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

/** The JSON text of an array of values that are JSON already. */
export const joinJson = (values: readonly Parts[]): Parts =>
  new Parts([...values.flatMap(({ pieces }, index) => [Buffer.from(index === 0 ? "[" : ","), ...pieces]), Buffer.from("]")]);

function* base64(blob: Parts): Generator<Buffer> {
  // Bytes that do not fill a group of three at the end of a piece go before the next.
  let rest = Buffer.alloc(0);
  for (const piece of blob.pieces) {
    const bytes = Buffer.from(piece.buffer, piece.byteOffset, piece.byteLength);
    const lead = Math.min((3 - rest.length) % 3, bytes.length);
    rest = Buffer.concat([rest, bytes.subarray(0, lead)]);
    if (rest.length % 3 !== 0) continue;
    yield Buffer.from(rest.toString("base64"), "latin1");
    const whole = lead + Math.floor((bytes.length - lead) / 3) * 3;
    for (let at = lead; at < whole; at += PIECE) yield Buffer.from(bytes.toString("base64", at, Math.min(at + PIECE, whole)), "latin1");
    rest = Buffer.from(bytes.subarray(whole));
  }
  yield Buffer.from(rest.toString("base64"), "latin1");
}
