/**
 * Templates of MessagePack bodies. A trainer sends the same bytes at every step, except in its blobs and in the call's id. Comparing
 * a body with a template takes less time than decoding it.
 */
import { isUtf8 } from "node:buffer";
import { LRUCache } from "lru-cache";
import type { Span } from "./_id.ts";

/** Bodies with more values get no template. */
const MAX_VALUES = 1000;

/** The most bytes outside the holes of a template. */
const MAX_FIXED_BYTES = 2 ** 16;

/** The size of all templates of a reader. */
const MAX_BYTES = 2 ** 22;

/** The memory of a template beside its fixed bytes, estimated. */
const TEMPLATE_BYTES = 1024;

/** The most templates for one length of body. Trainers that differ only in a rate send bodies of one length. */
const MAX_SAME_LENGTH = 16;

/** A range of bytes that may differ from body to body. */
interface Hole extends Span {
  readonly kind: "blob" | "fixint" | "uint" | "string";
}

/** A decoded map or list, and its members that contain a hole. */
interface Shape {
  readonly base: object;
  readonly members: readonly (readonly [key: string, member: Hole | Shape])[];
}

/** The decoded form of all bodies that are equal outside their holes. */
export class Template {
  /** The number of values in the body. */
  readonly values: number;
  readonly stringBytes: number;
  /** The bytes outside the holes. */
  readonly fixed: Buffer;
  readonly #holes: readonly Hole[];
  readonly #shape: Shape;

  constructor(bytes: Buffer, holes: readonly Hole[], shape: Shape, { values, stringBytes }: Counts) {
    this.values = values;
    this.stringBytes = stringBytes;
    this.#holes = holes;
    this.#shape = shape;
    const starts = [0, ...holes.map(({ end }) => end)];
    this.fixed = Buffer.concat(starts.map((start, index) => bytes.subarray(start, holes[index]?.start)));
  }

  /** True if a body of the same length differs only in the holes. */
  matches(bytes: Buffer): boolean {
    let at = 0;
    let fixedAt = 0;
    for (const { start, end, kind } of this.#holes) {
      if (this.fixed.compare(bytes, at, start, fixedAt, fixedAt + start - at) !== 0) return false;
      if (kind === "fixint" && (bytes[start] as number) > 0x7f) return false;
      if (kind === "string" && !isUtf8(bytes.subarray(start, end))) return false;
      fixedAt += start - at;
      at = end;
    }
    return this.fixed.compare(bytes, at, bytes.length, fixedAt) === 0;
  }

  /** Creates the value of a matching body. All values share the maps and lists that contain no hole. */
  fill(bytes: Buffer): unknown {
    return fill(this.#shape, bytes);
  }
}

const copyOf = (container: object): Record<string, unknown> => (Array.isArray(container) ? [...container] : { ...container }) as Record<string, unknown>;

const fill = ({ base, members }: Shape, bytes: Buffer): object => {
  const value = copyOf(base);
  for (const [key, member] of members) value[key] = "base" in member ? fill(member, bytes) : read(member, bytes);
  return value;
};

const read = ({ start, end, kind }: Hole, bytes: Buffer): unknown => {
  if (kind === "blob") return bytes.subarray(start, end);
  return kind === "string" ? bytes.toString("utf8", start, end) : bytes.readUIntBE(start, end - start);
};

interface Counts {
  readonly values: number;
  readonly stringBytes: number;
}

/** The templates of the latest bodies. */
export class Templates {
  readonly #byLength = new LRUCache<number, readonly Template[]>({
    maxSize: MAX_BYTES,
    sizeCalculation: (templates) => templates.reduce((sum, { fixed }) => sum + fixed.length + TEMPLATE_BYTES, 0),
  });

  find(bytes: Buffer): Template | undefined {
    return this.#byLength.get(bytes.length)?.find((template) => template.matches(bytes));
  }

  /** Adds the template of a decoded body, whose id is in the range `idSpan`. Returns undefined for a batch and for a body with many values. */
  add(bytes: Buffer, value: unknown, idSpan: Span | undefined, counts: Counts): Template | undefined {
    if (counts.values > MAX_VALUES || !isContainer(value) || Array.isArray(value)) return undefined;
    const blobs: Hole[] = [];
    const shape = shapeOf(value, bytes, blobs);
    const id = idSpan && idHole(bytes, idSpan);
    const holes = id ? [...blobs, id].sort((a, b) => a.start - b.start) : blobs;
    if (holes.reduce((sum, { start, end }) => sum - (end - start), bytes.length) > MAX_FIXED_BYTES) return undefined;
    const template = new Template(bytes, holes, id ? { base: shape.base, members: [...shape.members, ["id", id]] } : shape, counts);
    this.#byLength.set(bytes.length, [template, ...(this.#byLength.get(bytes.length) ?? []).slice(0, MAX_SAME_LENGTH - 1)]);
    return template;
  }
}

/** True for decoded maps and lists, and false for blobs and for ids with a spelling of their own. */
const isContainer = (value: unknown): value is object =>
  Array.isArray(value) || (typeof value === "object" && value !== null && Object.getPrototypeOf(value) === Object.prototype);

/** Finds the blobs of a container, which are views of the body. Removes them from `base`, because the body's memory is used again. */
const shapeOf = (value: object, bytes: Buffer, blobs: Hole[]): Shape => {
  const base = copyOf(value);
  const members: (readonly [string, Hole | Shape])[] = [];
  for (const [key, item] of Object.entries(value)) {
    if (item instanceof Uint8Array) {
      const start = item.byteOffset - bytes.byteOffset;
      const hole: Hole = { start, end: start + item.length, kind: "blob" };
      blobs.push(hole);
      members.push([key, hole]);
      base[key] = undefined;
    } else if (isContainer(item)) {
      const shape = shapeOf(item, bytes, blobs);
      if (shape.members.length > 0) members.push([key, shape]);
    }
  }
  return { base, members };
};

/** The bytes of an id that may differ: an unsigned integer of up to 32 bits, or a short string. Its type byte is fixed, except in a fixint. */
const idHole = (bytes: Buffer, { start, end }: Span): Hole | undefined => {
  const type = bytes[start] as number;
  if (type <= 0x7f) return { start, end, kind: "fixint" };
  if (type >= 0xcc && type <= 0xce) return { start: start + 1, end, kind: "uint" };
  if (type >= 0xa0 && type <= 0xbf) return { start: start + 1, end, kind: "string" };
  return type === 0xd9 ? { start: start + 2, end, kind: "string" } : undefined;
};
