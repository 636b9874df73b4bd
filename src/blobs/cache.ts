/**
 * The cache of results. A result stays in the arena under random handles; the next call names a handle instead of sending the bytes.
 * The cache is off by default and limited in bytes. It frees memory as soon as a call needs it, so a caller must be able to send any
 * blob again. Each caller finds only its own blobs.
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
  hits = 0;
  misses = 0;
  evictions = 0;

  /** The cache keeps at most `capacity` bytes of the arena. */
  constructor(arena: Arena, capacity: number) {
    this.capacity = capacity;
    this.#results = new LRUCache({
      maxSize: capacity,
      sizeCalculation: ({ blobs }) =>
        Math.max(
          [...blobs.values()].reduce((sum, { bytes }) => sum + bytes.length, 0),
          1,
        ),
      dispose: ({ memory }, _, reason) => {
        if (reason === "evict") this.evictions++;
        memory.release();
      },
    });
    arena.evict = () => {
      if (this.#results.size === 0) return false;
      this.evictions++;
      this.#results.pop();
      return true;
    };
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

  /**
   * Keeps the blobs of a call and returns their handles by field. Blobs in the arena stay in place; others are copied there. `sources`
   * are the cached results that the call read. `digests` are the known digests of blobs by field. The results from which they were computed are freed, because no caller needs them
   * any more. An earlier result of the same sources is freed, too. Returns undefined, and keeps nothing, if the blobs exceed the
   * capacity. Throws OVERLOADED or PAYLOAD_TOO_LARGE if a copy has no room.
   */
  async keep(
    blobs: Readonly<Record<string, Parts>>,
    sources: readonly CachedResult[],
    caller: string | undefined,
    lease: Lease,
    digests: Readonly<Record<string, string>> = {},
  ): Promise<Readonly<Record<string, string>> | undefined> {
    const fields = Object.entries(blobs);
    if (fields.reduce((sum, [, { length }]) => sum + length, 0) > this.capacity) return undefined;
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
    this.#results.set(id, result);
    return Object.fromEntries(fields.map(([field]) => [field, `${id}.${field}`]));
  }
}

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
