/** Long work on the main thread, cut into pieces, so that other calls run between them. */
import { setImmediate } from "node:timers/promises";

/** Work that yields wherever it may be interrupted: every few items of a long loop. */
export type Turns<T> = Generator<undefined, T>;

/** The longest piece, in milliseconds, after which other calls run. */
const TURN_MS = 10;

/** The first piece of work that may have to wait for other work of its kind, in milliseconds: enough for what is short. */
const TRIAL_MS = 1;

/** Items of a long loop between two yields. */
export const TURN_ITEMS = 32;

/** Items of a long loop that does little with each, between two yields. */
export const TURN_PASSES = 1024;

/** Runs work without interruption. */
export const atOnce = <T>(work: Turns<T>): T => {
  for (;;) {
    const { done, value } = work.next();
    if (done) return value;
  }
};

/** Runs work in pieces of TURN_MS. Short work ends before this returns, with nothing to await. */
export const inTurns = <T>(work: Turns<T>): T | Promise<T> => {
  const start = performance.now();
  for (;;) {
    const { done, value } = work.next();
    if (done) return value;
    if (performance.now() - start > TURN_MS) return setImmediate().then(() => inTurns(work));
  }
};

/** How a piece of work is run in turns. */
export type Run = <T>(work: Turns<T>) => T | Promise<T>;

/** Maps items in turns. A few items are mapped at once. */
export const mapInTurns = <T, U>(items: readonly T[], make: (item: T, index: number) => U): U[] | Promise<U[]> =>
  items.length <= TURN_ITEMS ? items.map(make) : inTurns(mapped(items, make));

/** What `make` makes of each item, in turns. */
export function* mapped<T, U>(items: readonly T[], make: (item: T, index: number) => U): Turns<U[]> {
  const made: U[] = [];
  for (const [index, item] of items.entries()) {
    made.push(make(item, index));
    if (index % TURN_ITEMS === TURN_ITEMS - 1) yield;
  }
  return made;
}

/** Long work of one kind, one after the other: what all of it takes in memory at once is what one takes. */
export class OneAtATime {
  #last: Promise<unknown> = Promise.resolve();
  #queued = 0;

  /**
   * Runs work in turns. Short work ends before this returns; what is longer goes on when the work before it has ended. Work never
   * waits for other work of its queue.
   */
  run<T>(work: Turns<T>): T | Promise<T> {
    const start = performance.now();
    // What waits with half of its work done holds memory as well.
    const most = this.#queued === 0 ? TURN_MS : TRIAL_MS;
    for (;;) {
      const { done, value } = work.next();
      if (done) return value;
      if (performance.now() - start > most) break;
    }
    return this.whole(() => setImmediate().then(() => inTurns(work)));
  }

  /** Runs a whole call, with all that it awaits, when the work before it has ended. */
  whole<T>(call: () => Promise<T>): Promise<T> {
    this.#queued++;
    const result = this.#last.then(call).finally(() => this.#queued--);
    this.#last = result.catch(() => {});
    return result;
  }
}

/** Items that are sorted at once, and merged between two yields. */
const RUN = 4096;

/** The items in order; equal ones stay as they were. */
export function* sorted<T>(items: readonly T[], compare: (a: T, b: T) => number): Turns<readonly T[]> {
  let runs: (readonly T[])[] = [];
  for (let at = 0; at < items.length; at += RUN) {
    if (at > 0) yield;
    runs.push(items.slice(at, at + RUN).sort(compare));
  }
  while (runs.length > 1) {
    const merged: (readonly T[])[] = [];
    for (let at = 0; at < runs.length; at += 2) merged.push(yield* merge(runs[at] ?? [], runs[at + 1] ?? [], compare));
    runs = merged;
  }
  return runs[0] ?? [];
}

function* merge<T>(first: readonly T[], second: readonly T[], compare: (a: T, b: T) => number): Turns<readonly T[]> {
  const merged: T[] = [];
  for (let a = 0, b = 0; a < first.length || b < second.length; ) {
    const isFirst = b === second.length || (a < first.length && compare(first[a] as T, second[b] as T) <= 0);
    merged.push((isFirst ? first[a++] : second[b++]) as T);
    if (merged.length % RUN === 0) yield;
  }
  return merged;
}
