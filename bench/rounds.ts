/**
 * How everything here is timed: in every round each contender runs once, in an order shuffled anew, with a gap before each,
 * because a fixed order gave ratios that did not hold (measured). Medians over rounds, with minima beside them.
 */
import os from "node:os";
import { setTimeout as delay } from "node:timers/promises";
import type { Progress } from "../src/cli/terminal.ts";

export interface Contender {
  readonly name: string;
  /** Runs once and says the milliseconds that count, so that a process elsewhere can hold the clock. */
  time(): Promise<number>;
}

/** A contender that is timed here: the mean of some runs in a row counts as one figure. */
export const repeated = (name: string, repetitions: number, run: () => Promise<unknown> | undefined): Contender => ({
  name,
  async time() {
    const start = performance.now();
    for (let i = 0; i < repetitions; i++) await run();
    return (performance.now() - start) / repetitions;
  },
});

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

/** What a race found: the figures of a contender by its name. */
export type Result = (name: string) => Figures;

/** Of a gap's processor time, what others may take for the machine to count as quiet. */
const OTHERS = 0.2;

/** Longest that a part waits for quiet, in all. */
const PATIENCE_MS = 90_000;

/** Keeps timed runs away from what others do on the machine. */
export class Quiet {
  #patience = PATIENCE_MS;
  #runs = 0;
  #disturbed = 0;

  /** Waits the gap, and on until a gap has passed in which the processors were idle. Gives up where they never are. */
  async wait(gapMs: number): Promise<void> {
    this.#runs++;
    for (;;) {
      const [idle, start] = [idleMs(), performance.now()];
      await delay(gapMs);
      const elapsed = performance.now() - start;
      // The kernel counts in steps of 10 ms on each core.
      if (idleMs() - idle >= (1 - OTHERS) * elapsed * os.cpus().length - 10) return;
      this.#patience -= elapsed;
      if (this.#patience > 0) continue;
      this.#disturbed++;
      return;
    }
  }

  /** The part of the runs, from 0 to 1, that began while others were at work. */
  get disturbed(): number {
    return Number((this.#disturbed / Math.max(this.#runs, 1)).toFixed(2));
  }
}

const idleMs = (): number => os.cpus().reduce((sum, { times }) => sum + times.idle, 0);

/** Milliseconds of one run of each contender, after a round of warm-up that is thrown away. */
export const race = async (title: string, contenders: readonly Contender[], gapMs: number, { rounds, bar, quiet }: Setup): Promise<Result> => {
  bar.begin(title, contenders.length * (rounds + 1));
  const times = new Map(contenders.map(({ name }) => [name, [] as number[]]));
  for (let round = -1; round < rounds; round++) {
    for (const { name, time } of shuffled(contenders)) {
      await quiet.wait(gapMs);
      const elapsed = await time();
      if (round >= 0) times.get(name)?.push(elapsed);
      bar.tick();
    }
  }
  return (name) => {
    const values = times.get(name);
    if (!values) throw new Error(`expected one of ${[...times.keys()].join(", ")}, found ${name}`);
    return { median: median(values), min: Math.min(...values) };
  };
};

/** One time against another of the same race. Less is better. */
export interface Ratio {
  readonly name: string;
  readonly median: number;
  readonly min: number;
  /** The goal, where there is one: the median is at most this. */
  readonly goal?: number;
}

export const ratio = (name: string, a: Figures, b: Figures, goal?: number): Ratio => ({
  name,
  median: Number((a.median / b.median).toFixed(3)),
  min: Number((a.min / b.min).toFixed(3)),
  ...(goal === undefined ? {} : { goal }),
});

/** What a part of the benchmark gives: a table for people, and ratios. */
export interface Report {
  readonly title: string;
  /** What a figure of the table is, of how many. */
  readonly figures: string;
  readonly head: readonly string[];
  readonly rows: readonly (readonly string[])[];
  readonly ratios: readonly Ratio[];
}

/** What a time in a table is. */
export const medians = (rounds: number): string => `median [minimum] of ${rounds} rounds`;

/** What is the same for all parts. */
export interface Setup {
  readonly rounds: number;
  readonly bar: Progress;
  readonly quiet: Quiet;
  /** The interpreter of the peers' environment; undefined where there is none. */
  readonly python: string | undefined;
}

export const sizeName = (elements: number): string => {
  if (elements >= 2 ** 20) return `${elements / 2 ** 20} Mi`;
  return elements >= 1024 && elements % 1024 === 0 ? `${elements / 1024} Ki` : elements.toLocaleString("en-US");
};

/** Milliseconds: median [min]. */
export const ms = ({ median, min }: Figures): string => `${median.toFixed(median < 10 ? 3 : 1)} [${min.toFixed(min < 10 ? 3 : 1)}]`;

/** Nanoseconds for each element: median [min]. */
export const perElement = ({ median, min }: Figures, elements: number): string =>
  `${((median * 1e6) / elements).toFixed(3)} [${((min * 1e6) / elements).toFixed(3)}]`;
