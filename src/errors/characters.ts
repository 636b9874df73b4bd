/** Texts of more UTF-16 units count by these: no limit is near. */
const MAX_COUNTED = 65536;

/** Characters of a text as JSON Schema and other languages count them: a surrogate pair is one. */
export const characters = (text: string): number => (text.length > MAX_COUNTED ? text.length : [...text].length);
