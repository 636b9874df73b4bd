/** What is made of a call's words, for the next call with the same words. */
export class Memo<T> {
  readonly #made = new WeakMap<object, T>();

  /** What was made of the words before, or else of this call. */
  of(words: object | undefined, make: () => T): T {
    if (!words) return make();
    const known = this.#made.get(words);
    if (known !== undefined) return known;
    const made = make();
    this.#made.set(words, made);
    return made;
  }
}
