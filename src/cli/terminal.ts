/** What a person at a terminal sees: tables, progress, numbers with units. Colours and bars only where there is a terminal. */
import { styleText } from "node:util";
import { Presets, SingleBar } from "cli-progress";

/** Bold on a terminal; NO_COLOR and pipes get the text as it is. */
export const heading = (text: string): string => styleText("bold", text, { stream: process.stdout });

/** Text from a file or a server, with what would steer the terminal made visible. */
export const printable = (text: string): string =>
  text.replaceAll(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`);

/** A table of text: first column to the left, the others to the right. */
export const table = (head: readonly string[], given: readonly (readonly string[])[], leftColumns = 1): string => {
  const rows = given.map((row) => row.map(printable));
  const widths = head.map((cell, column) => Math.max(cell.length, ...rows.map((row) => (row[column] ?? "").length)));
  const line = (cells: readonly string[]): string =>
    cells
      .map((cell, column) => (column < leftColumns ? cell.padEnd(widths[column] ?? 0) : cell.padStart(widths[column] ?? 0)))
      .join("  ")
      .trimEnd();
  return [line(head), widths.map((width) => "-".repeat(width)).join("  "), ...rows.map(line)].join("\n");
};

/** A bar on a terminal, nothing elsewhere. */
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

/** Bytes with a decimal unit, as networks count. */
export const bytesText = (bytes: number): string => {
  const unit = Math.min(Math.floor(Math.log10(Math.max(bytes, 1)) / 3), SIZES.length - 1);
  const scaled = bytes / 1000 ** unit;
  return unit === 0 ? `${bytes} B` : `${scaled.toPrecision(scaled < 1000 ? 3 : 4)} ${SIZES[unit]}`;
};

export const countText = (count: number): string => count.toLocaleString("en-US");

/** "1 tensor", "2 tensors". */
export const counted = (count: number, noun: string): string => `${countText(count)} ${noun}${count === 1 ? "" : "s"}`;

/** Three digits, and not more zeros than a reader can count. */
export const numberText = (value: number): string => (value === 0 || !Number.isFinite(value) ? String(value) : String(Number(value.toPrecision(6))));

export const secondsText = (seconds: number): string => {
  if (seconds < 1) return `${(seconds * 1000).toPrecision(3)} ms`;
  return seconds < 120 ? `${seconds.toPrecision(3)} s` : `${(seconds / 60).toPrecision(3)} min`;
};
