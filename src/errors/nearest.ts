/** The suggestion for a misspelled name in an error message. */
import { distance } from "fastest-levenshtein";

/** The most characters that are compared. A caller's name may be of any length. */
const MAX_NAME = 64;

/** The largest fraction of a name that may differ. */
const MAX_DIFFERENCE = 0.4;

/** The sorted letters of a name. Two names with the same letters differ by a swap, which counts as one edit. */
const lettersOf = (name: string): string => [...name].sort().join("");

/** The known name nearest to an unknown one, ignoring case. Undefined if none is near. */
export const nearest = (unknown: string, known: readonly string[]): string | undefined => {
  const name = unknown.slice(0, MAX_NAME).toLowerCase();
  let found: { readonly name: string; readonly far: number } | undefined;
  for (const candidate of known) {
    const other = candidate.toLowerCase();
    const edits = name !== other && lettersOf(name) === lettersOf(other) ? 1 : distance(name, other);
    if (edits > Math.max(1, MAX_DIFFERENCE * Math.max(name.length, candidate.length))) continue;
    // A tie goes to the name of the same length: a wrong letter is more common than a missing one.
    const far = edits + Math.abs(name.length - candidate.length) / MAX_NAME;
    if (!found || far < found.far) found = { name: candidate, far };
  }
  return found?.name;
};
