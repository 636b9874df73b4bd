/** Merges the warnings, or the texts of errors, of several calls into those that one call with all tensors would return. */
import { compareUtf8 } from "./tensors.ts";

/** A server names at most this many tensors in a warning or an error. */
export const MAX_NAMED_TENSORS = 8;

/** Matches one tensor of a warning's list: "a" (1 value), "b" (2 values) and 3 more tensors. Names are JSON strings. */
const LISTED = String.raw`"[^"\\]*(?:\\.[^"\\]*)*" \(\d+ values?\)`;
const LISTING = new RegExp(String.raw`^(?<head>[^"]*)(?<list>${LISTED}(?:, ${LISTED})*)(?: and (?<more>\d+) more tensors)?(?<tail>.*)$`, "su");

/** Removes duplicates, sorts by text, and merges warnings that differ only in their tensors. */
export const joinedWarnings = (sentences: readonly string[]): string[] => {
  const kinds = new Map<string, { readonly head: string; readonly tail: string; readonly listed: string[]; more: number }>();
  for (const sentence of sentences) {
    const { head = sentence, list = "", more = 0, tail = "" } = LISTING.exec(sentence)?.groups ?? {};
    const key = JSON.stringify([head, tail]);
    const kind = kinds.get(key) ?? { head, tail, listed: [], more: 0 };
    kinds.set(key, kind);
    kind.listed.push(...(list.match(new RegExp(LISTED, "gsu")) ?? []));
    kind.more += Number(more);
  }
  return [...kinds.values()].map(({ head, tail, listed, more }) => head + listing(listed, more) + tail).sort();
};

const listing = (listed: readonly string[], more: number): string => {
  // A tensor in slices stands in several sentences.
  const counts = new Map<string, number>();
  for (const entry of listed) {
    const at = entry.lastIndexOf(" (");
    const text = entry.slice(0, at);
    counts.set(text, (counts.get(text) ?? 0) + Number.parseInt(entry.slice(at + 2), 10));
  }
  const ordered = [...counts].sort(([a], [b]) => compareUtf8(JSON.parse(a) as string, JSON.parse(b) as string));
  const rest = more + ordered.length - MAX_NAMED_TENSORS;
  const first = ordered.slice(0, MAX_NAMED_TENSORS).map(([text, count]) => `${text} (${count} ${count === 1 ? "value" : "values"})`);
  return first.join(", ") + (rest > 0 ? ` and ${rest} more tensors` : "");
};
