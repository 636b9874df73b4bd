/** Suggests a known name for a misspelled one, for error messages. */
import { distance } from "fastest-levenshtein";

/** At most this many characters are compared, because a caller's name may have any length. */
const MAX_COMPARED = 64;

/** At most this fraction of a suggested name may differ. */
const MAX_DIFFERENCE = 0.4;

/** Sorts the letters of a name. Names with the same letters differ by a swap, which counts as one edit. */
const lettersOf = (name: string): string => [...name].sort().join("");

/** Returns the known name nearest to an unknown one, ignoring case. Returns undefined if none is near. */
export const nearest = (unknown: string, known: readonly string[]): string | undefined => {
  const name = unknown.slice(0, MAX_COMPARED).toLowerCase();
  let found: { readonly name: string; readonly score: number } | undefined;
  for (const candidate of known) {
    const other = candidate.toLowerCase();
    const edits = name !== other && lettersOf(name) === lettersOf(other) ? 1 : distance(name, other);
    if (edits > Math.max(1, MAX_DIFFERENCE * Math.max(name.length, candidate.length))) continue;
    // A tie goes to the name of the same length: a wrong letter is more common than a missing one.
    const score = edits + Math.abs(name.length - candidate.length) / MAX_COMPARED;
    if (!found || score < found.score) found = { name: candidate, score };
  }
  return found?.name;
};
