/**
 * Bodies that say what another said before: a trainer sends the same words with each step, and other bytes only in the blobs
 * and in the call's id. Comparing the words takes a tenth of the time of reading them. Bounded, and never needed.
 */
import { isUtf8 } from "node:buffer";
import { LRUCache } from "lru-cache";
import type { Span } from "./_id.ts";
import { MAX_CHARACTERS, MAX_KEY } from "./_recent.ts";

/** What a body says beside its blobs and its id: the same object each time. Two bodies with the same words differ in nothing else. */
export type Words = object;

/** Bodies of more values are looked through faster than they are remembered. */
const MAX_VALUES = 1000;

/** Bodies of one length that are remembered: trainers that differ in a learning rate have bodies of one length. */
const MAX_ALIKE = 16;

/** Bytes that a frame takes beside its words, about. */
const FRAME_BYTES = 1024;

/** Bytes that may differ, and how they are read. */
interface Hole extends Span {
  readonly kind: "blob" | "integer" | "small integer" | "string";
}

/** A value without what its holes hold. */
interface Mold {
  readonly base: object;
  readonly parts: readonly (readonly [key: string | number, part: Hole | Mold])[];
}

class Frame {
  /** Values in the body. */
  readonly values: number;
  /** All bytes outside of the holes, one after the other. */
  readonly words: Buffer;
  readonly #length: number;
  readonly #holes: readonly Hole[];
  readonly #mold: Mold;

  constructor(bytes: Buffer, holes: readonly Hole[], mold: Mold, values: number) {
    this.values = values;
    this.#length = bytes.length;
    this.#holes = holes;
    this.#mold = mold;
    const starts = [0, ...holes.map(({ end }) => end)];
    const parts = starts.map((start, index) => bytes.subarray(start, holes[index]?.start));
    // Of their own: a few bytes out of node's pool of buffers would keep all of it.
    this.words = Buffer.allocUnsafeSlow(parts.reduce((sum, part) => sum + part.length, 0));
    parts.reduce((at, part) => at + part.copy(this.words, at), 0);
  }

  /** Whether another body of this length has the same words. */
  isOf(bytes: Buffer): boolean {
    let at = 0;
    let word = 0;
    for (const { start, end, kind } of this.#holes) {
      if (!this.#isSame(bytes, at, start, word)) return false;
      if (kind === "small integer" && (bytes[start] as number) > 0x7f) return false;
      if (kind === "string" && !isUtf8(bytes.subarray(start, end))) return false;
      word += start - at;
      at = end;
    }
    return this.#isSame(bytes, at, this.#length, word);
  }

  #isSame(bytes: Buffer, start: number, end: number, word: number): boolean {
    return this.words.compare(bytes, start, end, word, word + end - start) === 0;
  }

  /** The value of a body with these words. */
  value(bytes: Buffer): unknown {
    return fill(this.#mold, bytes);
  }
}

const fill = ({ base, parts }: Mold, bytes: Buffer): object => {
  const value = (Array.isArray(base) ? [...base] : { ...base }) as Record<string | number, unknown>;
  for (const [key, part] of parts) value[key] = "base" in part ? fill(part, bytes) : read(part, bytes);
  return value;
};

const read = ({ start, end, kind }: Hole, bytes: Buffer): unknown => {
  if (kind === "blob") return bytes.subarray(start, end);
  return kind === "string" ? bytes.toString("utf8", start, end) : bytes.readUIntBE(start, end - start);
};

/** The frame of a body that has been decoded; undefined for one that is not worth it. `id` is where the value of its id is. */
export const frameOf = (bytes: Buffer, value: unknown, values: number, id: Span | undefined): Frame | undefined => {
  if (values > MAX_VALUES || typeof value !== "object" || value === null || value instanceof Uint8Array) return undefined;
  const holes: Hole[] = [];
  const hole = id && idHole(bytes, id);
  if (hole) holes.push(hole);
  const mold = moldOf(value, bytes, holes);
  const whole = hole ? { ...mold, parts: [...mold.parts, ["id", hole] as const] } : mold;
  holes.sort((a, b) => a.start - b.start);
  const length = holes.reduce((sum, { start, end }) => sum - (end - start), bytes.length);
  return length < MAX_KEY ? new Frame(bytes, holes, whole, values) : undefined;
};

/** Finds the blobs, which are views of the body. */
const moldOf = (value: object, bytes: Buffer, holes: Hole[]): Mold => {
  const base = (Array.isArray(value) ? [...value] : { ...value }) as Record<string, unknown>;
  const parts: (readonly [string, Hole | Mold])[] = [];
  for (const [key, item] of Object.entries(value)) {
    // A number of its own spelling holds no place of a blob.
    if (typeof item !== "object" || item === null || item instanceof Number) continue;
    if (item instanceof Uint8Array) {
      const start = item.byteOffset - bytes.byteOffset;
      const hole: Hole = { start, end: start + item.length, kind: "blob" };
      holes.push(hole);
      parts.push([key, hole]);
      // A view would outlive its body.
      base[key] = undefined;
    } else {
      const mold = moldOf(item, bytes, holes);
      if (mold.parts.length > 0) parts.push([key, mold]);
    }
  }
  return { base, parts };
};

/** A whole number of up to 32 bits, or a string: behind its head, which is one of the words. */
const idHole = (bytes: Buffer, { start, end }: Span): Hole | undefined => {
  const type = bytes[start] as number;
  if (type <= 0x7f) return { start, end, kind: "small integer" };
  if (type >= 0xcc && type <= 0xce) return { start: start + 1, end, kind: "integer" };
  if (type >= 0xa0 && type <= 0xbf) return { start: start + 1, end, kind: "string" };
  return type === 0xd9 ? { start: start + 2, end, kind: "string" } : undefined;
};

/** The last bodies' frames, by their length. */
export class Frames {
  readonly #byLength = new LRUCache<number, Frame[]>({
    maxSize: MAX_CHARACTERS,
    sizeCalculation: (frames) => frames.reduce((sum, { words }) => sum + words.length + FRAME_BYTES, 0),
  });

  /** The frame of another body with the same words. */
  find(bytes: Buffer): Frame | undefined {
    const alike = this.#byLength.get(bytes.length);
    const index = alike?.findIndex((frame) => frame.isOf(bytes)) ?? -1;
    const frame = alike?.[index];
    // The last to be of use is the last to go.
    if (frame && index > 0) alike.unshift(...alike.splice(index, 1));
    return frame;
  }

  add(length: number, frame: Frame): void {
    this.#byLength.set(length, [frame, ...(this.#byLength.get(length) ?? [])].slice(0, MAX_ALIKE));
  }
}
