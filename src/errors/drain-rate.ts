/** The rate at which a limited resource is freed, for `retry_after`: arena bytes, heap bytes, or calls in flight. */

/** The time constant of the average, in seconds. */
const RATE_SECONDS = 5;

const MIN_RETRY_SECONDS = 1;
const MAX_RETRY_SECONDS = 30;

export class DrainRate {
  /** The recently freed amount, which decays exponentially from the time `#last`. */
  #recent = 0;
  #last = 0;

  add(amount: number): void {
    this.#recent = this.#decayed() + amount;
    this.#last = performance.now();
  }

  /** The seconds until `missing` should be free at the measured rate, rounded up; the minimum if nothing was freed lately. */
  retryAfter(missing: number): number {
    const isKnown = this.#recent > 0 && performance.now() - this.#last < RATE_SECONDS * 2 * 1000;
    if (!isKnown) return MIN_RETRY_SECONDS;
    const seconds = Math.ceil((missing * RATE_SECONDS) / Math.max(this.#decayed(), 1));
    return Math.min(Math.max(seconds, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS);
  }

  #decayed(): number {
    return this.#recent * Math.exp((this.#last - performance.now()) / 1000 / RATE_SECONDS);
  }
}
