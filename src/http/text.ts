/**
 * Memory beside the arena: the text of JSON, the values of a body of either format, and what of a reply is no view of the arena.
 * It lies in a heap that has no limit of ours, so all calls together have one, counted in bytes of JSON bodies: those take
 * about ten times as much memory, a value about 80 bytes, and a reply's own bytes are there once or twice (measured).
 */
import { StepdError } from "../errors/errors.ts";
import { Outflow } from "../errors/outflow.ts";

/** Bytes of JSON that a value counts as. */
const BYTES_PER_VALUE = 8;

/** Bytes of a reply beside the arena that count as one of a JSON body. */
const REPLY_SHARE = 4;

export class TextBudget {
  readonly capacity: number;
  readonly #outflow = new Outflow();
  #used = 0;

  /** `capacity` is in bytes of bodies. */
  constructor(capacity: number) {
    this.capacity = capacity;
  }

  /** What one call takes, until it is disposed of. */
  open(): TextShare {
    return new TextShare(this);
  }

  /** Throws OVERLOADED for what does not fit now. */
  take(bytes: number): void {
    const missing = this.#used + bytes - this.capacity;
    if (missing > 0) {
      throw new StepdError(
        "OVERLOADED",
        `The calls in hand have ${this.#used} bytes of JSON and values; this server takes ${this.capacity} at once. Blobs in MessagePack do not count`,
        {
          expected: `at most ${this.capacity} bytes of JSON in all calls`,
          found: `${this.#used + bytes} bytes`,
          retry_after: this.#outflow.retryAfter(missing),
        },
      );
    }
    this.#used += bytes;
  }

  give(bytes: number): void {
    this.#used -= bytes;
    this.#outflow.add(bytes);
  }
}

export class TextShare implements Disposable {
  readonly #budget: TextBudget;
  #held = 0;

  constructor(budget: TextBudget) {
    this.#budget = budget;
  }

  /** Room for so many values. */
  growToValues(count: number): void {
    this.growTo(count * BYTES_PER_VALUE);
  }

  /** Room for so many bytes of a reply that are not in the arena. */
  growToReply(bytes: number): void {
    this.growTo(Math.ceil(bytes / REPLY_SHARE));
  }

  /** Takes what is missing to `bytes`. Throws OVERLOADED, or PAYLOAD_TOO_LARGE for what never fits. */
  growTo(bytes: number): void {
    if (bytes > this.#budget.capacity) {
      const expected = `at most ${this.#budget.capacity} bytes of JSON or as much in values and reply (8 bytes a value, one for 4 of the reply), or tensors as blobs in MessagePack`;
      throw StepdError.mismatch("PAYLOAD_TOO_LARGE", "the body", expected, `${bytes}`);
    }
    const missing = bytes - this.#held;
    if (missing <= 0) return;
    this.#budget.take(missing);
    this.#held = bytes;
  }

  [Symbol.dispose](): void {
    if (this.#held === 0) return;
    this.#budget.give(this.#held);
    this.#held = 0;
  }
}
