/**
 * The shared memory that bytes are received into, computed in and sent from: one shared WebAssembly.Memory, given out in
 * leases. A request holds one lease; the sum of all leases never passes the capacity, and nothing waits for room.
 */
import { StepdError } from "../errors/errors.ts";
import { Outflow } from "../errors/outflow.ts";

const MIB = 2 ** 20;
const PAGE = 65536;

/** Every block starts at a multiple of this: a cache line. */
const ALIGNMENT = 64;

/** The lowest addresses are never given out, so that address 0 can mean "absent" to a kernel. */
const LOWEST = 1024;

const MAX_PAGES = 65536;

/** What a call asks for first, if it is larger than this, leaves the part free that is kept for others. */
const SMALL_BYTES = 65536;

interface Block {
  start: number;
  end: number;
}

const sizeOf = ({ start, end }: Block): number => end - start;

const roundUp = (bytes: number): number => Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;

/** Counts what a call needs of the JavaScript heap. Throws OVERLOADED or PAYLOAD_TOO_LARGE. */
export interface HeapMeter {
  /** Room for the header of one more blob. */
  addHeader(bytes: number): void;
}

const UNMETERED: HeapMeter = { addHeader: () => {} };

export class Arena {
  readonly memory: WebAssembly.Memory;
  /** All of the memory. `bytes.fill(chunk, start, end)` copies at full speed at any alignment; `set` and `copy` do not (10 times slower, measured). */
  readonly bytes: Buffer;
  /** Where the reserved bytes are. */
  readonly reserved: number;
  /** Bytes that leases can hold together. */
  readonly capacity: number;
  readonly #keptFree: number;
  #free: Block[];
  #used = 0;
  #highWater = 0;
  #leases = 0;
  readonly #outflow = new Outflow();
  /** Frees another call's memory for `asking`; false if there is none to free. Set by the owner of calls whose memory may be taken back. */
  reclaim: (asking: object) => boolean = () => false;

  /**
   * Makes an arena with room for leases of `mebibytes` MiB and `reservedBytes` beside them, within the 4 GiB of WebAssembly.
   * Large calls leave `keptFree` of it (0 to 1) to small ones, and to what calls in hand need for their results.
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

  /** Leases that are held now. */
  get leases(): number {
    return this.#leases;
  }

  /** Opens a lease with a first block of `bytes`, or without one for 0. Throws PAYLOAD_TOO_LARGE for what can never fit, OVERLOADED for what does not fit now. */
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

  /** Takes the lowest block that is large enough: low addresses are warm in memory. `held` is what the lease has already; `isFirst` says that the call brings this, and not that it needs it. */
  take(bytes: number, asking: Lease, held: number, isFirst = held === 0): Block {
    const size = roundUp(Math.max(bytes, 1));
    const find = (): number => {
      const isGreedy = isFirst && size > SMALL_BYTES && size > this.#roomFor(held);
      return isGreedy ? -1 : this.#free.findIndex(({ start, end }) => end - start >= size);
    };
    let index = find();
    while (index < 0 && held + size <= this.capacity && this.reclaim(asking)) index = find();
    const hole = this.#free[index];
    if (!hole) throw this.#refusal(bytes, size, held);
    const block = { start: hole.start, end: hole.start + size };
    hole.start = block.end;
    if (hole.start === hole.end) this.#free.splice(index, 1);
    this.#used += size;
    this.#highWater = Math.max(this.#highWater, this.#used);
    return block;
  }

  /** Lengthens a block in place to `most` bytes or to what is free behind it. Does nothing where that is less than `least`. */
  extend(block: Block, least: number, most: number): void {
    const room = this.#roomFor(sizeOf(block));
    if (least - sizeOf(block) > room) return;
    const index = this.#free.findIndex(({ start }) => start === block.end);
    const hole = this.#free[index];
    if (!hole || hole.end - block.start < least) return;
    const end = Math.min(Math.max(block.start + roundUp(Math.min(most, sizeOf(block) + room)), block.end), hole.end);
    this.#used += end - block.end;
    this.#highWater = Math.max(this.#highWater, this.#used);
    block.end = end;
    hole.start = end;
    if (hole.start === hole.end) this.#free.splice(index, 1);
  }

  /** Bytes that a call which holds `own` may take in its large blocks: everything, where the others hold no more than the part that is kept free, else up to that part. */
  #roomFor(own: number): number {
    return this.#used - own <= this.#keptFree ? this.capacity : this.capacity - this.#keptFree - this.#used;
  }

  /** Puts a block back and joins it with its free neighbours. */
  give({ start, end }: Block): void {
    this.#used -= end - start;
    this.#outflow.add(end - start);
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
    // What does not fit beside the call's own blocks will not fit when it is sent again, however empty the arena is then.
    if (held + size > this.capacity) {
      return new StepdError("PAYLOAD_TOO_LARGE", `The call needs ${found} at once; this server's arena holds ${this.capacity}`, {
        expected: `at most ${this.capacity} bytes`,
        found,
      });
    }
    return new StepdError("OVERLOADED", `The call needs ${bytes} more bytes; ${this.capacity - this.#used} of ${this.capacity} are free now`, {
      retry_after: this.#outflow.retryAfter(Math.max(bytes - (this.capacity - this.#used), 1)),
      found,
    });
  }
}

/** One request's memory: a few blocks that are given back together, on every path out (`using`). */
export class Lease implements Disposable {
  readonly arena: Arena;
  /** What the call takes beside the arena. */
  readonly heap: HeapMeter;
  readonly #blocks: Block[] = [];
  readonly #onRelease: () => void;
  /** Bytes of all blocks, kept as a sum: adding them up for each of 131,072 blocks took 44 s (measured). */
  #held = 0;
  #isReleased = false;

  constructor(arena: Arena, onRelease: () => void, heap: HeapMeter = UNMETERED) {
    this.arena = arena;
    this.heap = heap;
    this.#onRelease = onRelease;
  }

  /** All of the arena's memory; addresses from `alloc` are offsets in it. */
  get bytes(): Buffer {
    return this.arena.bytes;
  }

  /** The address of the first block. */
  get start(): number {
    return this.#blocks[0]?.start ?? 0;
  }

  /** The address of `bytes` more bytes, which still hold what their last user left. */
  alloc(bytes: number): number {
    return this.#take(bytes);
  }

  /** As alloc, for what a call brings beside its body: large calls leave room to small ones. */
  allocInput(bytes: number): number {
    return this.#take(bytes, true);
  }

  #take(bytes: number, isFirst?: true): number {
    if (this.#isReleased) throw new Error("this lease has been released");
    const block = this.arena.take(bytes, this, this.#held, isFirst);
    this.#blocks.push(block);
    this.#held += sizeOf(block);
    return block.start;
  }

  /** The address of `bytes` more bytes of zeros. */
  allocZeros(bytes: number): number {
    const start = this.alloc(bytes);
    this.bytes.fill(0, start, start + bytes);
    return start;
  }

  /**
   * Makes the block at `start` larger: to `most` bytes where there is room, else to at least `least`. It stays where it is if
   * it can; else it moves, with the first `kept` bytes of its content. Returns where it is and how large.
   */
  grow(start: number, kept: number, least: number, most: number): { readonly start: number; readonly bytes: number } {
    const index = this.#blocks.findIndex((block) => block.start === start);
    const old = this.#blocks[index];
    if (!old) throw new Error(`no block of this lease starts at ${start}`);
    this.#held -= sizeOf(old);
    this.arena.extend(old, least, most);
    this.#held += sizeOf(old);
    if (sizeOf(old) >= least) return { start, bytes: sizeOf(old) };
    // Alone in the arena the block would have grown in place, so that it counts only once here.
    const grown = this.arena.take(least, this, this.#held - sizeOf(old));
    this.bytes.copyWithin(grown.start, start, start + kept);
    this.#blocks[index] = grown;
    this.#held -= sizeOf(old);
    this.arena.give(old);
    this.arena.extend(grown, least, most);
    this.#held += sizeOf(grown);
    return { start: grown.start, bytes: sizeOf(grown) };
  }

  /** Gives back what the block at `start` has beyond its first `bytes`. */
  trim(start: number, bytes: number): void {
    const block = this.#blocks.find((candidate) => candidate.start === start);
    if (!block) return;
    const end = start + roundUp(Math.max(bytes, 1));
    if (end >= block.end) return;
    this.arena.give({ start: end, end: block.end });
    this.#held -= block.end - end;
    block.end = end;
  }

  /** A view of this lease's memory, without a copy. */
  view(start: number, bytes: number): Buffer {
    return this.bytes.subarray(start, start + bytes);
  }

  release(): void {
    if (this.#isReleased) return;
    this.#isReleased = true;
    // Without its blocks nothing can be given back a second time, whoever still has the lease.
    for (const block of this.#blocks.splice(0)) this.arena.give(block);
    this.#onRelease();
  }

  [Symbol.dispose](): void {
    this.release();
  }
}
