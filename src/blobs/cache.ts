/**
 * The cache of results, under the SHA-256 of their bytes: a trainer names its parameters and its state instead of sending them.
 * It is off by default and bounded in bytes. A blob that was evicted is simply sent again. Each caller sees only its own blobs.
 */
import { createHash } from "node:crypto";
import { setImmediate } from "node:timers/promises";
import { LRUCache } from "lru-cache";
import type { Parts } from "../codec/parts.ts";

/** The bytes hashed and copied between two yields to other calls (about 3 ms, measured). */
const CHUNK_BYTES = 4 * 2 ** 20;

export class BlobCache {
  readonly capacity: number;
  readonly #blobs: LRUCache<string, Buffer>;
  #unfinished = 0;
  hits = 0;
  misses = 0;

  /** `capacity` is in bytes. */
  constructor(capacity: number) {
    this.capacity = capacity;
    this.#blobs = new LRUCache({
      maxSize: capacity,
      sizeCalculation: ({ length }) => Math.max(length, 1),
      // Frees the memory at once: left to the garbage collector, evicted blobs took as much memory again (measured). Node 20 lacks `transfer`.
      dispose: ({ buffer }, _, reason) => {
        if (reason !== "delete") (buffer as ArrayBuffer).transfer?.(0);
      },
    });
  }

  /** Bytes in the cache. */
  get used(): number {
    return this.#blobs.calculatedSize;
  }

  /** Returns the cached bytes. Copy them before the next await, because an eviction frees the memory. */
  get(sha256: string, caller: string | undefined): Buffer | undefined {
    const blob = this.#blobs.get(keyOf(sha256, caller));
    if (blob) this.hits++;
    else this.misses++;
    return blob;
  }

  /** Caches a copy and returns its digest. Returns undefined, and caches nothing, if the result exceeds the capacity or is evicted during the copy. */
  async put(result: Parts, caller: string | undefined): Promise<string | undefined> {
    if (result.length > this.capacity) return undefined;
    const copy = Buffer.allocUnsafeSlow(result.length);
    // Cached under a placeholder from the start, so that unfinished copies count towards the capacity.
    const placeholder = `unfinished/${this.#unfinished++}`;
    this.#blobs.set(placeholder, copy);
    const hash = createHash("sha256");
    let end = 0;
    for (const piece of result.pieces) {
      for (let at = 0; at < piece.length; at += CHUNK_BYTES) {
        const part = piece.subarray(at, at + CHUNK_BYTES);
        hash.update(part);
        copy.fill(part, end, end + part.length);
        end += part.length;
        if (part.length === CHUNK_BYTES) await setImmediate();
        if (!this.#blobs.has(placeholder)) return undefined;
      }
    }
    this.#blobs.delete(placeholder);
    const sha256 = hash.digest("hex");
    this.#blobs.set(keyOf(sha256, caller), copy);
    return sha256;
  }
}

/** Keys are unique: a caller's name has no slash, and no digest equals a placeholder's number. */
const keyOf = (sha256: string, caller: string | undefined): string => `${caller ?? ""}/${sha256}`;
