/**
 * Memory for JSON. Its text and values are beside the arena, in a heap that has no limit of ours: about ten times a body of
 * numbers, five times one of base64 (measured). So the bodies of all calls that read or write JSON are limited together.
 */
import { StepdError } from "../errors/errors.ts";
import { Outflow } from "../errors/outflow.ts";

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
        `The calls in hand have ${this.#used} bytes of JSON; this server takes ${this.capacity} at once. MessagePack has no such limit`,
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

  /** Takes what is missing to `bytes`. Throws OVERLOADED, or PAYLOAD_TOO_LARGE for what never fits. */
  growTo(bytes: number): void {
    if (bytes > this.#budget.capacity) {
      const expected = `at most ${this.#budget.capacity} bytes of JSON, or MessagePack there and back`;
      throw StepdError.mismatch("PAYLOAD_TOO_LARGE", "the body", expected, `${bytes}`);
    }
    const missing = bytes - this.#held;
    if (missing <= 0) return;
    this.#budget.take(missing);
    this.#held = bytes;
  }

  [Symbol.dispose](): void {
    this.#budget.give(this.#held);
    this.#held = 0;
  }
}
