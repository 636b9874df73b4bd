/** A large object in a result. Its members are generated while they are encoded, so they never exist in memory all at once. */
export class Members<T = unknown> implements Iterable<readonly [name: string, value: T]> {
  readonly size: number;
  readonly #generate: () => Iterable<readonly [name: string, value: T]>;

  /** Each call of `generate` must return a new iterable of all members. */
  constructor(size: number, generate: () => Iterable<readonly [name: string, value: T]>) {
    this.size = size;
    this.#generate = generate;
  }

  [Symbol.iterator](): Iterator<readonly [name: string, value: T]> {
    return this.#generate()[Symbol.iterator]();
  }

  /** Maps the value of each member. The mapping runs anew on each iteration. */
  map<U>(change: (value: T) => U): Members<U> {
    const members = this;
    return new Members(this.size, function* () {
      for (const [name, value] of members) yield [name, change(value)] as const;
    });
  }
}

/** Objects with more than this many members are generated. */
const MAX_PLAIN_MEMBERS = 1024;

/** An object in a result, either plain or generated. */
export type Mapping<T> = Readonly<Record<string, T>> | Members<T>;

/** Builds an object with one member per item. Set `isLarge` to generate the members even if they are few. */
export const mappingOf = <I, T>(items: readonly I[], member: (item: I, index: number) => readonly [name: string, value: T], isLarge = false): Mapping<T> =>
  items.length <= MAX_PLAIN_MEMBERS && !isLarge
    ? Object.fromEntries(items.map(member))
    : new Members(items.length, function* () {
        for (const [index, item] of items.entries()) yield member(item, index);
      });

export const plainOf = <T>(mapping: Mapping<T>): Readonly<Record<string, T>> => (mapping instanceof Members ? Object.fromEntries(mapping) : mapping);
