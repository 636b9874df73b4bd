/** The blobs of one call: in the shared folder, where there is one and the call is not small, or else in its body. */
import { Bin } from "./msgpack.ts";
import type { SharedFolder, SharedPlace } from "./shared.ts";
import { placeOf, State } from "./state.ts";
import type { SharedBlob } from "./wire.gen.ts";

/** Less than this goes into the body: a file costs more than its bytes. */
const MIN_SHARED_BYTES = 64 * 2 ** 10;

/** What a result may be longer than what went in: the server's header may have an empty __metadata__. */
const SLACK_BYTES = 4096;

/** A blob as the body has it. */
export type Source = Bin | SharedBlob;

export class CallBlobs {
  readonly #folder: SharedFolder | undefined;
  /** Places that the server may look at. */
  readonly #seen: SharedPlace[] = [];
  /** Those of them that are nobody's when the call is over. */
  readonly #own = new Set<SharedPlace>();

  /** `bytes` is the size of all blobs together. */
  constructor(folder: SharedFolder | undefined, bytes: number) {
    this.#folder = bytes < MIN_SHARED_BYTES ? undefined : folder;
  }

  /** A copy of the parts: the caller may change the arrays while the call is under way. */
  put(parts: readonly Uint8Array<ArrayBuffer>[]): Source {
    return this.#folder ? this.#hold(this.#folder.write(parts)) : new Bin(new Blob([...parts]));
  }

  /** A state, which stays where it is if that is this folder. */
  putState(state: State | Uint8Array): Source {
    const place = this.#folder && placeOf(state);
    if (!place || place.folder !== this.#folder) return this.put([fileOf(state)]);
    this.#seen.push(place);
    return place.blob;
  }

  /** Room for a result as large as what went in; undefined where it comes in the body. */
  room(bytes: number): SharedBlob | undefined {
    return this.#folder && this.#hold(this.#folder.room(bytes + SLACK_BYTES));
  }

  /** A blob for the body, also of one that was put into the folder. */
  async inBody(source: Source): Promise<Bin> {
    return source instanceof Bin ? source : new Bin(new Blob([await this.#find(source).read()]));
  }

  /** The bytes of a result. Throws RangeError where it is none. */
  async take(name: string, value: unknown): Promise<Uint8Array<ArrayBuffer>> {
    return isShared(value) ? this.#find(value).trimmed(value.length).read() : bytesIn(name, value);
  }

  /** A new state, which stays where the server wrote it until somebody looks at it. Throws RangeError where it is none. */
  takeState(value: unknown): State {
    if (!isShared(value)) return new State(bytesIn("state", value));
    const room = this.#find(value);
    const place = room.trimmed(value.length);
    this.#own.delete(room);
    this.#folder?.keep(place);
    return new State(place);
  }

  /** A reply was lost: the server may still be reading and writing, so these files are not used for anything else. */
  readonly lost = (): void => {
    for (const { region } of this.#seen) region.isLost = true;
  };

  /** The call is over. */
  release(): void {
    for (const place of this.#own) this.#folder?.release(place);
    this.#own.clear();
  }

  #hold(place: SharedPlace): SharedBlob {
    this.#seen.push(place);
    this.#own.add(place);
    return place.blob;
  }

  #find({ file, length }: SharedBlob): SharedPlace {
    const place = this.#seen.find(({ region }) => region.file === file);
    if (!place || !(Number.isSafeInteger(length) && length >= 0 && length <= place.length))
      throw new RangeError("expected a result in the place that was asked for, found another");
    return place;
  }
}

const isShared = (value: unknown): value is SharedBlob => typeof (value as SharedBlob | null | undefined)?.file === "string";

/** How many bytes a state has. */
export const sizeOf = (state: State | Uint8Array | null | undefined): number => (state ? (placeOf(state) ?? fileOf(state)).length : 0);

const fileOf = (state: State | Uint8Array): Uint8Array<ArrayBuffer> => {
  const bytes = state instanceof State ? state.bytes : state;
  if (!(bytes instanceof Uint8Array)) throw new TypeError(`state: expected a State or the bytes of one, found ${typeof bytes}`);
  return bytes as Uint8Array<ArrayBuffer>;
};

export const bytesIn = (name: string, value: unknown): Uint8Array<ArrayBuffer> => {
  if (value instanceof Uint8Array) return value as Uint8Array<ArrayBuffer>;
  throw new RangeError(`${name}: expected bytes, found ${typeof value}`);
};
