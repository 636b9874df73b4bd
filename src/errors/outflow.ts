/** How fast something that is limited comes free, for `retry_after`: the arena's bytes, and the calls in flight. */

/** The rate is averaged over about this many seconds. */
const RATE_SECONDS = 5;

const MIN_RETRY_SECONDS = 1;
const MAX_RETRY_SECONDS = 30;

export class Outflow {
  /** What came free lately, each part fading with its age, and when the last did. */
  #recent = 0;
  #last = 0;

  add(amount: number): void {
    this.#recent = this.#faded() + amount;
    this.#last = performance.now();
  }

  /** Whole seconds until `missing` should have come free at the measured rate; the shortest where none was measured lately. */
  retryAfter(missing: number): number {
    const isKnown = this.#recent > 0 && performance.now() - this.#last < RATE_SECONDS * 2 * 1000;
    if (!isKnown) return MIN_RETRY_SECONDS;
    const seconds = Math.ceil((missing * RATE_SECONDS) / Math.max(this.#faded(), 1));
    return Math.min(Math.max(seconds, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS);
  }

  #faded(): number {
    return this.#recent * Math.exp((this.#last - performance.now()) / 1000 / RATE_SECONDS);
  }
}
