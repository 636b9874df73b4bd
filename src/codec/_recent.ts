/** What was made lately out of texts: a trainer sends the same headers with each step. Bounded, and never needed. */
import { LRUCache } from "lru-cache";

/** Characters of all keys together. What is made of a header takes about ten times its length. */
export const MAX_CHARACTERS = 2 ** 19;

/** Longer ones are rare, and come with so many tensors that reading them is a small part of the call. */
export const MAX_KEY = MAX_CHARACTERS / 8;

export class Recent<T extends object> {
  readonly #made = new LRUCache<string, T>({ maxSize: MAX_CHARACTERS, maxEntrySize: MAX_KEY, sizeCalculation: (_, key) => key.length + 1 });

  /** Characters of the keys that it holds. */
  get size(): number {
    return this.#made.calculatedSize;
  }

  get(key: string): T | undefined {
    return this.#made.get(key);
  }

  set(key: string, made: T): void {
    this.#made.set(key, made);
  }
}
