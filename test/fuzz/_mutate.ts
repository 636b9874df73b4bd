/** Changes inputs at random, in the ways of coverage-guided fuzzers: bits, bytes, integers, blocks, words of a dictionary, parts of other inputs. */

/** A generator of random numbers with a seed, so that a run can be repeated: xorshift, 32 bits. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed | 1;
  }

  /** Returns a whole number from 0 to below the limit. */
  below(limit: number): number {
    this.#state ^= this.#state << 13;
    this.#state ^= this.#state >>> 17;
    this.#state ^= this.#state << 5;
    return (this.#state >>> 0) % limit;
  }

  of<T>(values: readonly T[]): T {
    return values[this.below(values.length)] as T;
  }
}

const BYTES = [0, 1, 0x7f, 0x80, 0xff, 0x20, 0x22, 0x5c, 0x7b, 0x5b, 0xc1, 0xd9, 0xdf];
const INTEGERS = [
  0n,
  1n,
  0x7fn,
  0x80n,
  0xffffn,
  0x7fffffffn,
  0x80000000n,
  0xffffffffn,
  0x1fffffffffffffn,
  0x20000000000000n,
  0x7fffffffffffffffn,
  0xffffffffffffffffn,
];

/** Returns a changed copy of at most `most` bytes. */
export const mutate = (input: Uint8Array, others: readonly Uint8Array[], words: readonly string[], random: Random, most: number): Buffer => {
  let bytes = Buffer.from(input);
  for (let changes = 1 + random.below(4); changes > 0; changes--) {
    const at = random.below(bytes.length + 1);
    const length = Math.min(1 + random.below(random.below(4) === 0 ? 64 : 8), bytes.length - at);
    const splice = (removed: number, added: Uint8Array): void => {
      bytes = Buffer.concat([bytes.subarray(0, at), added, bytes.subarray(at + removed)]);
    };
    const kind = random.below(9);
    if (kind === 0 && at < bytes.length) bytes[at] = (bytes[at] as number) ^ (1 << random.below(8));
    else if (kind === 1 && at < bytes.length) bytes[at] = random.below(2) === 0 ? random.below(256) : random.of(BYTES);
    else if (kind === 2) splice(length, new Uint8Array(0));
    else if (kind === 3)
      splice(
        0,
        Uint8Array.from({ length: 1 + random.below(8) }, () => random.below(256)),
      );
    else if (kind === 4) splice(0, bytes.subarray(at, at + length));
    else if (kind === 5) splice(random.below(2) * length, Buffer.from(random.of(words), "latin1"));
    else if (kind === 6) {
      const other = random.of(others);
      const from = random.below(other.length + 1);
      splice(random.below(2) * length, other.subarray(from, from + 1 + random.below(64)));
    } else if (kind === 7) {
      const size = random.of([1, 2, 4, 8]);
      const integer = Buffer.alloc(8);
      integer.writeBigUInt64LE(random.of(INTEGERS));
      const part = integer.subarray(0, size);
      splice(size, random.below(2) === 0 ? part : part.reverse());
    } else if (at < bytes.length) bytes[at] = ((bytes[at] as number) + random.of([1, 255, 16, 240])) & 255;
  }
  return bytes.subarray(0, most);
};
