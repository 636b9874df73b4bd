/**
 * Gives received calls their turns to compute. The caller that has computed for the least time is next, and callers share the places,
 * so a caller with many or long calls does not delay a caller with few or short ones. Small calls compute on the main thread, so a
 * caller with hundreds of them begins only one in each round of the event loop while other callers send calls, too.
 */
import { ClientGone } from "./body.ts";
import type { Caller, Flight } from "./callers.ts";

/** Callers take turns in the rounds of the event loop for this time in ms after two of them have sent calls. */
const SHARED_MS = 1000;

/** The calls of one caller that compute or wait. */
interface Line {
  running: number;
  /** The time in ms that its calls have computed. A caller that was idle begins with the least time of the others. */
  spent: number;
  readonly waiting: (() => void)[];
}

export class Turns {
  readonly #limit: number;
  #running = 0;
  /** Only callers with calls that compute or wait are here. */
  readonly #lines = new Map<Caller, Line>();
  /** The callers that have begun a call in this round of the event loop. Empty while only one caller sends calls. */
  readonly #served = new Set<Caller>();
  #lastCaller: Caller | undefined;
  #sharedUntil = 0;

  /** At most `limit` calls compute at once, and as many more that are the only ones of their callers. */
  constructor(limit: number) {
    this.#limit = limit;
  }

  /**
   * Begins the turn of a call at once and returns undefined, or returns a promise that resolves when the turn begins. `release` frees
   * the memory of a call that gives way or whose caller disconnects; its promise then rejects. Each turn must be ended with `end`.
   */
  begin(flight: Flight, release: () => void): Promise<void> | undefined {
    const { caller } = flight;
    if (caller !== this.#lastCaller) {
      if (this.#lastCaller) this.#sharedUntil = performance.now() + SHARED_MS;
      this.#lastCaller = caller;
    }
    const line = this.#lineOf(caller);
    if (line.waiting.length === 0 && this.#hasPlace(caller, line)) {
      this.#run(caller, line);
      return undefined;
    }
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const waiter = (): void => {
      flight.giveWay = undefined;
      resolve();
    };
    line.waiting.push(waiter);
    const giveWay = (error: unknown): void => {
      const index = line.waiting.indexOf(waiter);
      if (index < 0) return;
      line.waiting.splice(index, 1);
      this.#forget(caller, line);
      release();
      reject(error);
    };
    flight.giveWay = giveWay;
    const abort = (): void => giveWay(new ClientGone("the connection ended before the call's turn"));
    flight.socket.once("close", abort);
    return promise.finally(() => flight.socket.off("close", abort));
  }

  /** Ends a turn of the caller that took `ms`, and begins the turns that now have a place. */
  end(caller: Caller, ms: number): void {
    const line = this.#lineOf(caller);
    this.#running--;
    line.running--;
    line.spent += ms;
    this.#forget(caller, line);
    this.#beginWaiting();
  }

  #beginWaiting(): void {
    for (let next = this.#next(); next; next = this.#next()) {
      const [caller, line] = next;
      this.#run(caller, line);
      line.waiting.shift()?.();
    }
  }

  #run(caller: Caller, line: Line): void {
    this.#running++;
    line.running++;
    if (performance.now() >= this.#sharedUntil) return;
    if (this.#served.size === 0) setImmediate(this.#endRound);
    this.#served.add(caller);
  }

  readonly #endRound = (): void => {
    this.#served.clear();
    this.#beginWaiting();
  };

  /**
   * True if the caller may begin a call: it has begun none in this round, and computes fewer calls than its part of the places. The first
   * call of a caller has as many places again, because one caller alone may hold all others for the time of its long calls.
   */
  #hasPlace(caller: Caller, { running }: Line): boolean {
    if (this.#served.has(caller)) return false;
    if (running === 0) return this.#running < 2 * this.#limit;
    return this.#running < this.#limit && running < Math.floor(this.#limit / this.#lines.size);
  }

  /** Returns the waiting line with the least time. */
  #next(): readonly [Caller, Line] | undefined {
    let next: readonly [Caller, Line] | undefined;
    for (const entry of this.#lines) {
      const [caller, line] = entry;
      if (line.waiting.length > 0 && this.#hasPlace(caller, line) && (!next || line.spent < next[1].spent)) next = entry;
    }
    return next;
  }

  #lineOf(caller: Caller): Line {
    const known = this.#lines.get(caller);
    if (known) return known;
    let least = Number.POSITIVE_INFINITY;
    for (const { spent } of this.#lines.values()) least = Math.min(least, spent);
    const line: Line = { running: 0, spent: Number.isFinite(least) ? least : 0, waiting: [] };
    this.#lines.set(caller, line);
    return line;
  }

  #forget(caller: Caller, line: Line): void {
    if (line.running === 0 && line.waiting.length === 0) this.#lines.delete(caller);
  }
}
