/**
 * The line in front of the workers. Short jobs go before long ones, so that a small step waits for one large step at most,
 * whatever number of them came before; but a long job has its turn after a number of short ones, so that it waits a bounded
 * time too.
 */

/** Jobs of more elements are long: two workers take about a millisecond for as many. */
const SHORT_ELEMENTS = 2 ** 20;

/** Short jobs that may pass a long one. */
const SHORTS_PER_LONG = 8;

export class Line {
  readonly #short: (() => void)[] = [];
  readonly #long: (() => void)[] = [];
  #passed = 0;
  #isTaken = false;

  /** Jobs that wait, with the one that runs. */
  get length(): number {
    return this.#short.length + this.#long.length + (this.#isTaken ? 1 : 0);
  }

  /** Resolves when it is the turn of a job of so many elements; leave() is due after it. */
  async enter(elements: number): Promise<void> {
    if (!this.#isTaken) {
      this.#isTaken = true;
      return;
    }
    const { promise, resolve } = Promise.withResolvers<void>();
    (elements <= SHORT_ELEMENTS ? this.#short : this.#long).push(resolve);
    await promise;
  }

  /** Gives the turn to the next. */
  leave(): void {
    const isLongDue = this.#long.length > 0 && this.#passed >= SHORTS_PER_LONG;
    const next = isLongDue ? undefined : this.#short.shift();
    if (next) {
      this.#passed = this.#long.length > 0 ? this.#passed + 1 : 0;
      next();
      return;
    }
    this.#passed = 0;
    const long = this.#long.shift();
    if (long) long();
    else this.#isTaken = false;
  }
}
