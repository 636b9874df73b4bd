/**
 * Sets the rate that bodies and replies must keep while they hold memory. Their length and the request timeout set the rate. A transfer
 * that is behind its rate is late: it ends when another call needs its memory, or after a grace period.
 */
import type { Socket } from "node:net";
import type { Response } from "express";
import type { Limits } from "./_types.ts";
import type { HeapShare } from "./heap.ts";

/** The average rate is enforced after this grace period in seconds. */
const GRACE_S = 10;

/** The rate of each transfer is checked at this interval in ms. */
const CHECK_MS = 250;
/** At least this many rate checks happen within a request timeout, so a short timeout shortens the interval. */
const CHECKS_PER_TIMEOUT = 10;

/** Credit is the time by which a transfer is ahead of its rate. The initial credit in seconds covers the round trip of `100 Continue`. */
const INITIAL_CREDIT_S = 2;

/** A transfer gains at most this many seconds of credit, so it may pause for as long. */
const MAX_CREDIT_S = 10;

/** A body on its way in, or a reply on its way out. */
export abstract class Transfer {
  readonly heap: HeapShare | undefined;
  /** The bytes that are reserved for it. */
  room: number;
  readonly #start = performance.now();
  /** The number of bytes that the last check saw. */
  #lastMoved = 0;
  /** The age in seconds. Only check periods count, so the caller does not pay for time in which this thread was busy. */
  #age = 0;
  /** The seconds by which the transfer is ahead of its rate. */
  #credit = INITIAL_CREDIT_S;

  constructor(heap: HeapShare | undefined, room: number) {
    this.heap = heap;
    this.room = room;
  }

  /** Returns the bytes that the network has moved so far. Undefined while that does not depend on the caller. */
  protected abstract measure(): number | undefined;

  /** Ends the transfer and frees its memory at once. */
  abstract cut(expected: string): void;

  /** True if the transfer is behind its rate. */
  get isLate(): boolean {
    return this.#credit <= 0;
  }

  /** Updates the credit and ends a slow transfer. A late check counts as one period, because the bytes that moved meanwhile are not counted. */
  check(periodS: number, timeoutS: number, minRate: number): void {
    if (performance.now() - this.#start >= timeoutS * 1000) this.cut(`to be in after ${timeoutS} s (STEPD_REQUEST_TIMEOUT_MS)`);
    else this.#checkRate(this.measure(), periodS, Math.max(minRate, this.room / timeoutS, 1));
  }

  #checkRate(moved: number | undefined, periodS: number, rate: number): void {
    if (moved === undefined) return;
    this.#age += periodS;
    this.#credit = Math.max(0, Math.min(MAX_CREDIT_S, this.#credit + (moved - this.#lastMoved) / rate - periodS));
    this.#lastMoved = moved;
    if (this.#age > GRACE_S && moved < this.#age * rate)
      this.cut(`at least ${Math.ceil(rate)} bytes a second, by its length, STEPD_REQUEST_TIMEOUT_MS and STEPD_MIN_BODY_RATE`);
  }
}

/** A reply that the operating system does not take at once. */
export class OutgoingReply extends Transfer {
  readonly #res: Response;
  readonly #socket: Socket;
  readonly #onCut: () => void;
  /** The bytes that the connection had sent before this reply. Its own are written at once, when it is its turn. */
  #sentBefore: number | undefined;
  #lastQueued = 0;
  /** The sum of the decreases of the queue. */
  #drained = 0;

  /** `onCut` must end the connection and free the memory. */
  constructor(res: Response, length: number, heap: HeapShare | undefined, onCut: () => void) {
    super(heap, length);
    this.#res = res;
    this.#socket = res.req.socket;
    this.#onCut = onCut;
  }

  /** Returns undefined for a pipelined reply that waits for the replies in front of it. */
  override measure(): number | undefined {
    // Node reads this field, too, to see whether a connection is idle. The public lengths change only at the end of a write.
    const handle = (this.#socket as { readonly _handle?: Handle })._handle;
    if (!this.#res.socket || handle?.writeQueueSize === undefined) return undefined;
    this.#sentBefore ??= this.#socket.bytesWritten - this.room;
    // TLS keeps a whole write in its own queue until its end, however large it is. The queue of the connection below shrinks meanwhile.
    const queued = (handle._parent ?? handle).writeQueueSize ?? 0;
    this.#drained += Math.max(0, this.#lastQueued - queued);
    this.#lastQueued = queued;
    return Math.max(this.#drained, this.#socket.bytesWritten - this.#sentBefore - handle.writeQueueSize);
  }

  override cut(): void {
    this.#onCut();
  }
}

/** A connection in Node's core, with the bytes that wait in it. That of TLS has the one of TCP below it. */
interface Handle {
  readonly writeQueueSize?: number;
  readonly _parent?: Handle;
}

export class Pace {
  readonly #limits: Limits;
  readonly #transfers = new Set<Transfer>();
  /** One timer checks all transfers, because a timer per body would slow down small steps. */
  #timer: NodeJS.Timeout | undefined;

  constructor(limits: Limits) {
    this.#limits = limits;
  }

  /** Watches a transfer until `forget`. */
  watch(transfer: Transfer): void {
    this.#transfers.add(transfer);
    if (this.#timer) return;
    const { requestTimeoutMs, minBodyRate } = this.#limits;
    const periodMs = Math.min(CHECK_MS, Math.ceil(requestTimeoutMs / CHECKS_PER_TIMEOUT));
    this.#timer = setInterval(() => {
      for (const each of this.#transfers) each.check(periodMs / 1000, requestTimeoutMs / 1000, minBodyRate);
      if (this.#transfers.size > 0) return;
      clearInterval(this.#timer);
      this.#timer = undefined;
    }, periodMs).unref();
  }

  forget(transfer: Transfer): void {
    this.#transfers.delete(transfer);
  }

  /** Ends the largest late transfer to free arena memory for another call. Returns false if none is late. */
  freeArena(requester: object): boolean {
    return this.#reclaim(({ heap }) => heap !== undefined && heap !== requester);
  }

  /** Ends the largest late transfer to free memory of the JavaScript heap for another call. */
  freeHeap(requester: object): boolean {
    return this.#reclaim(({ heap }) => heap !== undefined && heap !== requester && heap.held > 0);
  }

  #reclaim(isCandidate: (transfer: Transfer) => boolean): boolean {
    let largest: Transfer | undefined;
    for (const each of this.#transfers) if (each.isLate && isCandidate(each) && (!largest || each.room > largest.room)) largest = each;
    largest?.cut("at the rate that its length and the request timeout ask for, when another call needs its memory");
    return largest !== undefined;
  }
}
