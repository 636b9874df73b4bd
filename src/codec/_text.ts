/** Strict reading of JSON text, which both JSON bodies and safetensors headers need: JSON.parse takes what must not pass. */
import { isUtf8 } from "node:buffer";
import { describe } from "../errors/errors.ts";
import { idOfText, withIds } from "./_id.ts";
import { atOnce, type Turns } from "./turns.ts";

/** Objects and arrays within each other, in JSON and in MessagePack. */
export const MAX_DEPTH = 64;

/** Values in one body or header. Numbers by the million belong in a blob; `[{},{},...` costs 30 times its bytes in memory. */
export const MAX_VALUES = 2 ** 22;

/** Keys of one object or map: twice the tensors of a call. The walk remembers them to find one that stands twice. */
export const MAX_KEYS = 2 ** 17;

/** Values that are passed over between two reports of their number: what a body takes is counted while it grows. */
export const VALUES_STEP = 2 ** 16;

const QUOTE = 0x22;
const COMMA = 0x2c;
const COLON = 0x3a;
const BACKSLASH = 0x5c;
/** Characters of a number. */
const NUMBER = Buffer.from("0123456789+-.eE");
const WHITESPACE: readonly (number | undefined)[] = [0x20, 0x09, 0x0a, 0x0d];

/** Bytes of text that are parsed between two yields. */
const PIECE_BYTES = 65536;

/** Bytes of a string's text that are read at once. */
const LONG_STRING_BYTES = 2 ** 20;

/** Bytes of text that are walked over between two yields. */
const WALK_BYTES = 65536;

/** A container or a string whose text is longer than a piece: `pieces` of a container are texts of some of its members. */
interface Large {
  readonly start: number;
  readonly end: number;
  /** Undefined for a string. */
  readonly pieces: readonly Piece[] | undefined;
}

/** Text from one comma of a container to another; `large` is the value of the only member in it, where that is large. */
interface Piece {
  readonly start: number;
  readonly end: number;
  readonly large: Large | undefined;
}

/** A container that the walk is in. */
class Open {
  readonly start: number;
  /** Undefined for an array. */
  readonly keys: Set<string> | undefined;
  #piece: number;
  #member: number;
  #large: Large | undefined;
  readonly #pieces: Piece[] = [];

  constructor(start: number, isObject: boolean) {
    this.start = start;
    this.keys = isObject ? new Set() : undefined;
    this.#piece = start + 1;
    this.#member = start + 1;
  }

  /** A member ends at this comma. */
  comma(at: number): void {
    if (this.#large || at - this.#piece >= PIECE_BYTES) this.#cut(at);
    this.#member = at + 1;
  }

  /** The value of the present member is large, and so has a piece of its own. */
  holds(large: Large): void {
    if (this.#member > this.#piece) this.#cut(this.#member - 1);
    this.#large = large;
  }

  /** The container ends at this bracket. Undefined for one that is not large. */
  close(at: number): Large | undefined {
    if (this.#pieces.length === 0 && !this.#large) return undefined;
    this.#cut(at);
    return { start: this.start, end: at + 1, pieces: this.#pieces };
  }

  #cut(at: number): void {
    this.#pieces.push({ start: this.#piece, end: at, large: this.#large });
    this.#piece = at + 1;
    this.#large = undefined;
  }
}

interface Walked {
  readonly values: number;
  /** The numbers under the key `id` of the outermost object, or of those of the outermost array. */
  readonly ids: readonly string[];
  /** Where the first number is that is not written as digits alone, if there is one; a literal counts as one. */
  readonly odd: number | undefined;
  /** The outermost value, where it is large. */
  readonly large: Large | undefined;
}

/** What JSON.parse lets pass: keys that stand twice in an object, `__proto__`, and what exhausts the stack or the memory; else what a walk over the text has found. */
function* weakness(bytes: Buffer, onValues: (count: number) => void): Turns<string | Walked> {
  const open: Open[] = [];
  const ids: string[] = [];
  let values = 1;
  let odd: number | undefined;
  let large: Large | undefined;
  /** Where a large value is: in a container, or as the only one of the text. */
  const holds = (found: Large): string | undefined => {
    const around = open.at(-1);
    if (!around && large) return `a second value at byte ${found.start}`;
    if (around) around.holds(found);
    else large = found;
    return undefined;
  };
  let next = VALUES_STEP;
  for (let at = 0, pause = WALK_BYTES; at < bytes.length; at++) {
    if (at >= pause) {
      pause = at + WALK_BYTES;
      yield;
    }
    switch (bytes[at]) {
      case COMMA:
        values++;
        open.at(-1)?.comma(at);
        break;
      case 0x2b: // +
      case 0x2d: // -
      case 0x2e: // .
      case 0x45: // E
      case 0x65: // e
        odd ??= at;
        break;
      case 0x5b: // [
      case 0x7b: // {
        values++;
        open.push(new Open(at, bytes[at] === 0x7b));
        break;
      case 0x5d: // ]
      case 0x7d: {
        // }
        const closed = open.pop();
        if (!closed || (closed.keys !== undefined) !== (bytes[at] === 0x7d)) return `a bracket that closes nothing at byte ${at}`;
        const found = closed.close(at);
        const problem = found && holds(found);
        if (problem) return problem;
        break;
      }
      case QUOTE: {
        const end = closingQuote(bytes, at + 1);
        if (end < 0) return `a string without an end at byte ${at}`;
        const keys = open.at(-1)?.keys;
        if (keys && isKey(bytes, end + 1)) {
          const key = textOf(bytes, at, end);
          const problem = keyProblem(key);
          if (problem) return problem;
          if (keys.has(key)) return `the key ${describe(key)} stands twice in an object`;
          if (keys.size >= MAX_KEYS) return `more than ${MAX_KEYS} keys in an object`;
          keys.add(key);
          if (key === "id" && (open.length === 1 || (open.length === 2 && !open[0]?.keys))) ids.push(...numberAfter(bytes, end + 1));
        } else if (end - at > LONG_STRING_BYTES) {
          const problem = holds({ start: at, end: end + 1, pieces: undefined });
          if (problem) return problem;
        }
        at = end;
      }
    }
    if (open.length > MAX_DEPTH) return `nesting deeper than ${MAX_DEPTH}`;
    if (values < next) continue;
    if (values > MAX_VALUES) return `more than ${MAX_VALUES} values`;
    onValues(values);
    next = Math.min(values + VALUES_STEP, MAX_VALUES + 1);
  }
  if (open.length > 0) return `an object or array without an end at byte ${open.at(-1)?.start}`;
  return { values, ids, odd, large };
}

/** The number behind a colon, if there is one. */
const numberAfter = (bytes: Buffer, after: number): readonly string[] => {
  const start = skipSpace(bytes, skipSpace(bytes, after) + 1);
  let end = start;
  while (isNumeric(bytes[end])) end++;
  return end === start ? [] : [bytes.toString("latin1", start, end)];
};

/** Keys become names of tensors, which other languages must be able to read. */
const keyProblem = (key: string): string | undefined => {
  if (key === "__proto__") return 'the key "__proto__" is not allowed';
  return key.isWellFormed() ? undefined : `the key ${describe(key)} holds half of a surrogate pair`;
};

/** Where a string ends: at the first quote with an even number of backslashes before it. */
const closingQuote = (bytes: Buffer, start: number): number => {
  for (let end = bytes.indexOf(QUOTE, start); end >= 0; end = bytes.indexOf(QUOTE, end + 1)) {
    let before = end - 1;
    while (before >= start && bytes[before] === BACKSLASH) before--;
    if ((end - before) % 2 === 1) return end;
  }
  return -1;
};

const isKey = (bytes: Buffer, after: number): boolean => bytes[skipSpace(bytes, after)] === COLON;

const skipSpace = (bytes: Buffer, start: number): number => {
  let at = start;
  while (WHITESPACE.includes(bytes[at])) at++;
  return at;
};

const textOf = (bytes: Buffer, start: number, end: number): string => {
  const text = bytes.toString("utf8", start + 1, end);
  if (!text.includes("\\")) return text;
  try {
    return JSON.parse(`"${text}"`) as string;
  } catch {
    return text; // JSON.parse of the whole text says what is wrong with it.
  }
};

/** The value of a JSON text in UTF-8. `onValues` is told how many values were found, again and again while they are counted, and before they are made. Throws an Error that says what is wrong. */
export function* parseStrictJson(bytes: Buffer, onValues: (count: number) => void = () => {}): Turns<unknown> {
  return (yield* parse(bytes, onValues)).value;
}

/** The value of a JSON text, and a number in it that is not written as digits alone. */
export const parseHeader = (bytes: Buffer, onValues: (count: number) => void): { readonly value: unknown; readonly odd: string | undefined } => {
  const { value, odd } = atOnce(parse(bytes, onValues));
  if (odd === undefined) return { value, odd };
  let start = odd;
  while (isNumeric(bytes[start - 1])) start--;
  let end = odd;
  while (isNumeric(bytes[end])) end++;
  return { value, odd: bytes.toString("latin1", start, end) };
};

const isNumeric = (byte: number | undefined): boolean => byte !== undefined && NUMBER.includes(byte);

function* parse(bytes: Buffer, onValues: (count: number) => void): Turns<{ readonly value: unknown; readonly odd: number | undefined }> {
  if (!isUtf8(bytes)) throw new Error("it is not UTF-8");
  const found = yield* weakness(bytes, onValues);
  if (typeof found === "string") throw new Error(found);
  const { values, ids, odd, large } = found;
  onValues(values);
  const value = large ? yield* parseAround(bytes, 0, bytes.length, large) : (JSON.parse(bytes.toString()) as unknown);
  withIds(value, ids.map(idOfText));
  return { value, odd };
}

/** Parses a text of which one value is large: with a 0 in its place, and the large one by itself. The 0 may be in an object or an array. */
function* parseAround(bytes: Buffer, start: number, end: number, large: Large, open = "", close = ""): Turns<unknown> {
  const around = parsePiece(`${open}${bytes.toString("utf8", start, large.start)}0${bytes.toString("utf8", large.end, end)}${close}`, start);
  const value = large.pieces ? yield* parseContainer(bytes, large.pieces, bytes[large.start] === 0x7b) : yield* parseString(bytes, large);
  if (typeof around !== "object" || around === null) return value;
  const [key = ""] = Object.keys(around);
  return Array.isArray(around) ? [value] : { [key]: value };
}

function* parseContainer(bytes: Buffer, pieces: readonly Piece[], isObject: boolean): Turns<unknown> {
  const [open, close] = isObject ? ["{", "}"] : ["[", "]"];
  const list: unknown[] = [];
  const members: Record<string, unknown> = {};
  for (const { start, end, large } of pieces) {
    const part = (large ? yield* parseAround(bytes, start, end, large, open, close) : parsePiece(open + bytes.toString("utf8", start, end) + close, start)) as
      | unknown[]
      | Record<string, unknown>;
    // Between two commas there is a member.
    if (Object.keys(part).length === 0 && pieces.length > 1) throw new Error(`a member is missing at byte ${end}`);
    if (Array.isArray(part)) for (const item of part) list.push(item);
    else Object.assign(members, part);
    yield;
  }
  return isObject ? members : list;
}

/** Parses a part of the text. Its errors say where the part begins, because their own positions are within it. */
const parsePiece = (text: string, start: number): unknown => {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${(error as Error).message.replace(/ (?:in JSON )?at position \d+.*$/s, "")} after byte ${start}`);
  }
};

/** Bytes of the longest escape. */
const ESCAPE_BYTES = 6;

/** How far back a place to cut a string is looked for. */
const MAX_ESCAPED_BYTES = 4096;

/** A long string, most of them base64, cut where no escape and no character is in two parts. */
function* parseString(bytes: Buffer, { start, end }: Large): Turns<string> {
  const parts: string[] = [];
  for (let at = start + 1; at < end - 1; ) {
    let cut = Math.min(at + LONG_STRING_BYTES, end - 1);
    const least = cut - MAX_ESCAPED_BYTES;
    if (cut < end - 1) while (cut > least && !isApart(bytes, cut)) cut--;
    // Who writes nothing but escapes is read as a whole.
    if (cut === least) cut = end - 1;
    parts.push(parsePiece(`"${bytes.toString("utf8", at, cut)}"`, at) as string);
    at = cut;
    yield;
  }
  return parts.join("");
}

/** Whether no escape and no character of several bytes can reach over this place. */
const isApart = (bytes: Buffer, at: number): boolean =>
  ((bytes[at] as number) & 0xc0) !== 0x80 && !bytes.subarray(at - 2 * ESCAPE_BYTES, at).includes(BACKSLASH);

/**
 * Cuts the text of a JSON object between its members into texts of smaller objects. The text is valid JSON if and only if all
 * pieces are and, where there are several, none of them is empty.
 */
export function* splitStrictJson(text: Buffer): Generator<Buffer> {
  let depth = 0;
  let start = 0;
  for (let at = 0; at < text.length && text.length > PIECE_BYTES; at++) {
    const byte = text[at];
    if (byte === QUOTE) {
      const end = closingQuote(text, at + 1);
      if (end < 0) break;
      at = end;
    } else if (byte === 0x7b || byte === 0x5b) depth++;
    else if (byte === 0x7d || byte === 0x5d) depth--;
    else if (byte === COMMA && depth === 1 && at - start >= PIECE_BYTES) {
      yield Buffer.concat([start === 0 ? NOTHING : OPEN, text.subarray(start, at), CLOSE]);
      start = at + 1;
    }
  }
  yield start === 0 ? text : Buffer.concat([OPEN, text.subarray(start)]);
}

const NOTHING = Buffer.alloc(0);
const OPEN = Buffer.from("{");
const CLOSE = Buffer.from("}");
