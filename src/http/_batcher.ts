/**
 * Batches small replies: all that become ready in one turn of the event loop are sent at its end. Waking a sleeping client process
 * takes a quarter of a small step, and a batch wakes it only once.
 */

/** The most replies of one batch. */
const MAX_BATCH = 32;

export class ReplyBatcher {
  #waiting = 0;
  #batch = Promise.withResolvers<void>();

  /** Resolves when the batch is sent: at the end of the turn, or when it is full. */
  wait(): Promise<void> {
    const { promise } = this.#batch;
    if (++this.#waiting === 1) setImmediate(this.#release, this.#batch);
    else if (this.#waiting >= MAX_BATCH) this.#release(this.#batch);
    return promise;
  }

  readonly #release = (batch: PromiseWithResolvers<void>): void => {
    // A full batch was released before the end of the turn.
    if (batch !== this.#batch) return;
    this.#waiting = 0;
    this.#batch = Promise.withResolvers<void>();
    batch.resolve();
  };
}
