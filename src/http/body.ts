/**
 * Receives request bodies into leases of the arena. The server admits a body by its length before it reads the first byte, and copies
 * each chunk once. A body must keep a rate (see _pace.ts).
 */
import { createHash, timingSafeEqual } from "node:crypto";
import type { Socket } from "node:net";
import zlib from "node:zlib";
import type { Request, Response } from "express";
import { StepdError } from "../errors/errors.ts";
import type { Lease } from "../rpc/rpc.ts";
import { type Pace, Transfer } from "./_pace.ts";
import type { Admission, Limits } from "./_types.ts";
import type { Flight } from "./callers.ts";
import type { HeapShare } from "./heap.ts";
import type { MediaType } from "./negotiate.ts";

/** A body of unknown length starts with a block of this many bytes. The block doubles as the body grows. */
const FIRST_BLOCK_BYTES = 65536;

/** Thrown if the caller disconnects before the end of its body. Nobody waits for a reply. */
export class ClientGone extends Error {
  override readonly name = "ClientGone";
}

/** The server still reads the rest of a rejected slow body for this time in ms, so that the caller receives the error. */
export const LINGER_MS = 5000;

const INFLATED_CHUNK_BYTES = 65536;

/** A zstd window has at most 2^24 bytes, as many as the largest inflated body. A frame could request up to 2 GiB. */
const MAX_WINDOW_LOG = 24;

const INFLATERS = {
  gzip: () => zlib.createGunzip({ chunkSize: INFLATED_CHUNK_BYTES }),
  zstd: () => zlib.createZstdDecompress({ chunkSize: INFLATED_CHUNK_BYTES, params: { [zlib.constants.ZSTD_d_windowLogMax]: MAX_WINDOW_LOG } }),
};

type Encoding = keyof typeof INFLATERS;

export interface Body {
  readonly lease: Lease;
  readonly bytes: Buffer;
}

interface ReceiveOptions {
  readonly req: Request;
  readonly res: Response;
  readonly type: MediaType;
  readonly heap: HeapShare;
  /** The call of the body. It gives way, if it must, while the body is received. */
  readonly flight: Flight;
  /** Called with the number of admitted bytes: once for the whole length, or for each chunk if the length is unknown. */
  onAdmitted(bytes: number): void;
  /** Called with the number of bytes of each chunk that has arrived. */
  onChunk(bytes: number): void;
  /** Called at the end of the body. From then on the caller waits for the server. A promise delays the rest until the call's turn. */
  onReceived(lease: Lease): Promise<void> | undefined;
}

export class Receiver {
  readonly #admission: Admission;
  readonly #limits: Limits;
  readonly #incoming = new Map<Socket, IncomingBody>();
  readonly #pace: Pace;
  /** The last inflation. Bodies are inflated one at a time, because each inflation takes memory up to its window. */
  #lastInflation: Promise<unknown> = Promise.resolve();

  constructor(admission: Admission, limits: Limits, pace: Pace) {
    this.#admission = admission;
    this.#limits = limits;
    this.#pace = pace;
  }

  /** Receives a whole body. The caller must dispose the returned lease. If this method throws, it has released the lease. */
  async receive({ req, res, type, heap, flight, onAdmitted, onChunk, onReceived }: ReceiveOptions): Promise<Body> {
    const encoding = (req.headers["content-encoding"] ?? "identity").toLowerCase();
    const isCompressed = encoding !== "identity";
    if (isCompressed && (type.format !== "json" || !Object.hasOwn(INFLATERS, encoding))) {
      throw StepdError.mismatch("UNSUPPORTED_MEDIA_TYPE", "Content-Encoding", "identity, or gzip or zstd with JSON", encoding);
    }
    const header = req.headers["content-length"];
    const length = header === undefined ? undefined : Number(header);
    const { maxCompressedBytes } = this.#limits;
    const admit = (end: number): void => {
      if (!isCompressed) heap.growToText(end);
      else if (end > maxCompressedBytes)
        throw StepdError.mismatch("PAYLOAD_TOO_LARGE", "Content-Length", `at most ${maxCompressedBytes} bytes of ${encoding}`, `${end}`);
    };
    if (isCompressed) admit(length ?? 0);
    else if (type.format === "json") heap.requireRoomFor(length ?? 0);
    const lease = this.#admission.lease(length ?? FIRST_BLOCK_BYTES, heap);
    flight.lease = lease;
    onAdmitted(length ?? 0);
    try {
      // A caller that sent Expect: 100-continue waits for this answer before it sends its body.
      if (req.headers.expect !== undefined) res.writeContinue();
      const bytes = await this.#receiveInto(req, lease, heap, flight, length, (end, chunk) => {
        if (type.format === "json") admit(end);
        if (length === undefined) onAdmitted(chunk);
        onChunk(chunk);
      });
      const turn = onReceived(lease);
      if (turn) await turn;
      requireDigest(req.headers["content-digest"], bytes);
      return { lease, bytes: isCompressed ? await this.#inflate(bytes, encoding as Encoding, lease, heap) : bytes };
    } catch (error) {
      lease[Symbol.dispose]();
      throw error;
    }
  }

  /** Rejects the unfinished body of an idle connection. Returns false if the connection has none. */
  refuseSilent(socket: Socket): boolean {
    const body = this.#incoming.get(socket);
    body?.cut(`a byte at least every ${this.#limits.idleTimeoutMs / 1000} s (STEPD_IDLE_TIMEOUT_MS)`);
    return body !== undefined;
  }

  /** Rejects all unfinished bodies and returns their number. */
  refuseAll(error: StepdError): number {
    const bodies = [...this.#incoming.values()];
    for (const body of bodies) body.refuse(error);
    return bodies.length;
  }

  #receiveInto(
    req: Request,
    lease: Lease,
    heap: HeapShare,
    flight: Flight,
    length: number | undefined,
    admit: (end: number, chunk: number) => void,
  ): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      // A body of unknown length may move to a larger block as it grows.
      let { start } = lease;
      /** Stops writing into the lease. Bytes of a rejected body may still arrive after the lease is released. */
      const stop = (): void => {
        flight.giveWay = undefined;
        // The next pipelined request may already have its own entry.
        if (this.#incoming.get(req.socket) === body) this.#incoming.delete(req.socket);
        this.#pace.forget(body);
        req.off("data", append).off("end", finish);
      };
      const fail = (error: unknown): void => {
        stop();
        lease[Symbol.dispose]();
        heap[Symbol.dispose]();
        reject(error);
      };
      const finish = (): void => {
        stop();
        // The block may be larger than the body, and other allocations can use the rest.
        lease.trim(start, body.received);
        resolve(lease.view(start, body.received));
      };
      const abort = (): void => {
        // A normal end also emits "close". Creating an error there would cost 4 % of a small step.
        if (!req.readableEnded) fail(new ClientGone("the connection ended in the middle of a body"));
      };
      const append = (chunk: Buffer): void => {
        try {
          const end = body.received + chunk.length;
          admit(end, chunk.length);
          if (end > body.room) ({ start, bytes: body.room } = lease.grow(start, body.received, end, Math.max(body.room * 2, end)));
          // On shared memory `set` and `copy` take 10 times as long as `fill` if the offsets differ modulo 8 (measured).
          if (chunk.length > 0) lease.bytes.fill(chunk, start + body.received, start + end);
          body.received = end;
          freeChunk(chunk);
        } catch (error) {
          fail(error);
        }
      };
      flight.giveWay = fail;
      const body = new IncomingBody(heap, length ?? FIRST_BLOCK_BYTES, fail);
      this.#incoming.set(req.socket, body);
      this.#pace.watch(body);
      req.on("data", append);
      req.once("end", finish);
      req.once("error", abort);
      req.once("close", abort);
    });
  }

  #inflate(bytes: Buffer, encoding: Encoding, lease: Lease, heap: HeapShare): Promise<Buffer> {
    const inflated = this.#lastInflation.then(() => inflate(bytes, encoding, lease, heap, this.#limits.maxInflatedBytes));
    this.#lastInflation = inflated.catch(() => {});
    return inflated;
  }
}

/** A body that is still being received. */
class IncomingBody extends Transfer {
  readonly refuse: (error: unknown) => void;
  received = 0;

  constructor(heap: HeapShare, room: number, refuse: (error: unknown) => void) {
    super(heap, room);
    this.refuse = refuse;
  }

  override measure(): number {
    return this.received;
  }

  override cut(expected: string): void {
    const found = `${this.received} bytes so far`;
    this.refuse(new StepdError("SLOW_BODY", `the body: expected ${expected}, found ${found}`, { field: "the body", expected, found, retry_after: 1 }));
  }
}

/**
 * Frees a chunk's memory at once. The garbage collector would need 10 to 15 ms for 64 MiB of chunks, and new chunks would get cold
 * memory. Together that cost a quarter of a step of 16 Mi parameters (measured).
 */
export const freeChunk = (chunk: Buffer): void => {
  const { buffer, byteOffset, length } = chunk;
  // Node 20 lacks `transfer`. A chunk that is only a part of its buffer must not free the whole buffer.
  if (byteOffset === 0 && buffer.byteLength === length) (buffer as ArrayBuffer).transfer?.(0);
};

/** Inflates a body into the call's lease. Each chunk is checked against the limits. */
const inflate = async (bytes: Buffer, encoding: Encoding, lease: Lease, heap: HeapShare, maxBytes: number): Promise<Buffer> => {
  const stream = INFLATERS[encoding]();
  // zlib does not read shared memory, so the compressed body (at most 1 MiB) is copied.
  stream.end(Buffer.from(bytes));
  let room = FIRST_BLOCK_BYTES;
  let start = lease.allocInput(room);
  let length = 0;
  try {
    for await (const chunk of stream as AsyncIterable<Buffer>) {
      const end = length + chunk.length;
      if (end > maxBytes) throw StepdError.mismatch("PAYLOAD_TOO_LARGE", "the body", `at most ${maxBytes} bytes after inflation`, "more");
      heap.growToText(end);
      if (end > room) ({ start, bytes: room } = lease.grow(start, length, end, Math.max(room * 2, end)));
      lease.bytes.fill(chunk, start + length, start + end);
      freeChunk(chunk);
      length = end;
    }
  } catch (error) {
    if (error instanceof StepdError) throw error;
    throw StepdError.mismatch("PARSE_ERROR", "the body", `${encoding} data with a window of at most ${2 ** MAX_WINDOW_LOG} bytes`, (error as Error).message);
  }
  lease.trim(start, length);
  return lease.view(start, length);
};

/** Checks the body against the sha-256 of its Content-Digest header (RFC 9530), if the header has one. */
const requireDigest = (header: string | string[] | undefined, bytes: Buffer): void => {
  if (header === undefined) return;
  const text = [header].flat().join(",");
  if (!/(?:^|,)\s*sha-256\s*=/.test(text)) return;
  const expected = /(?:^|,)\s*sha-256=:([A-Za-z0-9+/=]*):/.exec(text)?.[1];
  if (expected === undefined) throw StepdError.mismatch("DIGEST_MISMATCH", "Content-Digest", "sha-256=:<base64>:", text);
  const found = createHash("sha256").update(bytes).digest();
  const given = Buffer.from(expected, "base64");
  if (given.length !== found.length || !timingSafeEqual(given, found)) {
    throw StepdError.mismatch("DIGEST_MISMATCH", "Content-Digest", `sha-256 ${found.toString("base64")} of the body that came`, expected);
  }
};

/** Reads and drops the rest of a rejected body, so that its caller receives the reply. The connection closes after the timeout. */
export const drainBody = (req: Request, timeoutMs: number): void => {
  const { socket } = req;
  const timer = setTimeout(() => socket.destroy(), timeoutMs).unref();
  // The timer keeps the request in memory, so it is cleared early. Without this, thousands of requests stayed in memory under overload.
  // A request emits no "close" once its reply is sent, so the listener is on the socket.
  const stop = (): void => {
    clearTimeout(timer);
    req.off("end", stop);
    socket.off("close", stop);
  };
  req.once("end", stop);
  socket.once("close", stop);
  req.on("data", freeChunk);
};
