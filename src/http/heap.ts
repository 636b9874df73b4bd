/**
 * The budget of the JavaScript heap, shared by all calls: JSON text, decoded values, headers of blobs, and replies outside the
 * arena. Its unit is one byte of a JSON body, which takes about ten bytes of memory. A value takes about 80 bytes of memory, and
 * plain bytes are stored once or twice (measured).
 */

import { DrainRate } from "../errors/drain-rate.ts";
import { StepdError } from "../errors/errors.ts";

/** The units of one value. */
const UNITS_PER_VALUE = 8;

/** The plain bytes, of strings or replies, that count as one unit. */
const PLAIN_BYTES_PER_UNIT = 4;

/** Frees the memory of a call other than `requester`. Returns false if there is none to free. */
export type Reclaim = (requester: object) => boolean;

export class HeapBudget {
  readonly capacity: number;
  readonly #drainRate = new DrainRate();
  #used = 0;
  /** A hook that frees another call's memory. Set by the receiver, which may evict a late body. */
  reclaim: Reclaim = () => false;

  /** `capacity` is in bytes of JSON bodies. */
  constructor(capacity: number) {
    this.capacity = capacity;
  }

  get used(): number {
    return this.#used;
  }

  /** Opens the share of one call, which is released on disposal. */
  open(): HeapShare {
    return new HeapShare(this);
  }

  /** Reserves `bytes`. Throws OVERLOADED if they do not fit now. */
  reserve(bytes: number, requester: object): void {
    this.requireFree(bytes, requester);
    this.#used += bytes;
  }

  /** Throws OVERLOADED if `bytes` do not fit now. Reserves nothing. */
  requireFree(bytes: number, requester: object): void {
    while (this.#used + bytes > this.capacity) {
      if (this.reclaim(requester)) continue;
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

  release(bytes: number): void {
    this.#used -= bytes;
    this.#drainRate.add(bytes);
  }
}

export class HeapShare implements Disposable {
  readonly #budget: HeapBudget;
  /** The maximum of the body's text, its values and the reply, which exist one after the other. */
  #body = 0;
  /** The headers of blobs, which exist beside these. */
  #headers = 0;

  constructor(budget: HeapBudget) {
    this.#budget = budget;
  }

  get held(): number {
    return this.#body + this.#headers;
  }

  /** Refuses a body of `length` bytes that does not fit now. Reserves nothing: that happens as its bytes arrive. */
  requireRoomFor(length: number): void {
    this.#requireCapacity(length);
    this.#budget.requireFree(length, this);
  }

  /** Grows the reservation to `bytes` of JSON text in total. Throws OVERLOADED, or PAYLOAD_TOO_LARGE if it can never fit. */
  growToText(bytes: number): void {
    const missing = bytes - this.#body;
    if (missing <= 0) return;
    this.#requireCapacity(bytes + this.#headers);
    this.#budget.reserve(missing, this);
    this.#body = bytes;
  }

  /** Grows the reservation to `count` values and `stringBytes` of MessagePack strings. */
  growToValues(count: number, stringBytes: number): void {
    this.growToText(count * UNITS_PER_VALUE + Math.ceil(stringBytes / PLAIN_BYTES_PER_UNIT));
  }

  /** Grows the reservation to `bytes` of a reply outside the arena. */
  growToReply(bytes: number): void {
    this.growToText(Math.ceil(bytes / PLAIN_BYTES_PER_UNIT));
  }

  /** Adds a reservation for the header of one more blob. */
  addHeader(bytes: number): void {
    this.#requireCapacity(this.#body + this.#headers + bytes);
    this.#budget.reserve(bytes, this);
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
    this.#body = 0;
    this.#headers = 0;
    this.#budget.release(held);
  }
}
