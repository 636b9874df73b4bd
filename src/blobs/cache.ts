/**
 * The cache of results. A result stays in the arena under random handles; the next call names a handle instead of sending the bytes.
 * The cache is off by default and limited in bytes. It frees memory as soon as a call needs it, so a caller must be able to send any
 * blob again. Each caller finds only its own blobs. When the cache is full, the caller that holds the most loses a result.
 */
import { randomBytes } from "node:crypto";
import { LRUCache } from "lru-cache";
import { type Arena, type Lease, type Range, type Retained, RetainedBlob } from "../arena/arena.ts";
import { copyInTurns, type Parts } from "../codec/parts.ts";
import { inTurns, type Task } from "../codec/turns.ts";

/** The random bytes of a handle. */
const HANDLE_BYTES = 16;

/** The blobs of one result. */
export interface CachedResult {
  readonly id: string;
  readonly caller: string | undefined;
  readonly memory: Retained;
  /** The blobs by the field that they had in the reply. */
  readonly blobs: ReadonlyMap<string, RetainedBlob>;
  /** The results from which this result was computed. They are kept until a call uses this result, because the reply with its handle may be lost. */
  sources: readonly CachedResult[];
  /** The latest result that was computed from this result. */
  successor: CachedResult | undefined;
}

export class ResultCache {
  readonly capacity: number;
  readonly #results: LRUCache<string, CachedResult>;
  readonly #usedBy = new Map<string | undefined, number>();
  hits = 0;
  misses = 0;
  evictions = 0;

  /** The cache keeps at most `capacity` bytes of the arena. */
  constructor(arena: Arena, capacity: number) {
    this.capacity = capacity;
    this.#results = new LRUCache({
      maxSize: capacity,
      sizeCalculation: sizeOf,
      dispose: (result, _, reason) => {
        if (reason === "evict") this.evictions++;
        this.#count(result.caller, -sizeOf(result));
        result.memory.release();
      },
    });
    arena.evict = () => this.#evict();
  }

  #count(caller: string | undefined, bytes: number): void {
    const used = this.usedBy(caller) + bytes;
    if (used > 0) this.#usedBy.set(caller, used);
    else this.#usedBy.delete(caller);
  }

  /** Drops the least recently used result of `caller`, or else of the caller that holds the most. Returns false if there is none. */
  #evict(caller = this.#largestCaller()): boolean {
    for (const result of this.#results.rvalues()) {
      if (result?.caller !== caller || !result) continue;
      this.evictions++;
      this.#results.delete(result.id);
      return true;
    }
    return false;
  }

  #largestCaller(): string | undefined {
    let largest: string | undefined;
    for (const [caller, bytes] of this.#usedBy) if (bytes > this.usedBy(largest)) largest = caller;
    return largest;
  }

  /** Bytes of the results of one caller. */
  usedBy(caller: string | undefined): number {
    return this.#usedBy.get(caller) ?? 0;
  }

  /** Bytes in the cache. */
  get used(): number {
    return this.#results.calculatedSize;
  }

  /** Finds the result of a handle and its blob. Keeps them until the end of the lease. */
  get(handle: string, caller: string | undefined, lease: Lease): { readonly result: CachedResult; readonly blob: RetainedBlob } | undefined {
    const [id = "", field = ""] = handle.split(".");
    const result = this.#results.get(id);
    const blob = result?.caller === caller ? result?.blobs.get(field) : undefined;
    if (!result || !blob) {
      this.misses++;
      return undefined;
    }
    this.hits++;
    lease.share(result.memory);
    return { result, blob };
  }

  /** Frees kept gradients. Their caller has them, and so can send them to a second step. */
  releaseGrads(handle: string, caller: string | undefined): void {
    const [id = "", field = ""] = handle.split(".");
    if (field === "grads" && this.#results.peek(id)?.caller === caller) this.#results.delete(id);
  }

  /**
   * Keeps the blobs of a call and returns their handles by field. Blobs in the arena stay in place; others are copied there. `sources`
   * are the cached results that the call read. `digests` are the known digests of blobs by field. The results from which they were computed are freed, because no caller needs them
   * any more. An earlier result of the same sources is freed, too. Returns undefined, and keeps nothing, if the blobs exceed the
   * capacity or the caller's `limit` in bytes. Throws OVERLOADED or PAYLOAD_TOO_LARGE if a copy has no room.
   */
  async keep(
    blobs: Readonly<Record<string, Parts>>,
    sources: readonly CachedResult[],
    caller: string | undefined,
    lease: Lease,
    digests: Readonly<Record<string, string>> = {},
    limit = Number.POSITIVE_INFINITY,
  ): Promise<Readonly<Record<string, string>> | undefined> {
    const fields = Object.entries(blobs);
    const size = Math.max(
      fields.reduce((sum, [, { length }]) => sum + length, 0),
      1,
    );
    if (size > Math.min(this.capacity, limit)) return undefined;
    const views: (readonly [string, Buffer])[] = [];
    for (const [field, blob] of fields) views.push([field, viewOf(blob, lease) ?? (await inTurns(copyOf(blob, lease)))]);
    for (const { sources: earlier, successor } of sources) for (const result of successor ? [...earlier, successor] : earlier) this.#results.delete(result.id);
    const ranges = views.map(([, { byteOffset, length }]): Range => ({ start: byteOffset, bytes: length }));
    const id = randomBytes(HANDLE_BYTES).toString("base64url");
    const retained = views.map(([field, view]) => [field, new RetainedBlob(view, digests[field])] as const);
    const result: CachedResult = { id, caller, memory: lease.retain(ranges), blobs: new Map(retained), sources, successor: undefined };
    for (const source of sources) {
      source.sources = [];
      source.successor = result;
    }
    while (this.usedBy(caller) + size > limit && this.#evict(caller));
    // The cache itself would drop the least recently used result, whoever holds it.
    this.#count(caller, size);
    while (this.used + size > this.capacity && this.#evict());
    this.#results.set(id, result);
    return Object.fromEntries(fields.map(([field]) => [field, `${id}.${field}`]));
  }
}

const sizeOf = ({ blobs }: CachedResult): number =>
  Math.max(
    [...blobs.values()].reduce((sum, { bytes }) => sum + bytes.length, 0),
    1,
  );

/** A blob that lies in the arena in one piece. */
const viewOf = ({ pieces }: Parts, { bytes }: Lease): Buffer | undefined => {
  const [piece] = pieces;
  if (!piece || pieces.length > 1 || piece.buffer !== bytes.buffer) return undefined;
  return bytes.subarray(piece.byteOffset, piece.byteOffset + piece.length);
};

function* copyOf({ pieces, length }: Parts, lease: Lease): Task<Buffer> {
  const copy = lease.view(lease.alloc(length), length);
  let end = 0;
  for (const piece of pieces) {
    yield* copyInTurns(piece, copy, end);
    end += piece.length;
  }
  return copy;
}
