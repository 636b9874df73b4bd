/** Strict reading of JSON text, which both JSON bodies and safetensors headers need: JSON.parse takes what must not pass. */
import { describe } from "../errors/errors.ts";
import { idOfText, withIds } from "./_id.ts";

/** Objects and arrays within each other, in JSON and in MessagePack. */
export const MAX_DEPTH = 64;

/** Values in one body or header. Numbers by the million belong in a blob; `[{},{},...` costs 30 times its bytes in memory. */
export const MAX_VALUES = 2 ** 22;

/** Values that are passed over between two reports of their number: what a body takes is counted while it grows. */
export const VALUES_STEP = 2 ** 16;

const QUOTE = 0x22;
const COMMA = 0x2c;
const COLON = 0x3a;
const BACKSLASH = 0x5c;
/** Characters of a number. */
const NUMBER = Buffer.from("0123456789+-.eE");
const WHITESPACE: readonly (number | undefined)[] = [0x20, 0x09, 0x0a, 0x0d];

interface Walked {
  readonly values: number;
  /** The numbers under the key `id` of the outermost object, or of those of the outermost array. */
  readonly ids: readonly string[];
  /** Where the first number is that is not written as digits alone, if there is one; a literal counts as one. */
  readonly odd: number | undefined;
}

/** What JSON.parse lets pass: keys that stand twice in an object, `__proto__`, and what exhausts the stack or the memory; else what a walk over the text has found. */
const weakness = (bytes: Buffer, onValues: (count: number) => void): string | Walked => {
  const open: (Set<string> | undefined)[] = [];
  const ids: string[] = [];
  let values = 1;
  let odd: number | undefined;
  let next = VALUES_STEP;
  for (let at = 0; at < bytes.length; at++) {
    switch (bytes[at]) {
      case COMMA:
        values++;
        break;
      case 0x2b: // +
      case 0x2d: // -
      case 0x2e: // .
      case 0x45: // E
      case 0x65: // e
        odd ??= at;
        break;
      case 0x5b: // [
        values++;
        open.push(undefined);
        break;
      case 0x7b: // {
        values++;
        open.push(new Set());
        break;
      case 0x5d: // ]
      case 0x7d: // }
        open.pop();
        break;
      case QUOTE: {
        const end = closingQuote(bytes, at + 1);
        if (end < 0) return { values, ids, odd }; // JSON.parse says so.
        const keys = open.at(-1);
        if (keys && isKey(bytes, end + 1)) {
          const key = textOf(bytes, at, end);
          const problem = keyProblem(key);
          if (problem) return problem;
          if (keys.has(key)) return `the key ${describe(key)} stands twice in an object`;
          keys.add(key);
          if (key === "id" && (open.length === 1 || (open.length === 2 && !open[0]))) ids.push(...numberAfter(bytes, end + 1));
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
  return { values, ids, odd };
};

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

const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The value of a JSON text in UTF-8. `onValues` is told how many values were found, again and again while they are counted, and before they are made. Throws an Error that says what is wrong. */
export const parseStrictJson = (bytes: Buffer, onValues: (count: number) => void = () => {}): unknown => parse(bytes, onValues).value;

/** The value of a JSON text, and a number in it that is not written as digits alone. */
export const parseHeader = (bytes: Buffer, onValues: (count: number) => void): { readonly value: unknown; readonly odd: string | undefined } => {
  const { value, odd } = parse(bytes, onValues);
  if (odd === undefined) return { value, odd };
  let start = odd;
  while (isNumeric(bytes[start - 1])) start--;
  let end = odd;
  while (isNumeric(bytes[end])) end++;
  return { value, odd: bytes.toString("latin1", start, end) };
};

const isNumeric = (byte: number | undefined): boolean => byte !== undefined && NUMBER.includes(byte);

const parse = (bytes: Buffer, onValues: (count: number) => void): { readonly value: unknown; readonly odd: number | undefined } => {
  let text: string;
  try {
    text = decoder.decode(bytes);
  } catch {
    throw new Error("it is not UTF-8");
  }
  const found = weakness(bytes, onValues);
  if (typeof found === "string") throw new Error(found);
  onValues(found.values);
  const value: unknown = JSON.parse(text);
  withIds(value, found.ids.map(idOfText));
  return { value, odd: found.odd };
};

/** Bytes of a piece of an object's text. */
const PIECE_BYTES = 65536;

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
