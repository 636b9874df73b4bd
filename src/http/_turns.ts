/**
 * Gives received calls their turns to compute. The caller that has computed for the least time is next, and callers share the places,
 * so a caller with many or long calls does not delay a caller with few or short ones.
 */
import { ClientGone } from "./body.ts";
import type { Caller, Flight } from "./callers.ts";

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

  /** At most `limit` calls compute at once. */
  constructor(limit: number) {
    this.#limit = limit;
  }

  /**
   * Begins the turn of a call at once and returns undefined, or returns a promise that resolves when the turn begins. `release` frees
   * the memory of a call that gives way or whose caller disconnects; its promise then rejects. Each turn must be ended with `end`.
   */
  begin(flight: Flight, release: () => void): Promise<void> | undefined {
    const { caller } = flight;
    const line = this.#lineOf(caller);
    if (this.#running < this.#limit && line.waiting.length === 0 && this.#hasPlace(line)) {
      this.#run(line);
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
    for (let next = this.#next(); next && this.#running < this.#limit; next = this.#next()) {
      this.#run(next);
      next.waiting.shift()?.();
    }
  }

  #run(line: Line): void {
    this.#running++;
    line.running++;
  }

  /** True if the caller computes fewer calls than its part of the places, which is at least one. */
  #hasPlace({ running }: Line): boolean {
    return running < Math.max(1, Math.floor(this.#limit / this.#lines.size));
  }

  /** Returns the waiting line with the least time. */
  #next(): Line | undefined {
    let next: Line | undefined;
    for (const line of this.#lines.values()) {
      if (line.waiting.length > 0 && this.#hasPlace(line) && (!next || line.spent < next.spent)) next = line;
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
