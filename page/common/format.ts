/** Formats numbers and lists for readers. */

const PREFIXES = ["", "Ki", "Mi", "Gi", "Ti"];

/** Formats a number of bytes, for instance "1.5 MiB". */
export const bytesText = (count: number): string => {
  let [value, at] = [count, 0];
  while (Math.abs(value) >= 1024 && at < PREFIXES.length - 1) [value, at] = [value / 1024, at + 1];
  return `${value.toLocaleString("en", { maximumFractionDigits: at === 0 ? 0 : 1 })} ${PREFIXES[at]}B`;
};

export const countText = (value: number): string => value.toLocaleString("en", { maximumFractionDigits: 0 });

/** Formats a count with its noun: "1 tensor", "2 tensors". */
export const pluralize = (value: number, noun: string): string => `${countText(value)} ${noun}${value === 1 ? "" : "s"}`;

/** Formats a float with at most four digits. */
export const numberText = (value: number): string => {
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e5 || size < 1e-3) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
};

/** Formats a duration, for instance "12 ms". */
export const durationText = (seconds: number): string => {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds >= 86_400) return `${numberText(seconds / 86_400)} d`;
  if (seconds >= 3600) return `${numberText(seconds / 3600)} h`;
  if (seconds >= 60) return `${numberText(seconds / 60)} min`;
  if (seconds >= 1) return `${numberText(seconds)} s`;
  if (seconds >= 1e-3) return `${numberText(seconds * 1e3)} ms`;
  return `${numberText(seconds * 1e6)} µs`;
};

/** Longer names are shortened in their middle, because both ends distinguish parameters. */
const MAX_NAME = 80;

const shortName = (name: string): string => (name.length <= MAX_NAME ? name : `${name.slice(0, MAX_NAME / 2)}…${name.slice(-MAX_NAME / 2)}`);

/** Joins names for a sentence: "a, b and c". After `most` names it gives only the number of the others. */
export const listText = (names: readonly string[], most = 3): string => {
  const shown = names.slice(0, most).map((name) => `“${shortName(name)}”`);
  const rest = names.length - shown.length;
  if (rest > 0) return `${shown.join(", ")} and ${countText(rest)} more`;
  return shown.length > 1 ? `${shown.slice(0, -1).join(", ")} and ${shown.at(-1)}` : (shown[0] ?? "none");
};
