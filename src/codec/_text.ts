/** Parses the JSON of bodies and safetensors headers strictly. It rejects input that JSON.parse accepts, such as duplicate keys. */
import { isUtf8 } from "node:buffer";
import { describe } from "../errors/errors.ts";
import { idOfText, withIds } from "./_id.ts";
import { atOnce, type Task } from "./turns.ts";

/** Objects and arrays nest at most this deep, in JSON and in MessagePack. */
export const MAX_DEPTH = 64;

/** A body or header has at most this many values. Small objects take 30 times their text in memory, and blobs hold tensors better. */
export const MAX_VALUES = 2 ** 22;

/** An object or map has at most this many keys: twice the tensors of a call. The scan stores keys to find duplicates. */
export const MAX_KEYS = 2 ** 17;

/** The scan reports its progress after this many values, so that the caller can stop a body that needs too much memory. */
export const VALUES_PER_REPORT = 2 ** 16;

const QUOTE = 0x22;
const COMMA = 0x2c;
const COLON = 0x3a;
const BACKSLASH = 0x5c;
const NUMBER_CHARACTERS = Buffer.from("0123456789+-.eE");
const WHITESPACE: readonly (number | undefined)[] = [0x20, 0x09, 0x0a, 0x0d];

/** Containers are parsed in pieces of at least this many bytes, with a yield after each. */
const PIECE_BYTES = 65536;

/** Strings above this length are parsed in parts of this length, with a yield after each. */
const LONG_STRING_BYTES = 2 ** 20;

/** The scan yields after this many bytes. */
const SCAN_BYTES = 65536;

/** The byte range of a container or string that is too long to parse in one turn. */
interface LargeValue {
  readonly start: number;
  readonly end: number;
  /** The parts of a container to parse one by one; undefined for a string. */
  readonly pieces: readonly Piece[] | undefined;
}

/** The byte range of consecutive members, between two commas. `large` is set if the range holds one member with a large value. */
interface Piece {
  readonly start: number;
  readonly end: number;
  readonly large: LargeValue | undefined;
}

/** A container whose end the scan has not reached. */
class OpenContainer {
  readonly start: number;
  /** The keys that the scan has read; undefined for an array. */
  readonly keys: Set<string> | undefined;
  #pieceStart: number;
  #memberStart: number;
  #large: LargeValue | undefined;
  readonly #pieces: Piece[] = [];

  constructor(start: number, isObject: boolean) {
    this.start = start;
    this.keys = isObject ? new Set() : undefined;
    this.#pieceStart = start + 1;
    this.#memberStart = start + 1;
  }

  endMemberAtComma(at: number): void {
    if (this.#large || at - this.#pieceStart >= PIECE_BYTES) this.#cut(at);
    this.#memberStart = at + 1;
  }

  /** Marks the current member's value as large, so the member gets its own piece. */
  addLarge(large: LargeValue): void {
    if (this.#memberStart > this.#pieceStart) this.#cut(this.#memberStart - 1);
    this.#large = large;
  }

  /** Ends the container at its closing bracket. Returns its pieces, or undefined if the container is small. */
  close(at: number): LargeValue | undefined {
    if (this.#pieces.length === 0 && !this.#large) return undefined;
    this.#cut(at);
    return { start: this.start, end: at + 1, pieces: this.#pieces };
  }

  #cut(at: number): void {
    this.#pieces.push({ start: this.#pieceStart, end: at, large: this.#large });
    this.#pieceStart = at + 1;
    this.#large = undefined;
  }
}

interface ScanResult {
  readonly values: number;
  /** The texts of numeric ids: the values of the key `id` in each call. */
  readonly ids: readonly string[];
  /** The byte index of the first sign, point or exponent outside strings. The "e" of `true` counts as an exponent. */
  readonly nonDigitAt: number | undefined;
  /** The outermost value if it is large, else undefined. */
  readonly large: LargeValue | undefined;
}

/** Scans the text. Returns the result, or an error message for a fault that JSON.parse overlooks: a duplicate key, `__proto__` or excessive size. */
function* scan(bytes: Buffer, onProgress: (count: number) => void): Task<string | ScanResult> {
  const scanner = new Scanner(bytes, onProgress);
  for (let until = SCAN_BYTES; ; until += SCAN_BYTES) {
    const problem = scanner.scanUntil(Math.min(until, bytes.length));
    if (problem) return problem;
    if (until >= bytes.length) return scanner.finish();
    yield;
  }
}

/** Scans a text in parts. The loop is in a plain method, because V8 runs a loop in a generator several times slower. */
class Scanner {
  readonly #bytes: Buffer;
  readonly #onProgress: (count: number) => void;
  readonly #open: OpenContainer[] = [];
  readonly #ids: string[] = [];
  #at = 0;
  #values = 1;
  #nextReport = VALUES_PER_REPORT;
  #nonDigitAt: number | undefined;
  #large: LargeValue | undefined;

  constructor(bytes: Buffer, onProgress: (count: number) => void) {
    this.#bytes = bytes;
    this.#onProgress = onProgress;
  }

  /** Scans to this byte index, or to the end of a string that begins before it. Returns an error message for a fault. */
  scanUntil(end: number): string | undefined {
    const bytes = this.#bytes;
    let container = this.#open.at(-1);
    let at = this.#at;
    for (; at < end; at++) {
      switch (bytes[at]) {
        case COMMA: {
          container?.endMemberAtComma(at);
          const problem = this.#countValue();
          if (problem) return problem;
          break;
        }
        case 0x2b: // +
        case 0x2d: // -
        case 0x2e: // .
        case 0x45: // E
        case 0x65: // e
          this.#nonDigitAt ??= at;
          break;
        case 0x5b: // [
        case 0x7b: {
          // {
          container = new OpenContainer(at, bytes[at] === 0x7b);
          if (this.#open.push(container) > MAX_DEPTH) return `nesting deeper than ${MAX_DEPTH}`;
          const problem = this.#countValue();
          if (problem) return problem;
          break;
        }
        case 0x5d: // ]
        case 0x7d: {
          // }
          const closed = this.#open.pop();
          if (!closed || (closed.keys !== undefined) !== (bytes[at] === 0x7d)) return `a bracket that closes nothing at byte ${at}`;
          container = this.#open.at(-1);
          const found = closed.close(at);
          const problem = found && this.#addLarge(found);
          if (problem) return problem;
          break;
        }
        case QUOTE: {
          const end = closingQuote(bytes, at + 1);
          const problem = end < 0 ? `a string without an end at byte ${at}` : this.#endString(at, end);
          if (problem) return problem;
          at = end;
        }
      }
    }
    this.#at = at;
    return undefined;
  }

  /** Returns the result after the last byte, or an error message. */
  finish(): string | ScanResult {
    const unclosed = this.#open.at(-1);
    if (unclosed) return `an object or array without an end at byte ${unclosed.start}`;
    return { values: this.#values, ids: this.#ids, nonDigitAt: this.#nonDigitAt, large: this.#large };
  }

  #countValue(): string | undefined {
    this.#values++;
    if (this.#values < this.#nextReport) return undefined;
    if (this.#values > MAX_VALUES) return `more than ${MAX_VALUES} values`;
    this.#onProgress(this.#values);
    this.#nextReport = Math.min(this.#values + VALUES_PER_REPORT, MAX_VALUES + 1);
    return undefined;
  }

  #endString(start: number, end: number): string | undefined {
    const bytes = this.#bytes;
    const open = this.#open;
    const keys = open.at(-1)?.keys;
    if (!keys || !isKey(bytes, end + 1)) return end - start > LONG_STRING_BYTES ? this.#addLarge({ start, end: end + 1, pieces: undefined }) : undefined;
    const key = textOf(bytes, start, end);
    const problem = keyProblem(key);
    if (problem) return problem;
    if (keys.has(key)) return `the key ${describe(key)} stands twice in an object`;
    if (keys.size >= MAX_KEYS) return `more than ${MAX_KEYS} keys in an object`;
    keys.add(key);
    if (key === "id" && (open.length === 1 || (open.length === 2 && !open[0]?.keys))) this.#ids.push(...numberAfter(bytes, end + 1));
    return undefined;
  }

  #addLarge(found: LargeValue): string | undefined {
    const container = this.#open.at(-1);
    if (container) container.addLarge(found);
    else if (this.#large) return `a second value at byte ${found.start}`;
    else this.#large = found;
    return undefined;
  }
}

/** Returns a list with the text of the number after a colon. The list is empty if another kind of value follows. */
const numberAfter = (bytes: Buffer, after: number): readonly string[] => {
  const start = skipSpace(bytes, skipSpace(bytes, after) + 1);
  let end = start;
  while (isNumberByte(bytes[end])) end++;
  return end === start ? [] : [bytes.toString("latin1", start, end)];
};

/** Returns the error message for an invalid key. Keys become tensor names, which other languages must read as Unicode. */
const keyProblem = (key: string): string | undefined => {
  if (key === "__proto__") return 'the key "__proto__" is not allowed';
  return key.isWellFormed() ? undefined : `the key ${describe(key)} holds half of a surrogate pair`;
};

/** Finds the closing quote of a string: the first quote after an even number of backslashes. Returns -1 if there is none. */
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
    return text; // JSON.parse will report the error when it reads the whole text.
  }
};

/** Parses a JSON text in UTF-8. Before any value is created, the scan reports its count of values to `onProgress`. Throws an Error with the reason. */
export function* parseStrictJson(bytes: Buffer, onProgress: (count: number) => void = () => {}): Task<unknown> {
  return (yield* parse(bytes, onProgress)).value;
}

/** Parses a JSON text. `nonDigit` is the first number with a sign, point or exponent. */
export const parseHeader = (bytes: Buffer, onProgress: (count: number) => void): { readonly value: unknown; readonly nonDigit: string | undefined } => {
  const { value, nonDigitAt } = atOnce(parse(bytes, onProgress));
  if (nonDigitAt === undefined) return { value, nonDigit: undefined };
  let start = nonDigitAt;
  while (isNumberByte(bytes[start - 1])) start--;
  let end = nonDigitAt;
  while (isNumberByte(bytes[end])) end++;
  return { value, nonDigit: bytes.toString("latin1", start, end) };
};

const isNumberByte = (byte: number | undefined): boolean => byte !== undefined && NUMBER_CHARACTERS.includes(byte);

function* parse(bytes: Buffer, onProgress: (count: number) => void): Task<{ readonly value: unknown; readonly nonDigitAt: number | undefined }> {
  if (!isUtf8(bytes)) throw new Error("it is not UTF-8");
  const result = yield* scan(bytes, onProgress);
  if (typeof result === "string") throw new Error(result);
  const { values, ids, nonDigitAt, large } = result;
  onProgress(values);
  const value = large ? yield* parseAround(bytes, 0, bytes.length, large) : (JSON.parse(bytes.toString()) as unknown);
  withIds(value, ids.map(idOfText));
  return { value, nonDigitAt };
}

/** Parses a text that contains one large value: first the text with 0 in the value's place, then the value. */
function* parseAround(bytes: Buffer, start: number, end: number, large: LargeValue, open = "", close = ""): Task<unknown> {
  const outer = parsePiece(`${open}${bytes.toString("utf8", start, large.start)}0${bytes.toString("utf8", large.end, end)}${close}`, start);
  const value = large.pieces ? yield* parseContainer(bytes, large.pieces, bytes[large.start] === 0x7b) : yield* parseString(bytes, large);
  if (typeof outer !== "object" || outer === null) return value;
  const [key = ""] = Object.keys(outer);
  return Array.isArray(outer) ? [value] : { [key]: value };
}

function* parseContainer(bytes: Buffer, pieces: readonly Piece[], isObject: boolean): Task<unknown> {
  const [open, close] = isObject ? ["{", "}"] : ["[", "]"];
  const list: unknown[] = [];
  const members: Record<string, unknown> = {};
  for (const { start, end, large } of pieces) {
    const part = (large ? yield* parseAround(bytes, start, end, large, open, close) : parsePiece(open + bytes.toString("utf8", start, end) + close, start)) as
      | unknown[]
      | Record<string, unknown>;
    // An empty piece means that two commas follow each other.
    if (Object.keys(part).length === 0 && pieces.length > 1) throw new Error(`a member is missing at byte ${end}`);
    if (Array.isArray(part)) for (const item of part) list.push(item);
    else Object.assign(members, part);
    yield;
  }
  return isObject ? members : list;
}

/** Parses a part of the text. JSON.parse reports positions within the part, so errors name the part's start instead. */
const parsePiece = (text: string, start: number): unknown => {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${(error as Error).message.replace(/ (?:in JSON )?at position \d+.*$/s, "")} after byte ${start}`);
  }
};

const MAX_ESCAPE_BYTES = 6;

/** The search for a safe cut goes back at most this many bytes. */
const MAX_CUT_SEARCH_BYTES = 4096;

/** Parses a long string, usually base64, in parts. No cut splits an escape sequence or a character. */
function* parseString(bytes: Buffer, { start, end }: LargeValue): Task<string> {
  const parts: string[] = [];
  for (let at = start + 1; at < end - 1; ) {
    let cut = Math.min(at + LONG_STRING_BYTES, end - 1);
    const lowest = cut - MAX_CUT_SEARCH_BYTES;
    if (cut < end - 1) while (cut > lowest && !isSafeCut(bytes, cut)) cut--;
    // A string full of escapes has no safe cut, so its rest is parsed at once.
    if (cut === lowest) cut = end - 1;
    parts.push(parsePiece(`"${bytes.toString("utf8", at, cut)}"`, at) as string);
    at = cut;
    yield;
  }
  return parts.join("");
}

/** True if no escape sequence or multi-byte character can extend across this position. */
const isSafeCut = (bytes: Buffer, at: number): boolean =>
  ((bytes[at] as number) & 0xc0) !== 0x80 && !bytes.subarray(at - 2 * MAX_ESCAPE_BYTES, at).includes(BACKSLASH);

/**
 * Splits the text of a JSON object into texts of smaller objects, with some members each. The whole text is valid if each piece is valid
 * and, unless there is only one piece, none is an empty object.
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
