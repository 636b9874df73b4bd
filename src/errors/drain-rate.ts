/** Measures the rate at which a limited resource (arena bytes, heap bytes, calls in flight) is freed. `retry_after` derives from it. */

/** The time constant of the moving average, in seconds. */
const RATE_SECONDS = 5;

const MIN_RETRY_SECONDS = 1;
const MAX_RETRY_SECONDS = 30;

export class DrainRate {
  /** The recently freed amount at the time `#last`. It decays exponentially. */
  #recent = 0;
  #last = 0;

  add(amount: number): void {
    this.#recent = this.#decayed() + amount;
    this.#last = performance.now();
  }

  /** Returns the seconds until `missing` is probably free, at the measured rate; the minimum if nothing was freed lately. */
  retryAfter(missing: number): number {
    const isRecent = this.#recent > 0 && performance.now() - this.#last < RATE_SECONDS * 2 * 1000;
    if (!isRecent) return MIN_RETRY_SECONDS;
    const seconds = Math.ceil((missing * RATE_SECONDS) / Math.max(this.#decayed(), 1));
    return Math.min(Math.max(seconds, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS);
  }

  #decayed(): number {
    return this.#recent * Math.exp((this.#last - performance.now()) / 1000 / RATE_SECONDS);
  }
}
