/**
 * Limits the JavaScript heap that all calls use: JSON text, decoded values, headers of blobs, and replies outside the arena.
 * The unit of the budget is one byte of a JSON body. Such a byte takes about ten bytes of memory, and a decoded value about 80. Plain
 * bytes are stored once or twice (measured).
 */

import { DrainRate } from "../errors/drain-rate.ts";
import { StepdError } from "../errors/errors.ts";
import type { Lease } from "../rpc/rpc.ts";

type Meter = Lease["meter"];

// A decoded value takes eight times the memory of a byte of JSON.
const UNITS_PER_VALUE = 8;

/** Four bytes of a MessagePack string or of a reply count as one unit of the budget. */
const PLAIN_BYTES_PER_UNIT = 4;

/** Frees memory of a call other than that of the meter, which needs `bytes`. Returns false if no memory can be freed. */
export type Reclaim = (requester: Meter, bytes: number) => boolean;

/** The limits of one caller's calls together. Its methods throw OVERLOADED or PAYLOAD_TOO_LARGE. */
export interface CallerMeter {
  /** Checks `bytes` more of the arena. */
  requireArena(bytes: number): void;
  /** Checks `bytes` more of JSON and values. */
  requireHeap(bytes: number): void;
}

const UNLIMITED: CallerMeter = { requireArena: () => {}, requireHeap: () => {} };

export class HeapBudget {
  readonly capacity: number;
  readonly #drainRate = new DrainRate();
  #used = 0;
  /** Frees another call's memory. The server sets this hook. */
  reclaim: Reclaim = () => false;

  /** `capacity` is in units of one byte of JSON. */
  constructor(capacity: number) {
    this.capacity = capacity;
  }

  get used(): number {
    return this.#used;
  }

  /** Opens the share of one call. Disposing the share releases it. */
  open(caller: CallerMeter = UNLIMITED): HeapShare {
    return new HeapShare(this, caller);
  }

  /** Reserves `bytes`. Throws OVERLOADED if they do not fit now. */
  reserve(bytes: number, requester: Meter): void {
    this.requireFree(bytes, requester);
    this.#used += bytes;
  }

  /** Throws OVERLOADED if `bytes` do not fit now, but does not reserve them. */
  requireFree(bytes: number, requester: Meter): void {
    while (this.#used + bytes > this.capacity) {
      if (this.reclaim(requester, bytes)) continue;
      throw new StepdError(
        "OVERLOADED",
        `The calls in hand have ${this.#used} bytes of JSON and values; this server takes ${this.capacity} at once. Blobs in MessagePack do not count`,
        {
          limit: "server",
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

/** One call's share of the heap budget. */
export class HeapShare implements Disposable, Meter {
  readonly #budget: HeapBudget;
  readonly #caller: CallerMeter;
  /** The units of the body's text, of its values or of the reply. These exist one after the other, so only the largest counts. */
  #body = 0;
  /** The units of blob headers. Headers exist at the same time as text, values or reply, so these units are added. */
  #headers = 0;

  constructor(budget: HeapBudget, caller: CallerMeter) {
    this.#budget = budget;
    this.#caller = caller;
  }

  get held(): number {
    return this.#body + this.#headers;
  }

  requireArena(bytes: number): void {
    this.#caller.requireArena(bytes);
  }

  /** Throws if a body of `length` bytes does not fit now. The bytes are reserved later, as they arrive. */
  requireRoomFor(length: number): void {
    this.#requireCapacity(length);
    this.#caller.requireHeap(length);
    this.#budget.requireFree(length, this);
  }

  /** Grows the reservation to `bytes` of JSON text in total. Throws OVERLOADED, or PAYLOAD_TOO_LARGE if they can never fit. */
  growToText(bytes: number): void {
    const missing = bytes - this.#body;
    if (missing <= 0) return;
    this.#requireCapacity(bytes + this.#headers);
    this.#caller.requireHeap(missing);
    this.#budget.reserve(missing, this);
    this.#body = bytes;
  }

  /** Grows the reservation to `count` values and `stringBytes` of MessagePack strings in total. */
  growToValues(count: number, stringBytes: number): void {
    this.growToText(count * UNITS_PER_VALUE + Math.ceil(stringBytes / PLAIN_BYTES_PER_UNIT));
  }

  /** Grows the reservation to `bytes` of a reply outside the arena. */
  growToReply(bytes: number): void {
    this.growToText(Math.ceil(bytes / PLAIN_BYTES_PER_UNIT));
  }

  /** Reserves heap for the header of one more blob. */
  addHeader(bytes: number): void {
    this.#requireCapacity(this.#body + this.#headers + bytes);
    this.#caller.requireHeap(bytes);
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
