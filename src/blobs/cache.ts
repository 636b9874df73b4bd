/**
 * Caches results. A trainer names its parameters and its state by their SHA-256 instead of sending them. The cache is off by
 * default and limited in bytes. A trainer sends an evicted blob again. Each caller sees only its own blobs.
 */
import { createHash } from "node:crypto";
import { setImmediate } from "node:timers/promises";
import { LRUCache } from "lru-cache";
import type { Parts } from "../codec/parts.ts";

/** Hashing and copying yield to other calls after this many bytes (about 3 ms, measured). */
const BYTES_PER_YIELD = 4 * 2 ** 20;

export class BlobCache {
  readonly capacity: number;
  readonly #blobs: LRUCache<string, Buffer>;
  #unfinished = 0;
  hits = 0;
  misses = 0;

  constructor(capacityBytes: number) {
    this.capacity = capacityBytes;
    this.#blobs = new LRUCache({
      maxSize: capacityBytes,
      sizeCalculation: ({ length }) => Math.max(length, 1),
      // The memory is freed at once: with the garbage collector, evicted blobs took as much memory again (measured). Node 20 lacks `transfer`.
      dispose: ({ buffer }, _, reason) => {
        if (reason !== "delete") (buffer as ArrayBuffer).transfer?.(0);
      },
    });
  }

  /** The bytes of all cached blobs. */
  get used(): number {
    return this.#blobs.calculatedSize;
  }

  /** Returns the cached bytes. Copy them before the next await, because an eviction frees their memory. */
  get(sha256: string, caller: string | undefined): Buffer | undefined {
    const blob = this.#blobs.get(keyOf(sha256, caller));
    if (blob) this.hits++;
    else this.misses++;
    return blob;
  }

  /** Caches a copy and returns its digest. Returns undefined if the result exceeds the capacity, or if it is evicted during the copy. */
  async put(result: Parts, caller: string | undefined): Promise<string | undefined> {
    if (result.length > this.capacity) return undefined;
    const copy = Buffer.allocUnsafeSlow(result.length);
    // An unfinished copy must count towards the capacity, so it is cached under a placeholder first.
    const placeholder = `unfinished/${this.#unfinished++}`;
    this.#blobs.set(placeholder, copy);
    const hash = createHash("sha256");
    let end = 0;
    for (const piece of result.pieces) {
      for (let at = 0; at < piece.length; at += BYTES_PER_YIELD) {
        const part = piece.subarray(at, at + BYTES_PER_YIELD);
        hash.update(part);
        copy.fill(part, end, end + part.length);
        end += part.length;
        if (part.length === BYTES_PER_YIELD) await setImmediate();
        if (!this.#blobs.has(placeholder)) return undefined;
      }
    }
    this.#blobs.delete(placeholder);
    const sha256 = hash.digest("hex");
    this.#blobs.set(keyOf(sha256, caller), copy);
    return sha256;
  }
}

/** Builds a unique key. A caller's name has no slash, and no digest equals a placeholder's number. */
const keyOf = (sha256: string, caller: string | undefined): string => `${caller ?? ""}/${sha256}`;
