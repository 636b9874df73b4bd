/**
 * A memory of results, named by the SHA-256 of their bytes, so that a trainer can name its parameters and its state instead of
 * sending them. Off unless asked for, bounded in bytes, and never needed: what is not there is sent again. Each caller has its
 * own names: nobody learns by a name what another has.
 */
import { createHash } from "node:crypto";
import { setImmediate } from "node:timers/promises";
import { LRUCache } from "lru-cache";
import type { Parts } from "../codec/parts.ts";

/** Hashed and copied at a time; other calls have their turn between (about 3 ms, measured). */
const PIECE_BYTES = 4 * 2 ** 20;

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
      // At once: left to the garbage collector, what was crowded out took as much memory again (measured). Node 20 cannot.
      dispose: ({ buffer }, _, reason) => {
        if (reason !== "delete") (buffer as ArrayBuffer).transfer?.(0);
      },
    });
  }

  /** Bytes that it holds. */
  get used(): number {
    return this.#blobs.calculatedSize;
  }

  /** The blob is to be used before anything else happens: its memory goes when it is crowded out. */
  get(sha256: string, caller: string | undefined): Buffer | undefined {
    const blob = this.#blobs.get(keyOf(sha256, caller));
    if (blob) this.hits++;
    else this.misses++;
    return blob;
  }

  /** Keeps a copy and returns its digest. Nothing is kept, and undefined returned, of what is too large, or crowded out by others before it is there. */
  async put(result: Parts, caller: string | undefined): Promise<string | undefined> {
    if (result.length > this.capacity) return undefined;
    const copy = Buffer.allocUnsafeSlow(result.length);
    // In the cache from the start, so that copies under way count as well.
    const placeholder = `unfinished/${this.#unfinished++}`;
    this.#blobs.set(placeholder, copy);
    const hash = createHash("sha256");
    let end = 0;
    for (const piece of result.pieces) {
      for (let at = 0; at < piece.length; at += PIECE_BYTES) {
        const part = piece.subarray(at, at + PIECE_BYTES);
        hash.update(part);
        copy.fill(part, end, end + part.length);
        end += part.length;
        if (part.length === PIECE_BYTES) await setImmediate();
        if (!this.#blobs.has(placeholder)) return undefined;
      }
    }
    this.#blobs.delete(placeholder);
    const sha256 = hash.digest("hex");
    this.#blobs.set(keyOf(sha256, caller), copy);
    return sha256;
  }
}

/** A caller's name has no slash, and no digest is the word of the placeholders. */
const keyOf = (sha256: string, caller: string | undefined): string => `${caller ?? ""}/${sha256}`;
