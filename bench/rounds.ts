/**
 * How everything here is timed: in every round each contender runs once, in an order shuffled anew, with a gap before each,
 * because a fixed order gave ratios that did not hold (measured). Medians over rounds, with minima beside them.
 */
import { setTimeout as delay } from "node:timers/promises";
import { Presets, SingleBar } from "cli-progress";

export interface Contender {
  readonly name: string;
  /** Runs in a round, whose mean counts as one figure. */
  readonly repetitions: number;
  run(): Promise<void> | void;
}

export interface Figures {
  readonly median: number;
  readonly min: number;
}

const shuffled = <T>(items: readonly T[]): readonly T[] =>
  items
    .map((item) => [Math.random(), item] as const)
    .sort(([a], [b]) => a - b)
    .map(([, item]) => item);

const median = (values: readonly number[]): number => {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? (sorted[middle] as number) : ((sorted[middle - 1] as number) + (sorted[middle] as number)) / 2;
};

/** Milliseconds of one run of each contender, after a round of warm-up that is thrown away. */
export const race = async (contenders: readonly Contender[], rounds: number, gapMs: number, bar: Progress): Promise<ReadonlyMap<string, Figures>> => {
  const times = new Map(contenders.map(({ name }) => [name, [] as number[]]));
  for (let round = -1; round < rounds; round++) {
    for (const { name, repetitions, run } of shuffled(contenders)) {
      await delay(gapMs);
      const start = performance.now();
      for (let i = 0; i < repetitions; i++) await run();
      const elapsed = (performance.now() - start) / repetitions;
      if (round >= 0) times.get(name)?.push(elapsed);
      bar.tick();
    }
  }
  return new Map([...times].map(([name, values]) => [name, { median: median(values), min: Math.min(...values) }]));
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

  tick(): void {
    this.#bar?.increment();
  }

  [Symbol.dispose](): void {
    this.#bar?.stop();
  }
}

/** A table of text: first column to the left, the others to the right. */
export const table = (head: readonly string[], rows: readonly (readonly string[])[]): string => {
  const widths = head.map((cell, column) => Math.max(cell.length, ...rows.map((row) => (row[column] ?? "").length)));
  const line = (cells: readonly string[]): string =>
    cells.map((cell, column) => (column === 0 ? cell.padEnd(widths[column] ?? 0) : cell.padStart(widths[column] ?? 0))).join("  ");
  return [line(head), widths.map((width) => "-".repeat(width)).join("  "), ...rows.map(line)].join("\n");
};

export const sizeName = (elements: number): string => {
  if (elements >= 2 ** 20) return `${elements / 2 ** 20} Mi`;
  return elements >= 1024 && elements % 1024 === 0 ? `${elements / 1024} Ki` : String(elements);
};
