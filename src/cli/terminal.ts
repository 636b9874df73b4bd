/** Formats terminal output: tables, progress bars, numbers with units. Colours and bars appear only on a terminal. */
import { styleText } from "node:util";
import { Presets, SingleBar } from "cli-progress";

/** Returns bold text on a terminal, and plain text in a pipe or with NO_COLOR. */
export const heading = (text: string): string => styleText("bold", text, { stream: process.stdout });

/** Escapes control characters in text from a file or a server. */
export const escapeControls = (text: string): string =>
  text.replaceAll(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`);

/** Formats a table. The first `leftColumns` columns are left-aligned, the others right-aligned. */
export const formatTable = (head: readonly string[], given: readonly (readonly string[])[], leftColumns = 1): string => {
  const rows = given.map((row) => row.map(escapeControls));
  const widths = head.map((cell, column) => Math.max(cell.length, ...rows.map((row) => (row[column] ?? "").length)));
  const line = (cells: readonly string[]): string =>
    cells
      .map((cell, column) => (column < leftColumns ? cell.padEnd(widths[column] ?? 0) : cell.padStart(widths[column] ?? 0)))
      .join("  ")
      .trimEnd();
  return [line(head), widths.map((width) => "-".repeat(width)).join("  "), ...rows.map(line)].join("\n");
};

/** A progress bar. It is visible only on a terminal. */
export class Progress implements Disposable {
  #bar: SingleBar | undefined;

  begin(title: string, ticks: number): void {
    this.#bar?.stop();
    this.#bar = undefined;
    if (!process.stderr.isTTY) return;
    this.#bar = new SingleBar({ clearOnComplete: true, hideCursor: true, format: "{title} {bar} {percentage}% {eta_formatted}" }, Presets.shades_classic);
    this.#bar.start(ticks, 0, { title: title.padEnd(28) });
  }

  tick(amount = 1): void {
    this.#bar?.increment(amount);
  }

  [Symbol.dispose](): void {
    this.#bar?.stop();
  }
}

const SIZES = ["B", "kB", "MB", "GB", "TB", "PB"];

/** Formats bytes with a decimal unit, for instance "1.50 MB". */
export const bytesText = (bytes: number): string => {
  const unit = Math.min(Math.floor(Math.log10(Math.max(bytes, 1)) / 3), SIZES.length - 1);
  const scaled = bytes / 1000 ** unit;
  return unit === 0 ? `${bytes} B` : `${scaled.toPrecision(scaled < 1000 ? 3 : 4)} ${SIZES[unit]}`;
};

export const countText = (count: number): string => count.toLocaleString("en-US");

/** Formats a count with its noun: "1 tensor", "2 tensors". */
export const pluralize = (count: number, noun: string): string => `${countText(count)} ${noun}${count === 1 ? "" : "s"}`;

/** Formats a number with six significant digits. */
export const numberText = (value: number): string => (value === 0 || !Number.isFinite(value) ? String(value) : String(Number(value.toPrecision(6))));

export const secondsText = (seconds: number): string => {
  if (seconds < 1) return `${(seconds * 1000).toPrecision(3)} ms`;
  return seconds < 120 ? `${seconds.toPrecision(3)} s` : `${(seconds / 60).toPrecision(3)} min`;
};
