/**
 * Times contenders in rounds. Each round runs every contender once, after a pause, in a newly shuffled order. A fixed order gave
 * different ratios in each run (measured). The results are medians and minima over the rounds.
 */
import os from "node:os";
import { setTimeout as delay } from "node:timers/promises";
import type { Progress } from "../src/cli/terminal.ts";

export interface Contender {
  readonly name: string;
  /** Runs once and returns the measured milliseconds. The clock may be in another process. */
  time(): Promise<number>;
}

/** Returns a contender that is timed in this process. The mean of several runs in a row counts as one time. */
export const repeatedContender = (name: string, repetitions: number, run: () => Promise<unknown> | undefined): Contender => ({
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

/** The result of a race: a function that returns a contender's figures by name. */
export type Result = (name: string) => Figures;

/** The machine counts as quiet if other processes take at most this share of the processor time. */
const MAX_OTHER_LOAD = 0.2;

/** The longest total wait for a quiet machine in one part. */
const LONGEST_WAIT_MS = 90_000;

/** Delays timed runs until other processes are quiet. */
export class Quiet {
  #waitLeft = LONGEST_WAIT_MS;
  #runs = 0;
  #disturbed = 0;

  /** Waits for `gapMs`, and repeats the wait until the processors were idle during it. Gives up after LONGEST_WAIT_MS in total. */
  async wait(gapMs: number): Promise<void> {
    this.#runs++;
    for (;;) {
      const [idle, start] = [idleMs(), performance.now()];
      await delay(gapMs);
      const elapsed = performance.now() - start;
      // Linux counts processor time in steps of 10 ms per core.
      if (idleMs() - idle >= (1 - MAX_OTHER_LOAD) * elapsed * os.cpus().length - 10) return;
      this.#waitLeft -= elapsed;
      if (this.#waitLeft > 0) continue;
      this.#disturbed++;
      return;
    }
  }

  /** The share of the runs, from 0 to 1, that began while other processes were active. */
  get disturbed(): number {
    return Number((this.#disturbed / Math.max(this.#runs, 1)).toFixed(2));
  }
}

const idleMs = (): number => os.cpus().reduce((sum, { times }) => sum + times.idle, 0);

/** Times each contender once per round, after a warm-up round whose times are discarded. */
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

/** One contender's time divided by another's time in the same race. Lower is better. */
export interface Ratio {
  readonly name: string;
  readonly median: number;
  readonly min: number;
  /** The largest median that meets the goal. Undefined means no goal. */
  readonly goal?: number;
}

export const ratioOf = (name: string, a: Figures, b: Figures, goal?: number): Ratio => ({
  name,
  median: Number((a.median / b.median).toFixed(3)),
  min: Number((a.min / b.min).toFixed(3)),
  ...(goal === undefined ? {} : { goal }),
});

/** The output of one part: a table to read, and ratios. */
export interface Report {
  readonly title: string;
  /** The legend of the table: the meaning of its figures and the number of rounds. */
  readonly figures: string;
  readonly head: readonly string[];
  readonly rows: readonly (readonly string[])[];
  readonly ratios: readonly Ratio[];
}

/** Returns the legend for the times in a table. */
export const legend = (rounds: number): string => `median [minimum] of ${rounds} rounds`;

/** Options that all parts share. */
export interface Setup {
  readonly rounds: number;
  readonly bar: Progress;
  readonly quiet: Quiet;
  /** The interpreter of the peers' environment. Undefined if there is no environment. */
  readonly python: string | undefined;
}

export const sizeName = (elements: number): string => {
  if (elements >= 2 ** 20) return `${elements / 2 ** 20} Mi`;
  return elements >= 1024 && elements % 1024 === 0 ? `${elements / 1024} Ki` : elements.toLocaleString("en-US");
};

/** Returns milliseconds as text: median [minimum]. */
export const msText = ({ median, min }: Figures): string => `${median.toFixed(median < 10 ? 3 : 1)} [${min.toFixed(min < 10 ? 3 : 1)}]`;

/** Returns nanoseconds per element as text: median [minimum]. */
export const nsPerElementText = ({ median, min }: Figures, elements: number): string =>
  `${((median * 1e6) / elements).toFixed(3)} [${((min * 1e6) / elements).toFixed(3)}]`;
