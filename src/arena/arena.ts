/**
 * The arena: one shared WebAssembly.Memory in which requests are received, computed and answered. Each request holds one lease.
 * All leases together never exceed the capacity; a request without room is refused at once instead of waiting.
 */

import { DrainRate } from "../errors/drain-rate.ts";
import { StepdError } from "../errors/errors.ts";

const MIB = 2 ** 20;
const PAGE = 65536;

/** Every block starts at a multiple of a cache line. */
const ALIGNMENT = 64;

/** Lower addresses are never allocated, so that address 0 can mean "absent" to a kernel. */
const LOWEST = 1024;

const MAX_PAGES = 65536;

/** Input blocks up to this size may use the part of the arena that is reserved for small calls. */
const SMALL_BYTES = 65536;

interface Block {
  start: number;
  end: number;
}

const sizeOf = ({ start, end }: Block): number => end - start;

const roundUp = (bytes: number): number => Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;

/** Limits a call's use of the JavaScript heap. Throws OVERLOADED or PAYLOAD_TOO_LARGE. */
export interface HeapMeter {
  /** Reserves heap for the header of one more blob. */
  addHeader(bytes: number): void;
}

const UNMETERED: HeapMeter = { addHeader: () => {} };

export class Arena {
  readonly memory: WebAssembly.Memory;
  /** The whole memory. Copy into it with `bytes.fill(chunk, start, end)`: at odd alignments `set` and `copy` are 10 times slower (measured). */
  readonly bytes: Buffer;
  /** The address of the reserved bytes. */
  readonly reserved: number;
  /** The most bytes of all leases together. */
  readonly capacity: number;
  readonly #keptFree: number;
  #free: Block[];
  #used = 0;
  #highWater = 0;
  #leases = 0;
  readonly #drainRate = new DrainRate();
  /** Frees the memory of a call other than `requester`; false if there is none to free. Set by the receiver, which may evict a stalled body. */
  reclaim: (requester: object) => boolean = () => false;

  /**
   * Creates an arena of `mebibytes` MiB for leases, plus `reservedBytes`, within WebAssembly's limit of 4 GiB. Large inputs leave
   * the fraction `keptFree` of it (0 to 1) to small calls and to the results of admitted calls.
   */
  constructor(mebibytes: number, reservedBytes: number, keptFree = 0) {
    const pages = Math.min(Math.ceil((LOWEST + reservedBytes + mebibytes * MIB) / PAGE), MAX_PAGES);
    this.reserved = LOWEST;
    const start = roundUp(LOWEST + reservedBytes);
    const end = Math.min(start + mebibytes * MIB, pages * PAGE);
    this.memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
    this.bytes = Buffer.from(this.memory.buffer);
    this.#free = [{ start, end }];
    this.capacity = end - start;
    this.#keptFree = this.capacity * keptFree;
  }

  get used(): number {
    return this.#used;
  }

  get highWater(): number {
    return this.#highWater;
  }

  /** The number of open leases. */
  get leases(): number {
    return this.#leases;
  }

  /** Opens a lease with a first block of `bytes`, or without a block for 0. Throws PAYLOAD_TOO_LARGE if it can never fit, OVERLOADED if it does not fit now. */
  lease(bytes: number, heap: HeapMeter = UNMETERED): Lease {
    const lease = new Lease(
      this,
      () => {
        this.#leases--;
      },
      heap,
    );
    this.#leases++;
    try {
      if (bytes > 0) lease.alloc(bytes);
    } catch (error) {
      lease.release();
      throw error;
    }
    return lease;
  }

  /** Allocates the lowest free block that is large enough, because low addresses are likely to be in the cache. `held` is the size of the lease; `isInput` marks bytes that the call sends. */
  allocate(bytes: number, requester: Lease, held: number, isInput = held === 0): Block {
    const size = roundUp(Math.max(bytes, 1));
    const find = (): number => {
      const exceedsShare = isInput && size > SMALL_BYTES && size > this.#roomFor(held);
      return exceedsShare ? -1 : this.#free.findIndex(({ start, end }) => end - start >= size);
    };
    let index = find();
    while (index < 0 && held + size <= this.capacity && this.reclaim(requester)) index = find();
    const hole = this.#free[index];
    if (!hole) throw this.#refusal(bytes, size, held);
    const block = { start: hole.start, end: hole.start + size };
    hole.start = block.end;
    if (hole.start === hole.end) this.#free.splice(index, 1);
    this.#used += size;
    this.#highWater = Math.max(this.#highWater, this.#used);
    return block;
  }

  /** Extends a block in place, to `maxBytes` or to the end of the free memory behind it. Does nothing if that is less than `minBytes`. */
  extend(block: Block, minBytes: number, maxBytes: number): void {
    const room = this.#roomFor(sizeOf(block));
    if (minBytes - sizeOf(block) > room) return;
    const index = this.#free.findIndex(({ start }) => start === block.end);
    const hole = this.#free[index];
    if (!hole || hole.end - block.start < minBytes) return;
    const end = Math.min(Math.max(block.start + roundUp(Math.min(maxBytes, sizeOf(block) + room)), block.end), hole.end);
    this.#used += end - block.end;
    this.#highWater = Math.max(this.#highWater, this.#used);
    block.end = end;
    hole.start = end;
    if (hole.start === hole.end) this.#free.splice(index, 1);
  }

  /** The bytes available for a large input of a call that holds `own`. The whole arena if the other calls hold little, else what is free beyond `keptFree`. */
  #roomFor(own: number): number {
    return this.#used - own <= this.#keptFree ? this.capacity : this.capacity - this.#keptFree - this.#used;
  }

  /** Frees a block and merges it with its free neighbours. */
  free({ start, end }: Block): void {
    this.#used -= end - start;
    this.#drainRate.add(end - start);
    let index = this.#free.findIndex((hole) => hole.start > start);
    if (index < 0) index = this.#free.length;
    const before = this.#free[index - 1];
    const after = this.#free[index];
    const joinsBefore = before?.end === start;
    const joinsAfter = after?.start === end;
    if (joinsBefore && joinsAfter) {
      before.end = after.end;
      this.#free.splice(index, 1);
    } else if (joinsBefore) before.end = end;
    else if (joinsAfter) after.start = start;
    else this.#free.splice(index, 0, { start, end });
  }

  #refusal(bytes: number, size: number, held: number): StepdError {
    const found = `${held + bytes} bytes`;
    // With the call's own blocks this exceeds even an empty arena, so a retry cannot succeed.
    if (held + size > this.capacity) {
      return new StepdError("PAYLOAD_TOO_LARGE", `The call needs ${found} at once; this server's arena holds ${this.capacity}`, {
        expected: `at most ${this.capacity} bytes`,
        found,
      });
    }
    return new StepdError("OVERLOADED", `The call needs ${bytes} more bytes; ${this.capacity - this.#used} of ${this.capacity} are free now`, {
      retry_after: this.#drainRate.retryAfter(Math.max(bytes - (this.capacity - this.#used), 1)),
      found,
    });
  }
}

/** The memory of one request: blocks that are freed together when the lease is disposed (`using`). */
export class Lease implements Disposable {
  readonly arena: Arena;
  /** The limit on the call's use of the JavaScript heap. */
  readonly heap: HeapMeter;
  readonly #blocks: Block[] = [];
  readonly #onRelease: () => void;
  /** Bytes of all blocks, as a running sum: adding up 131,072 blocks at every allocation took 44 s (measured). */
  #held = 0;
  #isReleased = false;

  constructor(arena: Arena, onRelease: () => void, heap: HeapMeter = UNMETERED) {
    this.arena = arena;
    this.heap = heap;
    this.#onRelease = onRelease;
  }

  /** The whole memory of the arena. Addresses from `alloc` are offsets in it. */
  get bytes(): Buffer {
    return this.arena.bytes;
  }

  /** The address of the first block. */
  get start(): number {
    return this.#blocks[0]?.start ?? 0;
  }

  /** Allocates `bytes` and returns their address. The memory is not cleared. */
  alloc(bytes: number): number {
    return this.#allocate(bytes);
  }

  /** As `alloc`, for input beside the body. Large inputs leave `keptFree` of the arena to small calls. */
  allocInput(bytes: number): number {
    return this.#allocate(bytes, true);
  }

  #allocate(bytes: number, isInput?: true): number {
    if (this.#isReleased) throw new Error("this lease has been released");
    const block = this.arena.allocate(bytes, this, this.#held, isInput);
    this.#blocks.push(block);
    this.#held += sizeOf(block);
    return block.start;
  }

  /** Allocates `bytes` of zeros and returns their address. */
  allocZeros(bytes: number): number {
    const start = this.alloc(bytes);
    this.bytes.fill(0, start, start + bytes);
    return start;
  }

  /**
   * Grows the block at `start` to `maxBytes` if there is room, else to at least `minBytes`. If it cannot grow in place it moves,
   * with the first `contentBytes` of its content. Returns its address and size.
   */
  grow(start: number, contentBytes: number, minBytes: number, maxBytes: number): { readonly start: number; readonly bytes: number } {
    const index = this.#blocks.findIndex((block) => block.start === start);
    const old = this.#blocks[index];
    if (!old) throw new Error(`no block of this lease starts at ${start}`);
    this.#held -= sizeOf(old);
    this.arena.extend(old, minBytes, maxBytes);
    this.#held += sizeOf(old);
    if (sizeOf(old) >= minBytes) return { start, bytes: sizeOf(old) };
    // The old block is not counted: alone in the arena it would have grown in place.
    const grown = this.arena.allocate(minBytes, this, this.#held - sizeOf(old));
    this.bytes.copyWithin(grown.start, start, start + contentBytes);
    this.#blocks[index] = grown;
    this.#held -= sizeOf(old);
    this.arena.free(old);
    this.arena.extend(grown, minBytes, maxBytes);
    this.#held += sizeOf(grown);
    return { start: grown.start, bytes: sizeOf(grown) };
  }

  /** Frees the part of the block at `start` beyond its first `bytes`. */
  trim(start: number, bytes: number): void {
    const block = this.#blocks.find((candidate) => candidate.start === start);
    if (!block) return;
    const end = start + roundUp(Math.max(bytes, 1));
    if (end >= block.end) return;
    this.arena.free({ start: end, end: block.end });
    this.#held -= block.end - end;
    block.end = end;
  }

  /** A view of the arena's memory, without a copy. */
  view(start: number, bytes: number): Buffer {
    return this.bytes.subarray(start, start + bytes);
  }

  release(): void {
    if (this.#isReleased) return;
    this.#isReleased = true;
    // Empties the list, so that a released lease cannot free its blocks again.
    for (const block of this.#blocks.splice(0)) this.arena.free(block);
    this.#onRelease();
  }

  [Symbol.dispose](): void {
    this.release();
  }
}
