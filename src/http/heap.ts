/**
 * The budget of the JavaScript heap: JSON text, decoded values, headers of blobs, and replies that are no views of the arena.
 * V8 has no limit that fits one call, so all calls share one budget. Its unit is a byte of a JSON body, which takes about ten
 * bytes of memory; a value takes about 80, and plain bytes are there once or twice (measured).
 */

import { DrainRate } from "../errors/drain-rate.ts";
import { StepdError } from "../errors/errors.ts";

/** Bytes of JSON that a value counts as. */
const BYTES_PER_VALUE = 8;

/** Bytes of a string or a reply that count as one of a JSON body. */
const PLAIN_SHARE = 4;

/** Frees memory of another call for `asking`; false if there is none to free. */
export type Reclaim = (asking: object) => boolean;

export class HeapBudget {
  readonly capacity: number;
  readonly #drainRate = new DrainRate();
  #used = 0;
  /** Set by the owner of calls whose memory may be taken back. */
  reclaim: Reclaim = () => false;

  /** `capacity` is in bytes of JSON bodies. */
  constructor(capacity: number) {
    this.capacity = capacity;
  }

  get used(): number {
    return this.#used;
  }

  /** What one call takes, until it is disposed of. */
  open(): HeapShare {
    return new HeapShare(this);
  }

  /** Throws OVERLOADED for what does not fit now. */
  take(bytes: number, asking: object): void {
    this.requireFree(bytes, asking);
    this.#used += bytes;
  }

  /** Throws OVERLOADED if `bytes` do not fit now. Takes nothing. */
  requireFree(bytes: number, asking: object): void {
    while (this.#used + bytes > this.capacity) {
      if (this.reclaim(asking)) continue;
      throw new StepdError(
        "OVERLOADED",
        `The calls in hand have ${this.#used} bytes of JSON and values; this server takes ${this.capacity} at once. Blobs in MessagePack do not count`,
        {
          expected: `at most ${this.capacity} bytes of JSON in all calls`,
          found: `${this.#used + bytes} bytes`,
          retry_after: this.#drainRate.retryAfter(this.#used + bytes - this.capacity),
        },
      );
    }
  }

  give(bytes: number): void {
    this.#used -= bytes;
    this.#drainRate.add(bytes);
  }
}

export class HeapShare implements Disposable {
  readonly #budget: HeapBudget;
  /** The largest of the body's text, its values and the reply: the one is made out of the other. */
  #call = 0;
  /** Headers of blobs, which come beside it. */
  #headers = 0;

  constructor(budget: HeapBudget) {
    this.#budget = budget;
  }

  get held(): number {
    return this.#call + this.#headers;
  }

  /** Refuses a body of `length` bytes that has no room now, without setting it aside: room is taken as its bytes come. */
  requireRoomFor(length: number): void {
    this.#requireCapacity(length);
    this.#budget.requireFree(length, this);
  }

  /** Room for so many bytes of JSON text. Throws OVERLOADED, or PAYLOAD_TOO_LARGE for what never fits. */
  growToText(bytes: number): void {
    const missing = bytes - this.#call;
    if (missing <= 0) return;
    this.#requireCapacity(bytes + this.#headers);
    this.#budget.take(missing, this);
    this.#call = bytes;
  }

  /** Room for so many values, and so many bytes of strings that are no JSON text. */
  growToValues(count: number, stringBytes: number): void {
    this.growToText(count * BYTES_PER_VALUE + Math.ceil(stringBytes / PLAIN_SHARE));
  }

  /** Room for so many bytes of a reply that are not in the arena. */
  growToReply(bytes: number): void {
    this.growToText(Math.ceil(bytes / PLAIN_SHARE));
  }

  /** Room for the header of one more blob. */
  addHeader(bytes: number): void {
    this.#requireCapacity(this.#call + this.#headers + bytes);
    this.#budget.take(bytes, this);
    this.#headers += bytes;
  }

  #requireCapacity(bytes: number): void {
    const { capacity } = this.#budget;
    if (bytes <= capacity) return;
    const expected = `at most ${capacity} bytes of JSON or as much in values, headers and reply (8 bytes a value, 128 a tensor by name, 2 for one of a header of tensors, one for 4 of the reply), or tensors as blobs in MessagePack`;
    throw StepdError.mismatch("PAYLOAD_TOO_LARGE", "the body", expected, `${bytes}`);
  }

  [Symbol.dispose](): void {
    const { held } = this;
    if (held === 0) return;
    this.#call = 0;
    this.#headers = 0;
    this.#budget.give(held);
  }
}
