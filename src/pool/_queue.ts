/**
 * Queues jobs for the workers. Short jobs overtake long ones, so a small step waits for at most one large step. A long job runs
 * after a limited number of short ones, so its wait is limited, too.
 */

/** A short job has at most this many elements. Two workers finish it in about a millisecond. */
const MAX_SHORT_ELEMENTS = 2 ** 20;

/** At most this many short jobs overtake a long one. */
const MAX_OVERTAKES = 8;

export class JobQueue {
  readonly #short: (() => void)[] = [];
  readonly #long: (() => void)[] = [];
  /** The number of short jobs that have run since a long one began to wait. */
  #overtakes = 0;
  #isBusy = false;

  /** The number of waiting jobs, plus one for a running job. */
  get length(): number {
    return this.#short.length + this.#long.length + (this.#isBusy ? 1 : 0);
  }

  /** Resolves when the job may run. The caller must then call `leave` after the job. */
  async enter(elements: number): Promise<void> {
    if (!this.#isBusy) {
      this.#isBusy = true;
      return;
    }
    const { promise, resolve } = Promise.withResolvers<void>();
    (elements <= MAX_SHORT_ELEMENTS ? this.#short : this.#long).push(resolve);
    await promise;
  }

  /** Ends the running job and starts the next one. */
  leave(): void {
    const isLongDue = this.#long.length > 0 && this.#overtakes >= MAX_OVERTAKES;
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
