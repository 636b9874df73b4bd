/**
 * How everything here is timed: in every round each contender runs once, in an order shuffled anew, with a gap before each,
 * because a fixed order gave ratios that did not hold (measured). Medians over rounds, with minima beside them.
 */
import { setTimeout as delay } from "node:timers/promises";
import type { Progress } from "../src/cli/terminal.ts";

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

export const sizeName = (elements: number): string => {
  if (elements >= 2 ** 20) return `${elements / 2 ** 20} Mi`;
  return elements >= 1024 && elements % 1024 === 0 ? `${elements / 1024} Ki` : String(elements);
};
