/**
 * Batches small replies: replies that become ready in one turn of the event loop are sent at its end. Waking a sleeping client takes
 * a quarter of a small step's time, and a batch wakes the client only once.
 */

const MAX_REPLIES_PER_BATCH = 32;

export class ReplyBatcher {
  #waiting = 0;
  #batch = Promise.withResolvers<void>();

  /** Resolves when the reply may be sent: at the end of the turn, or when the batch is full. */
  wait(): Promise<void> {
    const { promise } = this.#batch;
    if (++this.#waiting === 1) setImmediate(this.#release, this.#batch);
    else if (this.#waiting >= MAX_REPLIES_PER_BATCH) this.#release(this.#batch);
    return promise;
  }

  readonly #release = (batch: PromiseWithResolvers<void>): void => {
    // A full batch has already been released.
    if (batch !== this.#batch) return;
    this.#waiting = 0;
    this.#batch = Promise.withResolvers<void>();
    batch.resolve();
  };
}
