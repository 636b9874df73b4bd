/** Sends replies: pieces written one after the other, straight from the arena, without joining them. */
import { createHash } from "node:crypto";
import { finished } from "node:stream/promises";
import type { Response } from "express";
import { decodeJson, encodeJson, joinJson } from "../codec/json.ts";
import { decodeMsgpack, joinMsgpack, MsgpackWriter, type OnValues } from "../codec/msgpack.ts";
import type { Parts } from "../codec/parts.ts";
import { atOnce, inTurns, type Turns } from "../codec/turns.ts";
import { errors, type StepdError } from "../errors/errors.ts";
import { Together } from "./_together.ts";
import type { MediaType } from "./negotiate.ts";

/** Reads the value of a body; `onValues` is told what it takes while it is counted, before it is made. */
export const decoding = (bytes: Buffer, { format }: MediaType, onValues: OnValues): Turns<unknown> =>
  format === "json" ? decodeJson(bytes, (count) => onValues(count, 0)) : decodeMsgpack(bytes, onValues);

/** The bytes of an array of values that are encoded already. */
export const join = (values: readonly Parts[], { format }: MediaType): Parts => (format === "json" ? joinJson(values) : joinMsgpack(values));

export interface Reply {
  readonly status: number;
  readonly type: string;
  readonly body: Parts;
  readonly headers?: Headers;
}

/** Replies of up to this length are joined, because to write each piece takes longer than to copy it. */
const JOINED_BYTES = 65536;

const isSmall = ({ body }: Reply): boolean => body.length <= JOINED_BYTES;

/** Buffers for joined replies that are kept for the next ones: new memory for each would bring on collections of garbage. */
const MAX_SPARE = 16;

/** Whether all of a reply is with the system. Small ones are as soon as they are sent, of which node tells a turn later, as it does of a socket that failed. */
export const isOut = (res: Response): boolean =>
  res.writableFinished || (res.writableEnded && res.writableLength === 0 && res.socket?.destroyed === false && res.socket.errored === null);

const digest = ({ pieces }: Parts): string => {
  const hash = createHash("sha256");
  for (const piece of pieces) hash.update(piece);
  return hash.digest("base64");
};

type Headers = Readonly<Record<string, string>>;

/** When to come back. */
export const retryHeader = (seconds: number | undefined): Headers => (seconds === undefined ? {} : { "Retry-After": String(seconds) });

/** What an error says in headers. */
export const errorHeaders = ({ code, detail }: StepdError): Headers => ({
  ...retryHeader(detail.retry_after),
  ...(code === "UNAUTHENTICATED" && { "WWW-Authenticate": 'Bearer realm="stepd"' }),
});

/** Makes and sends the replies of one server. */
export class Replies {
  readonly #writer = new MsgpackWriter();
  readonly #together = new Together();
  readonly #spare: Buffer[] = [];

  /** The bytes of a value; `onBytes` gets the number of those that are no views of the arena. Those of a small value are there at once. */
  encode(value: unknown, type: MediaType, onBytes?: (bytes: number) => void): Parts | Promise<Parts> {
    return inTurns(this.#encoding(value, type, onBytes));
  }

  /** The bytes of an error, which is small. */
  encodeError(value: unknown, type: MediaType): Parts {
    return atOnce(this.#encoding(value, type));
  }

  #encoding(value: unknown, { format }: MediaType, onBytes?: (bytes: number) => void): Turns<Parts> {
    return format === "json" ? encodeJson(value, onBytes) : this.#writer.encode(value, onBytes);
  }

  /** An error of the REST twin: problem details (RFC 9457) as application/problem+json, or in MessagePack for a caller that asks for it. */
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

  /** When a reply may be sent: a small one with those that are ready in the same turn of the event loop. */
  ready(reply: Reply): Promise<void> | undefined {
    return isSmall(reply) ? this.#together.wait() : undefined;
  }

  /** Sends a reply and resolves when its last byte is out, or the caller gone: from then on the pieces' memory is free. */
  async send(res: Response, reply: Reply): Promise<void> {
    const { status, type, body, headers = {} } = reply;
    if (res.headersSent || res.destroyed) return;
    const wanted = res.req.headers["want-repr-digest"];
    // A 204 must not have a length (RFC 9110, 8.6).
    const known: Record<string, string | number> = status === 204 ? { ...headers } : { "Content-Type": type, "Content-Length": body.length, ...headers };
    if (typeof wanted === "string" && /(?:^|,)\s*sha-256(?!=0)/.test(wanted)) known["Repr-Digest"] = `sha-256=:${digest(body)}:`;
    res.writeHead(status, known);
    const room = isSmall(reply) ? this.#room(res, body.length) : undefined;
    if (room) res.end(body.joinInto(room));
    else {
      res.cork();
      for (const piece of body.pieces) res.write(piece);
      res.end();
      res.uncork();
    }
    // What the system took at once has no need of the listeners.
    if (!isOut(res)) await finished(res).catch(() => {}); // A caller that went away is not this server's failure.
    if (room?.length === JOINED_BYTES && isOut(res) && this.#spare.length < MAX_SPARE) this.#spare.push(room);
  }

  /** Memory to join a small reply in. One that waits behind another of its connection may wait for long: it takes no more than it needs. */
  #room(res: Response, length: number): Buffer {
    if (!res.socket) return Buffer.allocUnsafeSlow(length);
    return this.#spare.pop() ?? Buffer.allocUnsafeSlow(JOINED_BYTES);
  }
}
