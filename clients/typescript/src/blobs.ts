/**
 * The blobs of one call. They are in the shared folder if there is one and the call is large enough, otherwise in the request
 * body.
 */
import { Bin } from "./msgpack.ts";
import type { SharedFolder, SharedPlace } from "./shared.ts";
import { placeOf, State } from "./state.ts";
import type { SharedBlob } from "./wire.gen.ts";

/** Smaller calls use the request body, because a file costs more than copying its bytes. */
const MIN_SHARED_BYTES = 64 * 2 ** 10;

/** A result needs extra room, because the server's safetensors header may hold an empty __metadata__. */
const HEADER_SLACK_BYTES = 4096;

/** A blob as it stands in the request body: its bytes, or its place in the shared folder. */
export type BodyBlob = Bin | SharedBlob;

export class CallBlobs {
  readonly #folder: SharedFolder | undefined;
  /** Places that the request names. The server may read and write them. */
  readonly #places: SharedPlace[] = [];
  /** Places that this call releases when it ends. */
  readonly #owned = new Set<SharedPlace>();

  /** `bytes` is the total size of all blobs. */
  constructor(folder: SharedFolder | undefined, bytes: number) {
    this.#folder = bytes < MIN_SHARED_BYTES ? undefined : folder;
  }

  /** Copies the parts, because the caller may change the arrays during the call. */
  put(parts: readonly Uint8Array<ArrayBuffer>[]): BodyBlob {
    return this.#folder ? this.#own(this.#folder.write(parts)) : new Bin(new Blob([...parts]));
  }

  /** Adds a state, without a copy if the state already lies in this folder. */
  putState(state: State | Uint8Array): BodyBlob {
    const place = this.#folder && placeOf(state);
    if (!place || place.folder !== this.#folder) return this.put([fileOf(state)]);
    this.#places.push(place);
    return place.blob;
  }

  /** Reserves room for a result of `bytes`. Returns undefined if the reply carries the result in its body. */
  room(bytes: number): SharedBlob | undefined {
    return this.#folder && this.#own(this.#folder.room(bytes + HEADER_SLACK_BYTES));
  }

  /** Returns a blob for the request body. A blob in the folder is read back into memory. */
  async inBody(source: BodyBlob): Promise<Bin> {
    return source instanceof Bin ? source : new Bin(new Blob([await this.#find(source).read()]));
  }

  /** Returns the bytes of a result. Throws RangeError if the reply holds no valid bytes or place. */
  async take(name: string, value: unknown): Promise<Uint8Array<ArrayBuffer>> {
    return isShared(value) ? this.#find(value).trimmed(value.length).read() : bytesIn(name, value);
  }

  /** Returns the new state, which stays in its file until it is read. Throws RangeError if the reply holds no valid state. */
  takeState(value: unknown): State {
    if (!isShared(value)) return new State(bytesIn("state", value));
    const room = this.#find(value);
    const place = room.trimmed(value.length);
    this.#owned.delete(room);
    this.#folder?.keep(place);
    return new State(place);
  }

  /** Marks the files as lost. If a reply is lost, the server may still use the files, so they are never reused. */
  readonly lost = (): void => {
    for (const { region } of this.#places) region.isLost = true;
  };

  /** Releases the call's files. */
  release(): void {
    for (const place of this.#owned) this.#folder?.release(place);
    this.#owned.clear();
  }

  #own(place: SharedPlace): SharedBlob {
    this.#places.push(place);
    this.#owned.add(place);
    return place.blob;
  }

  #find({ file, length }: SharedBlob): SharedPlace {
    const place = this.#places.find(({ region }) => region.file === file);
    if (!place || !(Number.isSafeInteger(length) && length >= 0 && length <= place.length))
      throw new RangeError("expected a result in the place that was asked for, found another");
    return place;
  }
}

const isShared = (value: unknown): value is SharedBlob => typeof (value as SharedBlob | null | undefined)?.file === "string";

/** Returns the size of a state in bytes; 0 without a state. */
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
