/** Cooperative multitasking: long work on the main thread runs in turns, so that other calls run in between. */
import { setImmediate } from "node:timers/promises";

/** Work that yields every few items of a long loop, where it may be interrupted. */
export type Turns<T> = Generator<undefined, T>;

/** The length of a turn, in milliseconds, after which other calls run. */
const TURN_MS = 10;

/** The length of the first turn while other work is queued, in milliseconds: enough for short work. */
const TRIAL_MS = 1;

/** Items of a loop between two yields. */
export const TURN_ITEMS = 32;

/** Items between two yields in a loop that does little per item. */
export const TURN_PASSES = 1024;

/** Runs work without interruption and returns its result. */
export const atOnce = <T>(work: Turns<T>): T => {
  for (;;) {
    const { done, value } = work.next();
    if (done) return value;
  }
};

/** Runs work for one turn of a length in milliseconds. */
const oneTurn = <T>(work: Turns<T>, length: number): IteratorResult<undefined, T> => {
  const start = performance.now();
  for (;;) {
    const result = work.next();
    if (result.done || performance.now() - start > length) return result;
  }
};

/** Runs work in turns of TURN_MS. Work that fits into one turn returns its result, not a promise. */
export const inTurns = <T>(work: Turns<T>): T | Promise<T> => {
  const { done, value } = oneTurn(work, TURN_MS);
  return done ? value : setImmediate().then(() => inTurns(work));
};

/** A function that runs work in turns. */
export type Run = <T>(work: Turns<T>) => T | Promise<T>;

/** Maps items in turns. A few items are mapped without turns. */
export const mapInTurns = <T, U>(items: readonly T[], map: (item: T, index: number) => U): U[] | Promise<U[]> =>
  items.length <= TURN_ITEMS ? items.map(map) : inTurns(mapped(items, map));

/** Array.map as work that yields. */
export function* mapped<T, U>(items: readonly T[], map: (item: T, index: number) => U): Turns<U[]> {
  const results: U[] = [];
  for (const [index, item] of items.entries()) {
    results.push(map(item, index));
    if (index % TURN_ITEMS === TURN_ITEMS - 1) yield;
  }
  return results;
}

/** A queue that runs long work one at a time, so that its memory peaks do not add up. */
export class SerialQueue {
  #last: Promise<unknown> = Promise.resolve();
  #queued = 0;

  /**
   * Runs work in turns. Short work returns its result at once; longer work continues after the queued work before it. Work must not
   * wait for other work of the same queue, which would deadlock.
   */
  run<T>(work: Turns<T>): T | Promise<T> {
    // A short first turn while others are queued, because half-done work holds memory while it waits.
    const { done, value } = oneTurn(work, this.#queued === 0 ? TURN_MS : TRIAL_MS);
    return done ? value : this.runCall(() => setImmediate().then(() => inTurns(work)));
  }

  /** Runs an asynchronous call when the work before it has ended. */
  runCall<T>(call: () => Promise<T>): Promise<T> {
    this.#queued++;
    const result = this.#last.then(call).finally(() => this.#queued--);
    this.#last = result.catch(() => {});
    return result;
  }
}

/** Items sorted at once, and items merged between two yields. */
const RUN = 4096;

/** A stable sort as work that yields. */
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
