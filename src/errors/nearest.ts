/** Names that a caller may have meant. */
import { distance } from "fastest-levenshtein";

/** Characters of a name that are compared; a caller's may be as long as a body. */
const MAX_NAME = 64;

/** The largest part of a name that may differ. */
const FARTHEST = 0.4;

/** Two names with the same letters differ by a swap, which counts as one edit. */
const lettersOf = (name: string): string => [...name].sort().join("");

/** The known name that is nearest to an unknown one, in any case; undefined if none is near. */
export const nearest = (unknown: string, known: readonly string[]): string | undefined => {
  const name = unknown.slice(0, MAX_NAME).toLowerCase();
  let found: { readonly name: string; readonly far: number } | undefined;
  for (const candidate of known) {
    const other = candidate.toLowerCase();
    const edits = name !== other && lettersOf(name) === lettersOf(other) ? 1 : distance(name, other);
    if (edits > Math.max(1, FARTHEST * Math.max(name.length, candidate.length))) continue;
    // Of those that are as near, one of the same length: a wrong letter is more common than a missing one.
    const far = edits + Math.abs(name.length - candidate.length) / MAX_NAME;
    if (!found || far < found.far) found = { name: candidate, far };
  }
  return found?.name;
};
