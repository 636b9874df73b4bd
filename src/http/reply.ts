/** Encodes and sends replies. The pieces of a large reply are written from the arena without being joined. */
import { createHash } from "node:crypto";
import { finished } from "node:stream/promises";
import type { Response } from "express";
import { encodeJson, joinJson } from "../codec/json.ts";
import { joinMsgpack, MsgpackWriter } from "../codec/msgpack.ts";
import type { Parts } from "../codec/parts.ts";
import { atOnce, inTurns, type Task } from "../codec/turns.ts";
import { errors, type StepdError } from "../errors/errors.ts";
import { ReplyBatcher } from "./_batcher.ts";
import type { MediaType } from "./negotiate.ts";

/** Builds an encoded array from encoded items. */
export const joinEncoded = (values: readonly Parts[], { format }: MediaType): Parts => (format === "json" ? joinJson(values) : joinMsgpack(values));

export interface Reply {
  readonly status: number;
  readonly type: string;
  readonly body: Parts;
  readonly headers?: Headers;
}

/** Replies up to this length are joined, because copying a piece takes less time than writing it. */
const MAX_JOINED_BYTES = 65536;

const isSmall = ({ body }: Reply): boolean => body.length <= MAX_JOINED_BYTES;

/** The pool keeps at most this many buffers for joined replies. A new buffer per reply would trigger garbage collections. */
const MAX_POOLED_BUFFERS = 16;

/** True if the operating system has the whole reply. Node sets `writableFinished` of a small reply only one turn later. */
export const isSent = (res: Response): boolean =>
  res.writableFinished || (res.writableEnded && res.writableLength === 0 && res.socket?.destroyed === false && res.socket.errored === null);

const sha256Base64 = ({ pieces }: Parts): string => {
  const hash = createHash("sha256");
  for (const piece of pieces) hash.update(piece);
  return hash.digest("base64");
};

type Headers = Readonly<Record<string, string>>;

export const retryHeader = (seconds: number | undefined): Headers => (seconds === undefined ? {} : { "Retry-After": String(seconds) });

export const errorHeaders = ({ code, detail }: StepdError): Headers => ({
  ...retryHeader(detail.retry_after),
  ...(code === "UNAUTHENTICATED" && { "WWW-Authenticate": 'Bearer realm="stepd"' }),
});

/** Encodes and sends the replies of one server. */
export class Replies {
  readonly #writer = new MsgpackWriter();
  readonly #batcher = new ReplyBatcher();
  readonly #bufferPool: Buffer[] = [];

  /** Encodes a value. Returns a promise only for a large value. `onBytes` receives the number of bytes so far, without views of the arena. */
  encode(value: unknown, type: MediaType, onBytes?: (bytes: number) => void): Parts | Promise<Parts> {
    return inTurns(this.#encodeTask(value, type, onBytes));
  }

  /** Encodes an error in one turn, because errors are small. */
  encodeError(value: unknown, type: MediaType): Parts {
    return atOnce(this.#encodeTask(value, type));
  }

  #encodeTask(value: unknown, { format }: MediaType, onBytes?: (bytes: number) => void): Task<Parts> {
    return format === "json" ? encodeJson(value, onBytes) : this.#writer.encode(value, onBytes);
  }

  /** Builds the error reply of the REST API: problem details (RFC 9457), as application/problem+json or in MessagePack. */
  problem(error: StepdError, requestId: string, type: MediaType): Reply {
    const { code, status, title } = errors[error.code];
    const body = {
      type: `urn:stepd:error:${error.code}`,
      title,
      status,
      detail: error.message,
      code,
      name: error.code,
      ...error.detail,
      request_id: requestId,
    };
    const name = type.format === "json" ? "application/problem+json" : type.name;
    return { status, type: name, body: this.encodeError(body, type), headers: errorHeaders(error) };
  }

  /** Resolves when a reply may be sent. A small reply waits for its batch. */
  ready(reply: Reply): Promise<void> | undefined {
    return isSmall(reply) ? this.#batcher.wait() : undefined;
  }

  /** Sends a reply. Resolves after its last byte, or when the caller disconnects. The memory of its pieces may then be released. */
  async send(res: Response, reply: Reply): Promise<void> {
    const { status, type, body, headers = {} } = reply;
    if (res.headersSent || res.destroyed) return;
    const wanted = res.req.headers["want-repr-digest"];
    // A 204 must not have a Content-Length (RFC 9110, section 8.6).
    const fields: Record<string, string | number> = status === 204 ? { ...headers } : { "Content-Type": type, "Content-Length": body.length, ...headers };
    if (typeof wanted === "string" && /(?:^|,)\s*sha-256(?!=0)/.test(wanted)) fields["Repr-Digest"] = `sha-256=:${sha256Base64(body)}:`;
    res.writeHead(status, fields);
    const buffer = isSmall(reply) ? this.#takeBuffer(res, body.length) : undefined;
    if (buffer) res.end(body.joinInto(buffer));
    else {
      res.cork();
      for (const piece of body.pieces) res.write(piece);
      res.end();
      res.uncork();
    }
    // Most replies are already sent here and need no listener. A caller that disconnects is not this server's failure.
    if (!isSent(res)) await finished(res).catch(() => {});
    if (buffer?.length === MAX_JOINED_BYTES && isSent(res) && this.#bufferPool.length < MAX_POOLED_BUFFERS) this.#bufferPool.push(buffer);
  }

  /** Takes a buffer for joining a small reply. A pipelined reply may wait long, so it gets its own buffer of the exact size. */
  #takeBuffer(res: Response, length: number): Buffer {
    if (!res.socket) return Buffer.allocUnsafeSlow(length);
    return this.#bufferPool.pop() ?? Buffer.allocUnsafeSlow(MAX_JOINED_BYTES);
  }
}
