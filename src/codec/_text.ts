/** A strict JSON parser for bodies and safetensors headers. It refuses inputs that JSON.parse accepts, such as duplicate keys. */
import { isUtf8 } from "node:buffer";
import { describe } from "../errors/errors.ts";
import { idOfText, withIds } from "./_id.ts";
import { atOnce, type Turns } from "./turns.ts";

/** The deepest nesting of objects and arrays, in JSON and in MessagePack. */
export const MAX_DEPTH = 64;

/** The most values of a body or header. `[{},{},...` takes 30 times its length in memory, and millions of numbers belong in a blob. */
export const MAX_VALUES = 2 ** 22;

/** The most keys of an object or map: twice the tensors of a call. The scan stores them to find duplicates. */
export const MAX_KEYS = 2 ** 17;

/** The values between two calls of `onValues`, which limits a body's memory while it is scanned. */
export const VALUES_STEP = 2 ** 16;

const QUOTE = 0x22;
const COMMA = 0x2c;
const COLON = 0x3a;
const BACKSLASH = 0x5c;
/** The characters of a JSON number. */
const NUMBER = Buffer.from("0123456789+-.eE");
const WHITESPACE: readonly (number | undefined)[] = [0x20, 0x09, 0x0a, 0x0d];

/** The bytes of text parsed between two yields. */
const PIECE_BYTES = 65536;

/** The bytes of a string parsed between two yields. */
const LONG_STRING_BYTES = 2 ** 20;

/** The bytes scanned between two yields. */
const SCAN_BYTES = 65536;

/** The range of a container or a string that is too long to parse in one turn. */
interface Large {
  readonly start: number;
  readonly end: number;
  /** The ranges to parse one by one. Undefined for a string. */
  readonly pieces: readonly Piece[] | undefined;
}

/** The range of some members of a container, between two commas. If its only member has a large value, that is `large`. */
interface Piece {
  readonly start: number;
  readonly end: number;
  readonly large: Large | undefined;
}

/** An unclosed container during the scan. */
class OpenContainer {
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

  /** Ends a member at a comma. */
  comma(at: number): void {
    if (this.#large || at - this.#piece >= PIECE_BYTES) this.#cut(at);
    this.#member = at + 1;
  }

  /** Marks the current member's value as large, which gives the member its own piece. */
  addLarge(large: Large): void {
    if (this.#member > this.#piece) this.#cut(this.#member - 1);
    this.#large = large;
  }

  /** Ends the container at its bracket. Returns undefined if it is not large. */
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

interface ScanResult {
  readonly values: number;
  /** The numeric values of the key `id` in the outermost object, or in the objects of the outermost array. */
  readonly ids: readonly string[];
  /** The position of the first sign, point or exponent outside strings. The "e" of `true` counts, too. */
  readonly nonDigit: number | undefined;
  /** The outermost value, if it is large. */
  readonly large: Large | undefined;
}

/** Scans the text. Returns a problem that JSON.parse does not report (duplicate keys, `__proto__`, excessive depth or size), else the result. */
function* scan(bytes: Buffer, onValues: (count: number) => void): Turns<string | ScanResult> {
  const open: OpenContainer[] = [];
  const ids: string[] = [];
  let values = 1;
  let nonDigit: number | undefined;
  let large: Large | undefined;
  /** Adds a large value to its container, or as the outermost value. */
  const addLarge = (found: Large): string | undefined => {
    const container = open.at(-1);
    if (!container && large) return `a second value at byte ${found.start}`;
    if (container) container.addLarge(found);
    else large = found;
    return undefined;
  };
  let next = VALUES_STEP;
  for (let at = 0, pause = SCAN_BYTES; at < bytes.length; at++) {
    if (at >= pause) {
      pause = at + SCAN_BYTES;
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
        nonDigit ??= at;
        break;
      case 0x5b: // [
      case 0x7b: // {
        values++;
        open.push(new OpenContainer(at, bytes[at] === 0x7b));
        break;
      case 0x5d: // ]
      case 0x7d: {
        // }
        const closed = open.pop();
        if (!closed || (closed.keys !== undefined) !== (bytes[at] === 0x7d)) return `a bracket that closes nothing at byte ${at}`;
        const found = closed.close(at);
        const problem = found && addLarge(found);
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
          const problem = addLarge({ start: at, end: end + 1, pieces: undefined });
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
  return { values, ids, nonDigit, large };
}

/** The number after a colon; empty if another value follows. */
const numberAfter = (bytes: Buffer, after: number): readonly string[] => {
  const start = skipSpace(bytes, skipSpace(bytes, after) + 1);
  let end = start;
  while (isNumeric(bytes[end])) end++;
  return end === start ? [] : [bytes.toString("latin1", start, end)];
};

/** The problem of a key, if any. Keys become tensor names, which must be valid Unicode for other languages. */
const keyProblem = (key: string): string | undefined => {
  if (key === "__proto__") return 'the key "__proto__" is not allowed';
  return key.isWellFormed() ? undefined : `the key ${describe(key)} holds half of a surrogate pair`;
};

/** The index of a string's closing quote: the first one after an even number of backslashes. -1 if there is none. */
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
    return text; // JSON.parse of the whole text will report the error.
  }
};

/** Parses a JSON text in UTF-8. Calls `onValues` with the number of values so far during the scan, before any value is created. Throws an Error with the reason. */
export function* parseStrictJson(bytes: Buffer, onValues: (count: number) => void = () => {}): Turns<unknown> {
  return (yield* parse(bytes, onValues)).value;
}

/** Parses a JSON text, and finds a number in it that is not written as digits alone. */
export const parseHeader = (bytes: Buffer, onValues: (count: number) => void): { readonly value: unknown; readonly nonDigit: string | undefined } => {
  const { value, nonDigit } = atOnce(parse(bytes, onValues));
  if (nonDigit === undefined) return { value, nonDigit };
  let start = nonDigit;
  while (isNumeric(bytes[start - 1])) start--;
  let end = nonDigit;
  while (isNumeric(bytes[end])) end++;
  return { value, nonDigit: bytes.toString("latin1", start, end) };
};

const isNumeric = (byte: number | undefined): boolean => byte !== undefined && NUMBER.includes(byte);

function* parse(bytes: Buffer, onValues: (count: number) => void): Turns<{ readonly value: unknown; readonly nonDigit: number | undefined }> {
  if (!isUtf8(bytes)) throw new Error("it is not UTF-8");
  const result = yield* scan(bytes, onValues);
  if (typeof result === "string") throw new Error(result);
  const { values, ids, nonDigit, large } = result;
  onValues(values);
  const value = large ? yield* parseAround(bytes, 0, bytes.length, large) : (JSON.parse(bytes.toString()) as unknown);
  withIds(value, ids.map(idOfText));
  return { value, nonDigit };
}

/** Parses a text with one large value: first the text with 0 in the value's place, then the value by itself. */
function* parseAround(bytes: Buffer, start: number, end: number, large: Large, open = "", close = ""): Turns<unknown> {
  const outer = parsePiece(`${open}${bytes.toString("utf8", start, large.start)}0${bytes.toString("utf8", large.end, end)}${close}`, start);
  const value = large.pieces ? yield* parseContainer(bytes, large.pieces, bytes[large.start] === 0x7b) : yield* parseString(bytes, large);
  if (typeof outer !== "object" || outer === null) return value;
  const [key = ""] = Object.keys(outer);
  return Array.isArray(outer) ? [value] : { [key]: value };
}

function* parseContainer(bytes: Buffer, pieces: readonly Piece[], isObject: boolean): Turns<unknown> {
  const [open, close] = isObject ? ["{", "}"] : ["[", "]"];
  const list: unknown[] = [];
  const members: Record<string, unknown> = {};
  for (const { start, end, large } of pieces) {
    const part = (large ? yield* parseAround(bytes, start, end, large, open, close) : parsePiece(open + bytes.toString("utf8", start, end) + close, start)) as
      | unknown[]
      | Record<string, unknown>;
    // An empty piece means two commas without a member between them.
    if (Object.keys(part).length === 0 && pieces.length > 1) throw new Error(`a member is missing at byte ${end}`);
    if (Array.isArray(part)) for (const item of part) list.push(item);
    else Object.assign(members, part);
    yield;
  }
  return isObject ? members : list;
}

/** Parses a part of the text. Errors name the part's start, because JSON.parse's own positions are relative to the part. */
const parsePiece = (text: string, start: number): unknown => {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${(error as Error).message.replace(/ (?:in JSON )?at position \d+.*$/s, "")} after byte ${start}`);
  }
};

/** The bytes of the longest escape sequence. */
const ESCAPE_BYTES = 6;

/** The longest backward search for a place to cut a string. */
const MAX_ESCAPED_BYTES = 4096;

/** Parses a long string in parts, cut so that no escape or character is split. Long strings are mostly base64. */
function* parseString(bytes: Buffer, { start, end }: Large): Turns<string> {
  const parts: string[] = [];
  for (let at = start + 1; at < end - 1; ) {
    let cut = Math.min(at + LONG_STRING_BYTES, end - 1);
    const lowest = cut - MAX_ESCAPED_BYTES;
    if (cut < end - 1) while (cut > lowest && !isSafeCut(bytes, cut)) cut--;
    // A string that is full of escapes has no safe cut, so the rest is parsed at once.
    if (cut === lowest) cut = end - 1;
    parts.push(parsePiece(`"${bytes.toString("utf8", at, cut)}"`, at) as string);
    at = cut;
    yield;
  }
  return parts.join("");
}

/** True if neither an escape nor a multi-byte character can span this position. */
const isSafeCut = (bytes: Buffer, at: number): boolean =>
  ((bytes[at] as number) & 0xc0) !== 0x80 && !bytes.subarray(at - 2 * ESCAPE_BYTES, at).includes(BACKSLASH);

/**
 * Splits the text of a JSON object between its members into texts of smaller objects. The text is valid JSON if and only if all
 * pieces are valid and, if there are several, none is an empty object.
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
