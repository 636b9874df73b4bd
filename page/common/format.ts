/** Formats numbers and lists for readers. */

const PREFIXES = ["", "Ki", "Mi", "Gi", "Ti"];

/** Formats a number of bytes, for instance "1.5 MiB". */
export const bytes = (count: number): string => {
  let [value, at] = [count, 0];
  while (Math.abs(value) >= 1024 && at < PREFIXES.length - 1) [value, at] = [value / 1024, at + 1];
  return `${value.toLocaleString("en", { maximumFractionDigits: at === 0 ? 0 : 1 })} ${PREFIXES[at]}B`;
};

export const count = (value: number): string => value.toLocaleString("en", { maximumFractionDigits: 0 });

/** Formats a count with its noun: "1 tensor", "2 tensors". */
export const plural = (value: number, noun: string): string => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;

/** Formats a float with at most four digits. */
export const short = (value: number): string => {
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e5 || size < 1e-3) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
};

/** Formats a duration, for instance "12 ms". */
export const duration = (seconds: number): string => {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds >= 86_400) return `${short(seconds / 86_400)} d`;
  if (seconds >= 3600) return `${short(seconds / 3600)} h`;
  if (seconds >= 60) return `${short(seconds / 60)} min`;
  if (seconds >= 1) return `${short(seconds)} s`;
  if (seconds >= 1e-3) return `${short(seconds * 1e3)} ms`;
  return `${short(seconds * 1e6)} µs`;
};

/** Joins names for a sentence: "a, b and c". After `most` names it gives only the number of the others. */
export const list = (names: readonly string[], most = 3): string => {
  const shown = names.slice(0, most).map((name) => `“${name}”`);
  const rest = names.length - shown.length;
  if (rest > 0) return `${shown.join(", ")} and ${count(rest)} more`;
  return shown.length > 1 ? `${shown.slice(0, -1).join(", ")} and ${shown.at(-1)}` : (shown[0] ?? "none");
};
