/**
 * Receives bodies into leases. A body is admitted by its length before a byte is read; each chunk is copied once. A body must keep
 * the rate that its length and the request timeout require. A late body loses its memory when another call needs it, or after a
 * grace period.
 */
import { createHash, timingSafeEqual } from "node:crypto";
import type { Socket } from "node:net";
import zlib from "node:zlib";
import type { Request, Response } from "express";
import { StepdError } from "../errors/errors.ts";
import type { Lease } from "../rpc/rpc.ts";
import type { Admission, Limits } from "./_types.ts";
import type { HeapBudget, HeapShare } from "./heap.ts";
import type { MediaType } from "./negotiate.ts";

/** The first block of a body of unknown length. It doubles as the body grows. */
const FIRST_ROOM = 65536;

/** The caller disconnected before the end of the body, so there is nobody to reply to. */
export class ClientGone extends Error {
  override readonly name = "ClientGone";
}

/** The grace period in seconds, after which a body's average rate is enforced. */
const GRACE_S = 10;

/** The interval of the rate check in ms. */
const CHECK_MS = 250;
/** The least number of rate checks per request timeout. A short timeout shortens the interval. */
const CHECKS_PER_TIMEOUT = 10;

/** The initial credit of a body in seconds: the time for `100 Continue` to arrive and for the first bytes to come. */
const FIRST_CREDIT_S = 2;

/** The most seconds that a body may be ahead of its rate, and so may pause. */
const MAX_CREDIT_S = 10;

/** The time in ms for which the rest of a refused slow body is still read, so that its caller receives the error. */
export const LINGER_MS = 5000;

/** The bytes inflated at a time. */
const INFLATED_CHUNK = 65536;

/** The largest zstd window, as a power of two: the largest inflated body. Frames may ask for up to 2 GiB. */
const MAX_WINDOW_LOG = 24;

const INFLATERS = {
  gzip: () => zlib.createGunzip({ chunkSize: INFLATED_CHUNK }),
  zstd: () => zlib.createZstdDecompress({ chunkSize: INFLATED_CHUNK, params: { [zlib.constants.ZSTD_d_windowLogMax]: MAX_WINDOW_LOG } }),
};

type Encoding = keyof typeof INFLATERS;

export interface Body {
  readonly lease: Lease;
  readonly bytes: Buffer;
}

/** The arguments of `receive`. */
interface ReceiveOptions {
  readonly req: Request;
  readonly res: Response;
  readonly type: MediaType;
  readonly heap: HeapShare;
  /** Called with admitted bytes: once with the length, or with each chunk of a body of unknown length. */
  onAdmitted(bytes: number): void;
  /** Called at the end of the body: from then on the call waits for the server, not for its caller. */
  onReceived(): void;
}

export class Receiver {
  readonly #admission: Admission;
  readonly #limits: Limits;
  readonly #incoming = new Map<Socket, IncomingBody>();
  /** One timer for all bodies, so that small steps need not start and stop timers. */
  #timer: NodeJS.Timeout | undefined;
  /** The last inflation. Inflations run one after the other, because each takes memory up to its window. */
  #inflated: Promise<unknown> = Promise.resolve();

  constructor(admission: Admission, heap: HeapBudget, limits: Limits) {
    this.#admission = admission;
    this.#limits = limits;
    admission.reclaim = (requester) => this.#reclaim((body) => body.lease !== requester);
    heap.reclaim = (requester) => this.#reclaim((body) => body.heap !== requester && body.heap.held > 0);
  }

  /** Receives a whole body. The caller owns the returned lease. On a failure the lease is already released. */
  async receive({ req, res, type, heap, onAdmitted, onReceived }: ReceiveOptions): Promise<Body> {
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
    const lease = this.#admission.lease(length ?? FIRST_ROOM, heap);
    onAdmitted(length ?? 0);
    try {
      // Asks a caller with Expect: 100-continue to send only after admission.
      if (req.headers.expect !== undefined) res.writeContinue();
      const bytes = await this.#fill(req, lease, heap, length, (end, chunk) => {
        if (type.format === "json") admit(end);
        if (length === undefined) onAdmitted(chunk);
      });
      onReceived();
      requireDigest(req.headers["content-digest"], bytes);
      return { lease, bytes: isCompressed ? await this.#inflate(bytes, encoding as Encoding, lease, heap) : bytes };
    } catch (error) {
      lease[Symbol.dispose]();
      throw error;
    }
  }

  /** Refuses the body of an idle connection. Returns false if the connection is not sending one. */
  refuseSilent(socket: Socket): boolean {
    const body = this.#incoming.get(socket);
    body?.refuse(slow(body.received, `a byte at least every ${this.#limits.idleTimeoutMs / 1000} s (STEPD_IDLE_TIMEOUT_MS)`));
    return body !== undefined;
  }

  /** Refuses all unfinished bodies. Returns their number. */
  refuseAll(error: StepdError): number {
    const bodies = [...this.#incoming.values()];
    for (const body of bodies) body.refuse(error);
    return bodies.length;
  }

  #fill(req: Request, lease: Lease, heap: HeapShare, length: number | undefined, admit: (end: number, chunk: number) => void): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      // A body of unknown length moves to larger blocks as it grows.
      let { start } = lease;
      /** Stops writing into the lease, which may be released next while bytes of a refused body still arrive. */
      const stop = (): void => {
        // The next pipelined request may already have replaced the entry.
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
        // Frees the unused part of a growing block, for this call's computation and for others.
        lease.trim(start, body.received);
        resolve(lease.view(start, body.received));
      };
      const abort = (): void => {
        // "close" also follows a normal end, where creating an error would cost 4 % of a small step.
        if (!req.readableEnded) fail(new ClientGone("the connection ended in the middle of a body"));
      };
      const append = (chunk: Buffer): void => {
        try {
          const end = body.received + chunk.length;
          admit(end, chunk.length);
          if (end > body.room) ({ start, bytes: body.room } = lease.grow(start, body.received, end, Math.max(body.room * 2, end)));
          // `fill`, because `set` and `copy` into shared memory are 10 times slower if the offsets differ modulo 8 (measured).
          if (chunk.length > 0) lease.bytes.fill(chunk, start + body.received, start + end);
          body.received = end;
          discard(chunk);
        } catch (error) {
          fail(error);
        }
      };
      const body = new IncomingBody(lease, heap, length ?? FIRST_ROOM, fail);
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

  /** Refuses the largest late body, to free its memory for another call. Returns false if there is none. */
  #reclaim(isCandidate: (body: IncomingBody) => boolean): boolean {
    const late = [...this.#incoming.values()].filter((body) => body.isLate && isCandidate(body));
    const largest = late.reduce<IncomingBody | undefined>((most, body) => (most && most.room >= body.room ? most : body), undefined);
    largest?.refuse(slow(largest.received, "at the rate that its length and the request timeout ask for, when another call needs its memory"));
    return largest !== undefined;
  }

  #inflate(bytes: Buffer, encoding: Encoding, lease: Lease, heap: HeapShare): Promise<Buffer> {
    const inflated = this.#inflated.then(() => inflate(bytes, encoding, lease, heap, this.#limits.maxInflatedBytes));
    this.#inflated = inflated.catch(() => {});
    return inflated;
  }
}

const slow = (received: number, expected: string): StepdError => {
  const found = `${received} bytes so far`;
  return new StepdError("SLOW_BODY", `the body: expected ${expected}, found ${found}`, { field: "the body", expected, found, retry_after: 1 });
};

/** A body during its upload. */
class IncomingBody {
  readonly lease: Lease;
  readonly heap: HeapShare;
  readonly refuse: (error: unknown) => void;
  readonly #start = performance.now();
  received = 0;
  /** The bytes reserved for it in the arena. */
  room: number;
  /** The bytes received by the last check. */
  #lastReceived = 0;
  /** Its age in seconds, counted in check periods, so that time in which this thread was busy does not count. */
  #age = 0;
  /** The seconds by which it is ahead of its rate. */
  #credit = FIRST_CREDIT_S;

  constructor(lease: Lease, heap: HeapShare, room: number, refuse: (error: unknown) => void) {
    this.lease = lease;
    this.heap = heap;
    this.room = room;
    this.refuse = refuse;
  }

  /** True if it has fallen behind its rate. */
  get isLate(): boolean {
    return this.#credit <= 0;
  }

  /** Updates the credit and refuses a slow body. A late check counts as one period, because bytes that came meanwhile are not read yet. */
  check(periodS: number, timeoutS: number, minRate: number): void {
    const rate = Math.max(minRate, this.room / timeoutS, 1);
    this.#age += periodS;
    this.#credit = Math.max(0, Math.min(MAX_CREDIT_S, this.#credit + (this.received - this.#lastReceived) / rate - periodS));
    this.#lastReceived = this.received;
    const isOver = performance.now() - this.#start >= timeoutS * 1000;
    if (isOver) this.refuse(slow(this.received, `to be in after ${timeoutS} s (STEPD_REQUEST_TIMEOUT_MS)`));
    else if (this.#age > GRACE_S && this.received < this.#age * rate) {
      this.refuse(slow(this.received, `at least ${Math.ceil(rate)} bytes a second, by its length, STEPD_REQUEST_TIMEOUT_MS and STEPD_MIN_BODY_RATE`));
    }
  }
}

/**
 * Frees a chunk's memory at once. Left to the garbage collector, 64 MiB of chunks cost a full collection of 10 to 15 ms, and new
 * chunks get cold memory: together a quarter of a step of 16 Mi parameters (measured).
 */
export const discard = (chunk: Buffer): void => {
  const { buffer, byteOffset, length } = chunk;
  // Node 20 lacks `transfer`. A chunk that is part of a larger buffer must not free it.
  if (byteOffset === 0 && buffer.byteLength === length) (buffer as ArrayBuffer).transfer?.(0);
};

/** Inflates a body into its call's lease. The limits are checked after each chunk. */
const inflate = async (bytes: Buffer, encoding: Encoding, lease: Lease, heap: HeapShare, maxBytes: number): Promise<Buffer> => {
  const stream = INFLATERS[encoding]();
  // Copies the body, at most 1 MiB, because zlib does not read shared memory.
  stream.end(Buffer.from(bytes));
  let room = FIRST_ROOM;
  let start = lease.allocInput(room);
  let length = 0;
  try {
    for await (const chunk of stream as AsyncIterable<Buffer>) {
      const end = length + chunk.length;
      if (end > maxBytes) throw StepdError.mismatch("PAYLOAD_TOO_LARGE", "the body", `at most ${maxBytes} bytes after inflation`, "more");
      heap.growToText(end);
      if (end > room) ({ start, bytes: room } = lease.grow(start, length, end, Math.max(room * 2, end)));
      lease.bytes.fill(chunk, start + length, start + end);
      length = end;
    }
  } catch (error) {
    if (error instanceof StepdError) throw error;
    throw StepdError.mismatch("PARSE_ERROR", "the body", `${encoding} data with a window of at most ${2 ** MAX_WINDOW_LOG} bytes`, (error as Error).message);
  }
  lease.trim(start, length);
  return lease.view(start, length);
};

/** Checks the sha-256 of a Content-Digest header (RFC 9530), if it has one. */
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

/** Reads and drops the rest of a refused body, so that the caller can finish sending and receive the reply. Closes the connection after the timeout. */
export const dropRest = (req: Request, timeoutMs: number): void => {
  const { socket } = req;
  const timer = setTimeout(() => socket.destroy(), timeoutMs).unref();
  // Clears the timer early, because it keeps the request alive: thousands of them under overload kept the garbage collector busy.
  // Listens for the socket's "close", because a request whose reply is sent has none.
  const stop = (): void => {
    clearTimeout(timer);
    req.off("end", stop);
    socket.off("close", stop);
  };
  req.once("end", stop);
  socket.once("close", stop);
  req.on("data", discard);
};
