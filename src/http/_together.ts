/**
 * Small replies that become ready in one turn of the event loop go out together at its end. Each wakes the process that it goes
 * to, and to wake one that sleeps takes a quarter of a small step; of those that come together the first wakes it for all.
 */

/** Nobody waits for more than this many. */
const MOST = 32;

export class Together {
  #waiting = 0;
  #turn = Promise.withResolvers<void>();

  /** Resolves at the end of the turn, for all that wait at once. */
  wait(): Promise<void> {
    const { promise } = this.#turn;
    if (++this.#waiting === 1) setImmediate(this.#go, this.#turn);
    else if (this.#waiting >= MOST) this.#go(this.#turn);
    return promise;
  }

  readonly #go = (turn: PromiseWithResolvers<void>): void => {
    // Another set out before, with as many as may wait.
    if (turn !== this.#turn) return;
    this.#waiting = 0;
    this.#turn = Promise.withResolvers<void>();
    turn.resolve();
  };
}
