/**
 * Creates templates of MessagePack bodies. A trainer sends the same bytes at every step, except for its blobs and the call's id. Comparing a
 * body with a template takes less time than decoding it.
 */
import { isUtf8 } from "node:buffer";
import { LRUCache } from "lru-cache";
import type { Span } from "./_id.ts";

/** Bodies with more than this many values get no template. */
const MAX_VALUES = 1000;

/** A template has at most this many fixed bytes: bytes outside its variable ranges. */
const MAX_FIXED_BYTES = 2 ** 16;

/** All templates of a decoder together take at most this many bytes. */
const MAX_ALL_BYTES = 2 ** 22;

/** A template takes about this much memory in addition to its fixed bytes. */
const TEMPLATE_BYTES = 1024;

/** At most this many templates have the same body length. Trainers whose calls differ only in the learning rate send bodies of the same length. */
const MAX_TEMPLATES_PER_LENGTH = 16;

/** A byte range that may differ between bodies of one template. */
interface VariableRange extends Span {
  readonly kind: "blob" | "fixint" | "uint" | "string";
}

/** A decoded map or list. `members` lists the members that contain a variable range. */
interface TemplateNode {
  readonly base: object;
  readonly members: readonly (readonly [key: string, member: VariableRange | TemplateNode])[];
}

/** The decoded form of bodies that differ only in their variable ranges. */
export class Template {
  /** The number of values in each body. */
  readonly values: number;
  readonly stringBytes: number;
  /** The bytes outside the variable ranges. */
  readonly fixed: Buffer;
  readonly #ranges: readonly VariableRange[];
  readonly #node: TemplateNode;

  constructor(bytes: Buffer, ranges: readonly VariableRange[], node: TemplateNode, { values, stringBytes }: Counts) {
    this.values = values;
    this.stringBytes = stringBytes;
    this.#ranges = ranges;
    this.#node = node;
    const starts = [0, ...ranges.map(({ end }) => end)];
    this.fixed = Buffer.concat(starts.map((start, index) => bytes.subarray(start, ranges[index]?.start)));
  }

  /** True if a body of the same length differs only in the variable ranges. */
  matches(bytes: Buffer): boolean {
    let at = 0;
    let fixedAt = 0;
    for (const { start, end, kind } of this.#ranges) {
      if (this.fixed.compare(bytes, at, start, fixedAt, fixedAt + start - at) !== 0) return false;
      if (kind === "fixint" && (bytes[start] as number) > 0x7f) return false;
      if (kind === "string" && !isUtf8(bytes.subarray(start, end))) return false;
      fixedAt += start - at;
      at = end;
    }
    return this.fixed.compare(bytes, at, bytes.length, fixedAt) === 0;
  }

  /** Decodes a matching body. Maps and lists without variable ranges are the same objects in all decoded bodies. */
  fill(bytes: Buffer): unknown {
    return fill(this.#node, bytes);
  }
}

const copyOf = (container: object): Record<string, unknown> => (Array.isArray(container) ? [...container] : { ...container }) as Record<string, unknown>;

const fill = ({ base, members }: TemplateNode, bytes: Buffer): object => {
  const value = copyOf(base);
  for (const [key, member] of members) value[key] = "base" in member ? fill(member, bytes) : read(member, bytes);
  return value;
};

const read = ({ start, end, kind }: VariableRange, bytes: Buffer): unknown => {
  if (kind === "blob") return bytes.subarray(start, end);
  return kind === "string" ? bytes.toString("utf8", start, end) : bytes.readUIntBE(start, end - start);
};

interface Counts {
  readonly values: number;
  readonly stringBytes: number;
}

/** The templates of recent bodies. */
export class Templates {
  readonly #byLength = new LRUCache<number, readonly Template[]>({
    maxSize: MAX_ALL_BYTES,
    sizeCalculation: (templates) => templates.reduce((sum, { fixed }) => sum + fixed.length + TEMPLATE_BYTES, 0),
  });

  find(bytes: Buffer): Template | undefined {
    return this.#byLength.get(bytes.length)?.find((template) => template.matches(bytes));
  }

  /** Adds the template of a decoded body. `idSpan` is the range of its id. Returns undefined for a batch or a body with many values. */
  add(bytes: Buffer, value: unknown, idSpan: Span | undefined, counts: Counts): Template | undefined {
    if (counts.values > MAX_VALUES || !isContainer(value) || Array.isArray(value)) return undefined;
    const blobs: VariableRange[] = [];
    const node = nodeOf(value, bytes, blobs);
    const id = idSpan && variableIdRange(bytes, idSpan);
    const ranges = id ? [...blobs, id].sort((a, b) => a.start - b.start) : blobs;
    if (ranges.reduce((sum, { start, end }) => sum - (end - start), bytes.length) > MAX_FIXED_BYTES) return undefined;
    const template = new Template(bytes, ranges, id ? { base: node.base, members: [...node.members, ["id", id]] } : node, counts);
    this.#byLength.set(bytes.length, [template, ...(this.#byLength.get(bytes.length) ?? []).slice(0, MAX_TEMPLATES_PER_LENGTH - 1)]);
    return template;
  }
}

/** True for decoded maps and lists, false for blobs and SpelledNumber ids. */
const isContainer = (value: unknown): value is object =>
  Array.isArray(value) || (typeof value === "object" && value !== null && Object.getPrototypeOf(value) === Object.prototype);

/** Finds the blobs of a container. `base` must not contain them, because they are views of the body, and its memory is reused. */
const nodeOf = (value: object, bytes: Buffer, blobs: VariableRange[]): TemplateNode => {
  const base = copyOf(value);
  const members: (readonly [string, VariableRange | TemplateNode])[] = [];
  for (const [key, item] of Object.entries(value)) {
    if (item instanceof Uint8Array) {
      const start = item.byteOffset - bytes.byteOffset;
      const range: VariableRange = { start, end: start + item.length, kind: "blob" };
      blobs.push(range);
      members.push([key, range]);
      base[key] = undefined;
    } else if (isContainer(item)) {
      const node = nodeOf(item, bytes, blobs);
      if (node.members.length > 0) members.push([key, node]);
    }
  }
  return { base, members };
};

/** Returns the variable bytes of an id: an unsigned integer of up to 32 bits, or a short string. The type byte is fixed, except in a fixint. */
const variableIdRange = (bytes: Buffer, { start, end }: Span): VariableRange | undefined => {
  const type = bytes[start] as number;
  if (type <= 0x7f) return { start, end, kind: "fixint" };
  if (type >= 0xcc && type <= 0xce) return { start: start + 1, end, kind: "uint" };
  if (type >= 0xa0 && type <= 0xbf) return { start: start + 1, end, kind: "string" };
  return type === 0xd9 ? { start: start + 2, end, kind: "string" } : undefined;
};
