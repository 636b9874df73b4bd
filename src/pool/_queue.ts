/**
 * The queue of jobs for the workers. Short jobs run before long ones, so a small step waits for at most one large step. A long
 * job runs after a limited number of short ones, so its wait is bounded too.
 */

/** The most elements of a short job: two workers finish it in about a millisecond. */
const SHORT_ELEMENTS = 2 ** 20;

/** Short jobs that may overtake a long one. */
const SHORTS_PER_LONG = 8;

export class JobQueue {
  readonly #short: (() => void)[] = [];
  readonly #long: (() => void)[] = [];
  /** Short jobs that have run since a long one began to wait. */
  #overtakes = 0;
  #isBusy = false;

  /** The number of waiting jobs, plus one for the running job. */
  get length(): number {
    return this.#short.length + this.#long.length + (this.#isBusy ? 1 : 0);
  }

  /** Resolves when the job may run. The caller must call leave() after it. */
  async enter(elements: number): Promise<void> {
    if (!this.#isBusy) {
      this.#isBusy = true;
      return;
    }
    const { promise, resolve } = Promise.withResolvers<void>();
    (elements <= SHORT_ELEMENTS ? this.#short : this.#long).push(resolve);
    await promise;
  }

  /** Ends the running job's turn and starts the next job. */
  leave(): void {
    const isLongDue = this.#long.length > 0 && this.#overtakes >= SHORTS_PER_LONG;
    const next = isLongDue ? undefined : this.#short.shift();
    if (next) {
      this.#overtakes = this.#long.length > 0 ? this.#overtakes + 1 : 0;
      next();
      return;
    }
    this.#overtakes = 0;
    const long = this.#long.shift();
    if (long) long();
    else this.#isBusy = false;
  }
}
