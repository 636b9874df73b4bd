/** Decodes the bodies of one server. */
import { decodeJson } from "../codec/json.ts";
import { type Decoded, MsgpackReader, type OnProgress } from "../codec/msgpack.ts";
import { SerialQueue, type Task } from "../codec/turns.ts";
import type { MediaType } from "./negotiate.ts";

export class Decoder {
  readonly #reader = new MsgpackReader();
  /** Large bodies are decoded one at a time. */
  readonly #queue = new SerialQueue();

  /** Decodes a body. Calls `onProgress` during the scan, before any value is created. Returns no promise for a small body. */
  decode(bytes: Buffer, { format }: MediaType, onProgress: OnProgress): Decoded | Promise<Decoded> {
    return this.#queue.run(format === "json" ? decodeText(bytes, onProgress) : this.#reader.decode(bytes, onProgress));
  }
}

function* decodeText(bytes: Buffer, onProgress: OnProgress): Task<Decoded> {
  return { value: yield* decodeJson(bytes, (count) => onProgress(count, 0)), template: undefined };
}
