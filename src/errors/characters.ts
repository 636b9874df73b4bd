/** Longer texts exceed every limit anyway, so their UTF-16 units are counted instead. */
const MAX_COUNTED = 65536;

/** Counts the characters of a text as JSON Schema and other languages do: a surrogate pair is one character. */
export const countCharacters = (text: string): number => (text.length > MAX_COUNTED ? text.length : [...text].length);
