/** Decodes the bodies of one server's requests. */
import { decodeJson } from "../codec/json.ts";
import { type Decoded, MsgpackReader, type OnProgress } from "../codec/msgpack.ts";
import { SerialQueue, type Task } from "../codec/turns.ts";
import type { MediaType } from "./negotiate.ts";

export class Decoder {
  readonly #reader = new MsgpackReader();
  /** Runs the decoding of large bodies one at a time. */
  readonly #queue = new SerialQueue();

  /** Decodes a body. Returns a promise only for a large body. The scan calls `onProgress` before any value is created. */
  decode(bytes: Buffer, { format }: MediaType, onProgress: OnProgress): Decoded | Promise<Decoded> {
    return this.#queue.run(format === "json" ? decodeText(bytes, onProgress) : this.#reader.decode(bytes, onProgress));
  }
}

function* decodeText(bytes: Buffer, onProgress: OnProgress): Task<Decoded> {
  return { value: yield* decodeJson(bytes, (count) => onProgress(count, 0)), template: undefined };
}
