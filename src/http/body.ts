/**
 * Receives request bodies into leases of the arena. The server admits a body by its length before it reads the first byte, and copies
 * each chunk once. The body's length and the request timeout set the rate that the body must keep. The server rejects a late body when
 * another call needs its memory, or after a grace period.
 */
import { createHash, timingSafeEqual } from "node:crypto";
import type { Socket } from "node:net";
import zlib from "node:zlib";
import type { Request, Response } from "express";
import { StepdError } from "../errors/errors.ts";
import type { Lease } from "../rpc/rpc.ts";
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

/** A body's average rate is enforced after this grace period in seconds. */
const GRACE_S = 10;

/** The rate of each body is checked at this interval in ms. */
const CHECK_MS = 250;
/** At least this many rate checks happen within a request timeout, so a short timeout shortens the interval. */
const CHECKS_PER_TIMEOUT = 10;

/** Credit is the time by which a body is ahead of its rate. The initial credit in seconds covers the round trip of `100 Continue`. */
const INITIAL_CREDIT_S = 2;

/** A body gains at most this many seconds of credit, so it may pause for as long. */
const MAX_CREDIT_S = 10;

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
  /** One timer checks all bodies, because a timer per body would slow down small steps. */
  #timer: NodeJS.Timeout | undefined;
  /** The last inflation. Bodies are inflated one at a time, because each inflation takes memory up to its window. */
  #lastInflation: Promise<unknown> = Promise.resolve();

  constructor(admission: Admission, limits: Limits) {
    this.#admission = admission;
    this.#limits = limits;
  }

  /** Rejects the largest late body to free arena memory for another call. Returns false if no body is late. */
  freeArena(requester: object): boolean {
    return this.#reclaim((body) => body.heap !== requester);
  }

  /** Rejects the largest late body to free memory of the JavaScript heap for another call. */
  freeHeap(requester: object): boolean {
    return this.#reclaim((body) => body.heap !== requester && body.heap.held > 0);
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
    body?.refuse(slowBodyError(body.received, `a byte at least every ${this.#limits.idleTimeoutMs / 1000} s (STEPD_IDLE_TIMEOUT_MS)`));
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
      this.#watch(req.socket, body);
      req.on("data", append);
      req.once("end", finish);
      req.once("error", abort);
      req.once("close", abort);
    });
  }

  #watch(socket: Socket, body: IncomingBody): void {
    this.#incoming.set(socket, body);
    if (this.#timer) return;
    const { requestTimeoutMs, minBodyRate } = this.#limits;
    const periodMs = Math.min(CHECK_MS, Math.ceil(requestTimeoutMs / CHECKS_PER_TIMEOUT));
    this.#timer = setInterval(() => {
      for (const incoming of this.#incoming.values()) incoming.check(periodMs / 1000, requestTimeoutMs / 1000, minBodyRate);
      if (this.#incoming.size > 0) return;
      clearInterval(this.#timer);
      this.#timer = undefined;
    }, periodMs).unref();
  }

  #reclaim(isCandidate: (body: IncomingBody) => boolean): boolean {
    const late = [...this.#incoming.values()].filter((body) => body.isLate && isCandidate(body));
    const largest = late.reduce<IncomingBody | undefined>((most, body) => (most && most.room >= body.room ? most : body), undefined);
    largest?.refuse(slowBodyError(largest.received, "at the rate that its length and the request timeout ask for, when another call needs its memory"));
    return largest !== undefined;
  }

  #inflate(bytes: Buffer, encoding: Encoding, lease: Lease, heap: HeapShare): Promise<Buffer> {
    const inflated = this.#lastInflation.then(() => inflate(bytes, encoding, lease, heap, this.#limits.maxInflatedBytes));
    this.#lastInflation = inflated.catch(() => {});
    return inflated;
  }
}

const slowBodyError = (received: number, expected: string): StepdError => {
  const found = `${received} bytes so far`;
  return new StepdError("SLOW_BODY", `the body: expected ${expected}, found ${found}`, { field: "the body", expected, found, retry_after: 1 });
};

/** A body that is still being received. */
class IncomingBody {
  readonly heap: HeapShare;
  readonly refuse: (error: unknown) => void;
  readonly #start = performance.now();
  received = 0;
  /** The arena bytes that are reserved for the body. */
  room: number;
  /** The number of bytes that the last check saw. */
  #lastReceived = 0;
  /** The body's age in seconds. Only check periods count, so the caller does not pay for time in which this thread was busy. */
  #age = 0;
  /** The seconds by which the body is ahead of its rate. */
  #credit = INITIAL_CREDIT_S;

  constructor(heap: HeapShare, room: number, refuse: (error: unknown) => void) {
    this.heap = heap;
    this.room = room;
    this.refuse = refuse;
  }

  /** True if the body is behind its rate. */
  get isLate(): boolean {
    return this.#credit <= 0;
  }

  /** Updates the credit and rejects a slow body. A late check counts as one period, because the bytes that arrived meanwhile are unread. */
  check(periodS: number, timeoutS: number, minRate: number): void {
    const rate = Math.max(minRate, this.room / timeoutS, 1);
    this.#age += periodS;
    this.#credit = Math.max(0, Math.min(MAX_CREDIT_S, this.#credit + (this.received - this.#lastReceived) / rate - periodS));
    this.#lastReceived = this.received;
    const isOver = performance.now() - this.#start >= timeoutS * 1000;
    if (isOver) this.refuse(slowBodyError(this.received, `to be in after ${timeoutS} s (STEPD_REQUEST_TIMEOUT_MS)`));
    else if (this.#age > GRACE_S && this.received < this.#age * rate) {
      this.refuse(slowBodyError(this.received, `at least ${Math.ceil(rate)} bytes a second, by its length, STEPD_REQUEST_TIMEOUT_MS and STEPD_MIN_BODY_RATE`));
    }
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
