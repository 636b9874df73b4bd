/** Runs long tasks on the main thread in turns. Other calls run between the turns (cooperative multitasking). */
import { setImmediate } from "node:timers/promises";

/** A task. Its caller may interrupt it wherever the generator yields. */
export type Task<T> = Generator<undefined, T>;

/** The first turn of a task takes about this long, in milliseconds. Most tasks end within it. */
const FIRST_TURN_MS = 10;

/** A later turn takes about this long before other calls run, in milliseconds. */
const TURN_MS = 2;

/** A task's first turn takes about this long if other tasks are queued, in milliseconds. Short tasks end within it. */
const SHORT_TURN_MS = 1;

/** Loops yield after this many items. */
export const ITEMS_PER_YIELD = 32;

/** Loops with little work per item yield after this many items. */
export const CHEAP_ITEMS_PER_YIELD = 1024;

/** Runs a task without interruption and returns its result. */
export const atOnce = <T>(task: Task<T>): T => {
  for (;;) {
    const { done, value } = task.next();
    if (done) return value;
  }
};

const runTurn = <T>(task: Task<T>, milliseconds: number): IteratorResult<undefined, T> => {
  const start = performance.now();
  for (;;) {
    const result = task.next();
    if (result.done || performance.now() - start > milliseconds) return result;
  }
};

/** A round of the event loop that takes less than this found nothing to do, in milliseconds. */
const EMPTY_ROUND_MS = 0.2;

/** Between two turns of a task, the other calls may take this many times the time of a turn. */
const OTHERS_TURNS = 4;

/** Lets the other calls run until they have nothing to do, or have had their time. */
const giveWay = async (): Promise<void> => {
  const start = performance.now();
  for (let before = start, now = start; now - start < OTHERS_TURNS * TURN_MS; before = now) {
    await setImmediate();
    now = performance.now();
    if (now - before < EMPTY_ROUND_MS) return;
  }
};

/** Runs a task in turns. A task that ends within one turn returns its result, not a promise. */
export const inTurns = <T>(task: Task<T>): T | Promise<T> => {
  const { done, value } = runTurn(task, FIRST_TURN_MS);
  return done ? value : continued(task);
};

const continued = async <T>(task: Task<T>): Promise<T> => {
  for (;;) {
    await giveWay();
    const { done, value } = runTurn(task, TURN_MS);
    if (done) return value;
  }
};

/** A function that runs a task in turns. */
export type Run = <T>(task: Task<T>) => T | Promise<T>;

/** Maps items in turns. Short lists are mapped at once. */
export const mapInTurns = <T, U>(items: readonly T[], map: (item: T, index: number) => U): U[] | Promise<U[]> =>
  items.length <= ITEMS_PER_YIELD ? items.map(map) : inTurns(mapped(items, map));

/** Maps items in a task, which yields after every few items. */
export function* mapped<T, U>(items: readonly T[], map: (item: T, index: number) => U): Task<U[]> {
  const results: U[] = [];
  for (const [index, item] of items.entries()) {
    results.push(map(item, index));
    if (index % ITEMS_PER_YIELD === ITEMS_PER_YIELD - 1) yield;
  }
  return results;
}

/** A queue that runs long tasks one at a time, so that their memory peaks do not add up. */
export class SerialQueue {
  #last: Promise<unknown> = Promise.resolve();
  #queued = 0;

  /**
   * Runs a task in turns. A short task returns its result at once; a longer one continues after the queued tasks. A task must not
   * wait for another task of its queue, because that would deadlock.
   */
  run<T>(task: Task<T>): T | Promise<T> {
    // An unfinished task holds memory while it waits in the queue, so its first turn is short.
    const { done, value } = runTurn(task, this.#queued === 0 ? FIRST_TURN_MS : SHORT_TURN_MS);
    return done ? value : this.runCall(() => continued(task));
  }

  /** Runs an asynchronous call after all queued tasks have ended. */
  runCall<T>(call: () => Promise<T>): Promise<T> {
    this.#queued++;
    const result = this.#last.then(call).finally(() => this.#queued--);
    this.#last = result.catch(() => {});
    return result;
  }
}

/** The sort yields after it has sorted or merged this many items. */
const SORTED_ITEMS_PER_YIELD = 4096;

/** Sorts items stably in a task. */
export function* sorted<T>(items: readonly T[], compare: (a: T, b: T) => number): Task<readonly T[]> {
  let runs: (readonly T[])[] = [];
  for (let at = 0; at < items.length; at += SORTED_ITEMS_PER_YIELD) {
    if (at > 0) yield;
    runs.push(items.slice(at, at + SORTED_ITEMS_PER_YIELD).sort(compare));
  }
  while (runs.length > 1) {
    const merged: (readonly T[])[] = [];
    for (let at = 0; at < runs.length; at += 2) merged.push(yield* merge(runs[at] ?? [], runs[at + 1] ?? [], compare));
    runs = merged;
  }
  return runs[0] ?? [];
}

function* merge<T>(first: readonly T[], second: readonly T[], compare: (a: T, b: T) => number): Task<readonly T[]> {
  const merged: T[] = [];
  for (let a = 0, b = 0; a < first.length || b < second.length; ) {
    const isFirst = b === second.length || (a < first.length && compare(first[a] as T, second[b] as T) <= 0);
    merged.push((isFirst ? first[a++] : second[b++]) as T);
    if (merged.length % SORTED_ITEMS_PER_YIELD === 0) yield;
  }
  return merged;
}
