/** Strict reading of JSON text, which both JSON bodies and safetensors headers need: JSON.parse takes what must not pass. */

const MAX_DEPTH = 64;

/** Strings (with a colon where they are keys) and brackets; the rest of JSON has neither. */
const TOKENS = /"([^"\\]*(?:\\.[^"\\]*)*)"(\s*:)?|[{}[\]]/gs;

/** What JSON.parse lets pass: keys that stand twice in an object, `__proto__`, nesting that exhausts the stack. Undefined if nothing. */
const weakness = (text: string): string | undefined => {
  const open: (Set<string> | null)[] = [];
  for (const [token, string = "", colon] of text.matchAll(TOKENS)) {
    if (token === "{") open.push(new Set());
    else if (token === "[") open.push(null);
    else if (token === "}" || token === "]") open.pop();
    else if (colon !== undefined) {
      const key = string.includes("\\") ? unescaped(string) : string;
      const keys = open.at(-1);
      if (keys?.has(key)) return `the key ${JSON.stringify(key)} stands twice in an object`;
      if (key === "__proto__") return 'the key "__proto__" is not allowed';
      keys?.add(key);
    }
    if (open.length > MAX_DEPTH) return `nesting deeper than ${MAX_DEPTH}`;
  }
  return undefined;
};

const unescaped = (string: string): string => {
  try {
    return JSON.parse(`"${string}"`) as string;
  } catch {
    return string; // JSON.parse of the whole text says what is wrong with it.
  }
};

const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The value of a JSON text in UTF-8. Throws an Error that says what is wrong. */
export const parseStrictJson = (bytes: Uint8Array): unknown => {
  let text: string;
  try {
    text = decoder.decode(bytes);
  } catch {
    throw new Error("it is not UTF-8");
  }
  const found = weakness(text);
  if (found) throw new Error(found);
  return JSON.parse(text);
};
