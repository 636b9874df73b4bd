/** Members of an object of a result that are many: made while they are written, so that no object of all of them exists. */
export class Members<T = unknown> implements Iterable<readonly [name: string, value: T]> {
  readonly size: number;
  readonly #make: () => Iterable<readonly [name: string, value: T]>;

  /** `make` gives all members, and gives them again when it is asked again. */
  constructor(size: number, make: () => Iterable<readonly [name: string, value: T]>) {
    this.size = size;
    this.#make = make;
  }

  [Symbol.iterator](): Iterator<readonly [name: string, value: T]> {
    return this.#make()[Symbol.iterator]();
  }

  /** These members with other values. */
  map<U>(change: (value: T) => U): Members<U> {
    const members = this;
    return new Members(this.size, function* () {
      for (const [name, value] of members) yield [name, change(value)] as const;
    });
  }
}

/** Members that are no more are an object. */
const FEW = 1024;

/** An object of a result. */
export type Mapping<T> = Readonly<Record<string, T>> | Members<T>;

/** An object of one member for each item; `isMuch` says that few members are much as well. */
export const mappingOf = <I, T>(items: readonly I[], member: (item: I, index: number) => readonly [name: string, value: T], isMuch = false): Mapping<T> =>
  items.length <= FEW && !isMuch
    ? Object.fromEntries(items.map(member))
    : new Members(items.length, function* () {
        for (const [index, item] of items.entries()) yield member(item, index);
      });

export const plainOf = <T>(mapping: Mapping<T>): Readonly<Record<string, T>> => (mapping instanceof Members ? Object.fromEntries(mapping) : mapping);
