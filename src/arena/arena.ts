/**
 * The arena is one shared WebAssembly.Memory, in which requests are received, computed and answered. Each request holds one lease. All
 * leases together never exceed the capacity. A request that does not fit is rejected at once instead of waiting.
 */

import { DrainRate } from "../errors/drain-rate.ts";
import { StepdError } from "../errors/errors.ts";

const MIB = 2 ** 20;
const PAGE_BYTES = 65536;

/** Every block starts at a cache line. */
const ALIGNMENT = 64;

/** Lower addresses are never allocated, so address 0 can mean an absent operand to a kernel. */
const MIN_ADDRESS = 1024;

const MAX_PAGES = 65536;

/** Input blocks up to this size may use the part of the arena that large inputs leave free. */
const MAX_SMALL_INPUT_BYTES = 65536;

interface Block {
  start: number;
  end: number;
}

const sizeOf = ({ start, end }: Block): number => end - start;

const roundUp = (bytes: number): number => Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;

/** Limits a call's use of memory. Its methods throw OVERLOADED or PAYLOAD_TOO_LARGE. */
export interface Meter {
  /** Reserves heap for the header of one more blob. */
  addHeader(bytes: number): void;
  /** Throws OVERLOADED if `bytes` more of the arena exceed the limit of the call's caller. */
  requireArena(bytes: number): void;
}

const UNMETERED: Meter = { addHeader: () => {}, requireArena: () => {} };

export class Arena {
  readonly memory: WebAssembly.Memory;
  /** The whole memory. Copy into it with `bytes.fill(chunk, start, end)`: `set` and `copy` take 10 times as long at odd alignments (measured). */
  readonly bytes: Buffer;
  /** The reserved bytes start at this address. */
  readonly reserved: number;
  /** All leases together hold at most this many bytes. */
  readonly capacity: number;
  readonly #smallCallBytes: number;
  #free: Block[];
  #used = 0;
  #retained = 0;
  #highWater = 0;
  #leases = 0;
  readonly #drainRate = new DrainRate();
  /** Frees memory of a call other than that of the meter, which needs `bytes`; or returns false. http/ sets this hook. */
  reclaim: (requester: Meter, bytes: number) => boolean = () => false;
  /** Frees retained memory, least recently used first; false if there is none left. Set by the cache of results. */
  evict: () => boolean = () => false;

  /**
   * Creates an arena of `mebibytes` MiB for leases plus `reservedBytes`, within WebAssembly's limit of 4 GiB. Large inputs leave the
   * fraction `smallCallShare` (0 to 1) free for small calls and for the results of admitted calls.
   */
  constructor(mebibytes: number, reservedBytes: number, smallCallShare = 0) {
    const pages = Math.min(Math.ceil((MIN_ADDRESS + reservedBytes + mebibytes * MIB) / PAGE_BYTES), MAX_PAGES);
    this.reserved = MIN_ADDRESS;
    const start = roundUp(MIN_ADDRESS + reservedBytes);
    const end = Math.min(start + mebibytes * MIB, pages * PAGE_BYTES);
    this.memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
    this.bytes = Buffer.from(this.memory.buffer);
    this.#free = [{ start, end }];
    this.capacity = end - start;
    this.#smallCallBytes = this.capacity * smallCallShare;
  }

  /** The bytes of all leases. Retained memory does not count, because any call may have it. */
  get used(): number {
    return this.#used - this.#retained;
  }

  /** The bytes of all retained memory. */
  get retained(): number {
    return this.#retained;
  }

  get highWater(): number {
    return this.#highWater;
  }

  get openLeases(): number {
    return this.#leases;
  }

  /** Opens a lease with a first block of `bytes`, if not 0. Throws PAYLOAD_TOO_LARGE if the bytes can never fit, OVERLOADED if not now. */
  lease(bytes: number, meter: Meter = UNMETERED): Lease {
    const lease = new Lease(
      this,
      () => {
        this.#leases--;
      },
      meter,
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

  /**
   * Allocates the lowest free block that is large enough, because low addresses are likely to be in the cache. `held` is the size of
   * the requester's lease. `isInput` marks bytes that the call sends.
   */
  allocate(bytes: number, requester: Lease, held: number, isInput = held === 0): Block {
    const size = roundUp(Math.max(bytes, 1));
    const isAllowed = (): boolean => !isInput || size <= MAX_SMALL_INPUT_BYTES || size <= this.#roomFor(held);
    const find = (): number => (isAllowed() ? this.#free.findIndex(({ start, end }) => end - start >= size) : -1);
    // A call that has no room beside the other leases evicts nothing, because it is refused anyway.
    const evict = (): boolean => isAllowed() && this.used + size <= this.capacity && this.evict();
    let index = find();
    while (index < 0 && held + size <= this.capacity && (evict() || this.reclaim(requester.meter, size))) index = find();
    const hole = this.#free[index];
    if (!hole) throw this.#allocationError(bytes, size, held);
    const block = { start: hole.start, end: hole.start + size };
    hole.start = block.end;
    if (hole.start === hole.end) this.#free.splice(index, 1);
    this.#used += size;
    this.#highWater = Math.max(this.#highWater, this.used);
    return block;
  }

  /** Extends a block in place, up to `maxBytes` or the end of the free memory behind it. Does nothing if `minBytes` do not fit. */
  extend(block: Block, minBytes: number, maxBytes: number): void {
    const room = this.#roomFor(sizeOf(block));
    if (minBytes - sizeOf(block) > room) return;
    const index = this.#free.findIndex(({ start }) => start === block.end);
    const hole = this.#free[index];
    if (!hole || hole.end - block.start < minBytes) return;
    const end = Math.min(Math.max(block.start + roundUp(Math.min(maxBytes, sizeOf(block) + room)), block.end), hole.end);
    this.#used += end - block.end;
    this.#highWater = Math.max(this.#highWater, this.used);
    block.end = end;
    hole.start = end;
    if (hole.start === hole.end) this.#free.splice(index, 1);
  }

  /** Returns the bytes that a call may use for large inputs. `own` is the size of its lease. If others hold little, that is the whole arena. */
  #roomFor(own: number): number {
    return this.used - own <= this.#smallCallBytes ? this.capacity : this.capacity - this.#smallCallBytes - this.used;
  }

  /** Counts a block as retained instead of leased. */
  retain(block: Block): void {
    this.#retained += sizeOf(block);
  }

  /** Frees a retained block. */
  freeRetained(block: Block): void {
    this.#retained -= sizeOf(block);
    this.free(block);
  }

  /** Frees a block and merges it with free neighbours. */
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

  #allocationError(bytes: number, size: number, held: number): StepdError {
    const found = `${held + bytes} bytes`;
    // The call would not fit even into an empty arena, so a retry cannot succeed.
    if (held + size > this.capacity) {
      return new StepdError("PAYLOAD_TOO_LARGE", `The call needs ${found} at once; this server's arena holds ${this.capacity}`, {
        expected: `at most ${this.capacity} bytes`,
        found,
      });
    }
    return new StepdError("OVERLOADED", `The call needs ${bytes} more bytes; ${this.capacity - this.used} of ${this.capacity} are free now`, {
      limit: "server",
      retry_after: this.#drainRate.retryAfter(Math.max(bytes - (this.capacity - this.used), 1)),
      found,
    });
  }
}

/** The memory of one request. All its blocks are freed when the lease is disposed (`using`). */
export class Lease implements Disposable {
  readonly arena: Arena;
  /** Limits the call's use of memory. */
  readonly meter: Meter;
  readonly #blocks: Block[] = [];
  readonly #shared: Retained[] = [];
  readonly #onRelease: () => void;
  /** The running sum of the blocks' bytes. Adding up 131,072 blocks at every allocation took 44 s (measured). */
  #held = 0;
  #isReleased = false;

  constructor(arena: Arena, onRelease: () => void, meter: Meter = UNMETERED) {
    this.arena = arena;
    this.meter = meter;
    this.#onRelease = onRelease;
  }

  /** The memory of the whole arena. Addresses from `alloc` are offsets in it. */
  get bytes(): Buffer {
    return this.arena.bytes;
  }

  /** The bytes of the lease's blocks. */
  get held(): number {
    return this.#held;
  }

  /** The address of the lease's first block. */
  get start(): number {
    return this.#blocks[0]?.start ?? 0;
  }

  /** Allocates `bytes` and returns their address. The memory is not cleared. */
  alloc(bytes: number): number {
    return this.#allocate(bytes);
  }

  /** Allocates `bytes` for input that is not part of the body, such as files. Large inputs leave memory free for small calls. */
  allocInput(bytes: number): number {
    return this.#allocate(bytes, true);
  }

  #allocate(bytes: number, isInput?: true): number {
    if (this.#isReleased) throw new Error("this lease has been released");
    this.meter.requireArena(bytes);
    const block = this.arena.allocate(bytes, this, this.#held, isInput);
    this.#blocks.push(block);
    this.#held += sizeOf(block);
    return block.start;
  }

  /** Allocates `bytes` zeros and returns their address. */
  allocZeros(bytes: number): number {
    const start = this.alloc(bytes);
    this.bytes.fill(0, start, start + bytes);
    return start;
  }

  /**
   * Grows the block at `start` to `maxBytes` if there is room, else to at least `minBytes`. A block that cannot grow in place moves
   * with its first `contentBytes`. Returns the block's address and size.
   */
  grow(start: number, contentBytes: number, minBytes: number, maxBytes: number): { readonly start: number; readonly bytes: number } {
    const index = this.#blocks.findIndex((block) => block.start === start);
    const old = this.#blocks[index];
    if (!old) throw new Error(`no block of this lease starts at ${start}`);
    this.meter.requireArena(minBytes - sizeOf(old));
    this.#held -= sizeOf(old);
    this.arena.extend(old, minBytes, maxBytes);
    this.#held += sizeOf(old);
    if (sizeOf(old) >= minBytes) return { start, bytes: sizeOf(old) };
    // The old block does not count as held, because a block alone in the arena would have grown in place.
    const grown = this.arena.allocate(minBytes, this, this.#held - sizeOf(old));
    this.bytes.copyWithin(grown.start, start, start + contentBytes);
    this.#blocks[index] = grown;
    this.#held -= sizeOf(old);
    this.arena.free(old);
    this.arena.extend(grown, minBytes, maxBytes);
    this.#held += sizeOf(grown);
    return { start: grown.start, bytes: sizeOf(grown) };
  }

  /** Frees the part of the block at `start` after its first `bytes`. */
  trim(start: number, bytes: number): void {
    const block = this.#blocks.find((candidate) => candidate.start === start);
    if (!block) return;
    const end = start + roundUp(Math.max(bytes, 1));
    if (end >= block.end) return;
    this.arena.free({ start: end, end: block.end });
    this.#held -= block.end - end;
    block.end = end;
  }

  /** Returns a view of the arena's memory, without a copy. */
  view(start: number, bytes: number): Buffer {
    return this.bytes.subarray(start, start + bytes);
  }

  /**
   * Moves ranges of this lease's blocks into memory that outlives it. The caller must release that memory; until the end of this
   * lease the ranges can still be read. The cache lines of a range belong to it, so ranges that share one are retained together.
   */
  retain(ranges: readonly Range[]): Retained {
    const lines = ranges.filter(({ bytes }) => bytes > 0).map(({ start, bytes }) => ({ start: start - (start % ALIGNMENT), end: roundUp(start + bytes) }));
    const blocks: Block[] = [];
    for (const line of lines.sort((a, b) => a.start - b.start)) {
      const last = blocks.at(-1);
      if (last && line.start < last.end) last.end = Math.max(last.end, line.end);
      else blocks.push(line);
    }
    for (const block of blocks) this.#cut(block);
    const memory = new Retained(this.arena, blocks);
    this.share(memory);
    return memory;
  }

  /** Keeps retained memory until the end of this lease. */
  share(memory: Retained): void {
    memory.share();
    this.#shared.push(memory);
  }

  /** Removes a range from the block that contains it. What lies before and behind the range stays in the lease. */
  #cut({ start, end }: Block): void {
    const index = this.#blocks.findIndex((block) => block.start <= start && end <= block.end);
    const whole = this.#blocks[index];
    if (!whole) throw new Error(`no block of this lease contains ${start} to ${end}`);
    const rest = [
      { start: whole.start, end: start },
      { start: end, end: whole.end },
    ];
    this.#blocks.splice(index, 1, ...rest.filter((block) => sizeOf(block) > 0));
    this.#held -= end - start;
  }

  release(): void {
    if (this.#isReleased) return;
    this.#isReleased = true;
    // `splice` empties the list, so a released lease cannot free its blocks again.
    for (const block of this.#blocks.splice(0)) this.arena.free(block);
    for (const memory of this.#shared.splice(0)) memory.release();
    this.#onRelease();
  }

  [Symbol.dispose](): void {
    this.release();
  }
}

/** A range of the arena. */
export interface Range {
  readonly start: number;
  readonly bytes: number;
}

/** Memory that outlives the lease that it comes from. It is freed when its last holder releases it. */
export class Retained {
  readonly #arena: Arena;
  readonly #blocks: readonly Block[];
  #holders = 1;

  constructor(arena: Arena, blocks: readonly Block[]) {
    this.#arena = arena;
    this.#blocks = blocks;
    for (const block of blocks) arena.retain(block);
  }

  /** Adds a holder. */
  share(): void {
    if (this.#holders === 0) throw new Error("this memory has been freed");
    this.#holders++;
  }

  release(): void {
    if (--this.#holders > 0) return;
    for (const block of this.#blocks) this.#arena.freeRetained(block);
  }
}

/** A blob of retained memory. A call must not overwrite it, because other calls may read it. */
export class RetainedBlob {
  readonly bytes: Buffer;
  /** The SHA-256 of the bytes in hexadecimal, if a receipt has needed it. */
  sha256: string | undefined;

  constructor(bytes: Buffer, sha256?: string) {
    this.bytes = bytes;
    this.sha256 = sha256;
  }
}
