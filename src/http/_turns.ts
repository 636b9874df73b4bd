/**
 * Gives received calls their turns to compute. Callers take turns one call each, so a caller with many calls does not delay a caller
 * with few. A call waits only while enough others compute.
 */
import { ClientGone } from "./body.ts";
import type { Caller, Flight } from "./callers.ts";

interface Waiter {
  readonly flight: Flight;
  begin(): void;
}

export class Turns {
  readonly #limit: number;
  #running = 0;
  /** The waiting calls. The first caller is next. */
  readonly #waiting = new Map<Caller, Waiter[]>();

  /** At most `limit` calls compute at once. */
  constructor(limit: number) {
    this.#limit = limit;
  }

  /**
   * Begins the turn of a call at once and returns undefined, or returns a promise that resolves when the turn begins. `release` frees
   * the memory of a call that gives way or whose caller disconnects; its promise then rejects. Each turn must be ended with `end`.
   */
  begin(flight: Flight, release: () => void): Promise<void> | undefined {
    if (this.#running < this.#limit && this.#waiting.size === 0) {
      this.#running++;
      return undefined;
    }
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const { caller } = flight;
    const waiter: Waiter = { flight, begin: resolve };
    const waiters = this.#waiting.get(caller);
    if (waiters) waiters.push(waiter);
    else this.#waiting.set(caller, [waiter]);
    const giveWay = (error: unknown): void => {
      this.#remove(caller, waiter);
      release();
      reject(error);
    };
    flight.giveWay = giveWay;
    const abort = (): void => giveWay(new ClientGone("the connection ended before the call's turn"));
    flight.socket.once("close", abort);
    return promise.finally(() => flight.socket.off("close", abort));
  }

  end(): void {
    this.#running--;
    const [next] = this.#waiting;
    if (!next || this.#running >= this.#limit) return;
    const [caller, waiters] = next;
    const waiter = waiters.shift();
    // The caller goes to the end of the line.
    this.#waiting.delete(caller);
    if (waiters.length > 0) this.#waiting.set(caller, waiters);
    if (!waiter) return;
    this.#running++;
    waiter.flight.giveWay = undefined;
    waiter.begin();
  }

  #remove(caller: Caller, waiter: Waiter): void {
    const waiters = this.#waiting.get(caller);
    const index = waiters?.indexOf(waiter) ?? -1;
    if (!waiters || index < 0) return;
    waiters.splice(index, 1);
    if (waiters.length === 0) this.#waiting.delete(caller);
  }
}
