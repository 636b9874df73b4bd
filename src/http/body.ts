/**
 * Receives bodies into leases: admission by length before a byte is read, then one copy of each chunk. A body keeps the room
 * for its length while it comes at the rate that its length and the request timeout ask for. One that falls behind gives its
 * memory back: as soon as another call needs it, and after the grace in any case.
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

/** The first room for a body that does not say its length; it doubles as the body grows. */
const FIRST_ROOM = 65536;

/** The connection ended before the body did; nobody is there to be told. */
export class ClientGone extends Error {
  override readonly name = "ClientGone";
}

/** A body has this long until its average rate must be right, in seconds. */
const GRACE_S = 10;

/** How often rates are looked at, in ms; more often where the request timeout is short. */
const CHECK_MS = 250;
const CHECKS_PER_TIMEOUT = 10;

/** Seconds that a body may do without bytes from its start on until others may have its memory: time for a `100 Continue` to go and for bytes to come. */
const FIRST_CREDIT_S = 2;

/** Seconds that a body which was ahead may pause. */
const MAX_CREDIT_S = 10;

/** How long what still comes of a body that was too slow is read, in ms, so that its caller can see why. */
export const LINGER_MS = 5000;

/** Bytes that are inflated at a time. */
const INFLATED_CHUNK = 65536;

/** Zstandard frames may ask for a window of up to 2 GiB. One as large as the largest inflated body is enough for any that is taken. */
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

/** What a call's body is, and what it may take. */
interface Arrival {
  readonly req: Request;
  readonly res: Response;
  readonly type: MediaType;
  readonly heap: HeapShare;
  /** Is told of the body's bytes: all of them once they are admitted, or as they come where the body does not say its length. */
  hold(bytes: number): void;
  /** Is told when the body is in: from then on the call waits for this server. */
  compute(): void;
}

export class Receiver {
  readonly #admission: Admission;
  readonly #limits: Limits;
  readonly #incoming = new Map<Socket, Incoming>();
  /** One timer for all bodies, because each small step would start and stop its own. */
  #timer: NodeJS.Timeout | undefined;
  /** Bodies are inflated one after the other: each decompressor has memory of its own, up to its window. */
  #inflated: Promise<unknown> = Promise.resolve();

  constructor(admission: Admission, heap: HeapBudget, limits: Limits) {
    this.#admission = admission;
    this.#limits = limits;
    admission.reclaim = (asking) => this.#reclaim((body) => body.lease !== asking);
    heap.reclaim = (asking) => this.#reclaim((body) => body.heap !== asking && body.heap.held > 0);
  }

  /** Receives the whole body. The caller owns the lease; on any failure it has been given back. */
  async receive({ req, res, type, heap, hold, compute }: Arrival): Promise<Body> {
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
    hold(length ?? 0);
    try {
      // Only now is the caller asked to send (Expect: 100-continue), after admission.
      if (req.headers.expect !== undefined) res.writeContinue();
      const bytes = await this.#fill(req, lease, heap, length, (end, chunk) => {
        if (type.format === "json") admit(end);
        if (length === undefined) hold(chunk);
      });
      compute();
      requireDigest(req.headers["content-digest"], bytes);
      return { lease, bytes: isCompressed ? await this.#inflate(bytes, encoding as Encoding, lease, heap) : bytes };
    } catch (error) {
      lease[Symbol.dispose]();
      throw error;
    }
  }

  /** Refuses the body of a connection that has been silent for the idle time. Returns whether there is one. */
  refuseSilent(socket: Socket): boolean {
    const body = this.#incoming.get(socket);
    body?.refuse(slow(body.received, `a byte at least every ${this.#limits.idleTimeoutMs / 1000} s (STEPD_IDLE_TIMEOUT_MS)`));
    return body !== undefined;
  }

  /** Refuses all bodies that are not in yet. Returns how many there are. */
  refuseAll(error: StepdError): number {
    const bodies = [...this.#incoming.values()];
    for (const body of bodies) body.refuse(error);
    return bodies.length;
  }

  #fill(req: Request, lease: Lease, heap: HeapShare, length: number | undefined, admit: (end: number, chunk: number) => void): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      // A body of unknown length moves to larger blocks as it comes.
      let { start } = lease;
      /** From here on the lease is another's. What still comes of a refused body must not touch it. */
      const stop = (): void => {
        // Of pipelined requests the next may be coming in already.
        if (this.#incoming.get(req.socket) === body) this.#incoming.delete(req.socket);
        req.off("data", take).off("end", finish);
      };
      const fail = (error: unknown): void => {
        stop();
        lease[Symbol.dispose]();
        heap[Symbol.dispose]();
        reject(error);
      };
      const finish = (): void => {
        stop();
        // What a body of unknown length did not need is for its own computing, and for others.
        lease.trim(start, body.received);
        resolve(lease.view(start, body.received));
      };
      const lose = (): void => {
        // A request is closed at its good end as well, where an error with its stack would be 4 % of a small step.
        if (!req.readableEnded) fail(new ClientGone("the connection ended in the middle of a body"));
      };
      const take = (chunk: Buffer): void => {
        try {
          const end = body.received + chunk.length;
          admit(end, chunk.length);
          if (end > body.room) ({ start, bytes: body.room } = lease.grow(start, body.received, end, Math.max(body.room * 2, end)));
          // fill, not set or copy: into shared memory these are 10 times slower where the offsets differ modulo 8 (measured).
          if (chunk.length > 0) lease.bytes.fill(chunk, start + body.received, start + end);
          body.received = end;
          discard(chunk);
        } catch (error) {
          fail(error);
        }
      };
      const body = new Incoming(lease, heap, length ?? FIRST_ROOM, fail);
      this.#watch(req.socket, body);
      req.on("data", take);
      req.once("end", finish);
      req.once("error", lose);
      req.once("close", lose);
    });
  }

  #watch(socket: Socket, body: Incoming): void {
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

  /** Refuses the body that has the most room among those that are late, for a call that needs it. */
  #reclaim(isCandidate: (body: Incoming) => boolean): boolean {
    const late = [...this.#incoming.values()].filter((body) => body.isLate && isCandidate(body));
    const largest = late.reduce<Incoming | undefined>((most, body) => (most && most.room >= body.room ? most : body), undefined);
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

/** A body that is coming in. */
class Incoming {
  readonly lease: Lease;
  readonly heap: HeapShare;
  readonly refuse: (error: unknown) => void;
  readonly #begun = performance.now();
  received = 0;
  /** Bytes that are set aside for it in the arena. */
  room: number;
  /** Bytes that had been received at the last check. */
  #seen = 0;
  /** Seconds since its start, as far as this thread had the time to read. */
  #age = 0;
  /** Seconds that it is ahead of its rate. */
  #credit = FIRST_CREDIT_S;

  constructor(lease: Lease, heap: HeapShare, room: number, refuse: (error: unknown) => void) {
    this.lease = lease;
    this.heap = heap;
    this.room = room;
    this.refuse = refuse;
  }

  /** Whether it holds memory and does not come at its rate. */
  get isLate(): boolean {
    return this.#credit <= 0;
  }

  /** A check counts as one period, however late it is: what came while this thread was busy has not been read yet. */
  check(periodS: number, timeoutS: number, minRate: number): void {
    const rate = Math.max(minRate, this.room / timeoutS, 1);
    this.#age += periodS;
    this.#credit = Math.max(0, Math.min(MAX_CREDIT_S, this.#credit + (this.received - this.#seen) / rate - periodS));
    this.#seen = this.received;
    const isOver = performance.now() - this.#begun >= timeoutS * 1000;
    if (isOver) this.refuse(slow(this.received, `to be in after ${timeoutS} s (STEPD_REQUEST_TIMEOUT_MS)`));
    else if (this.#age > GRACE_S && this.received < this.#age * rate) {
      this.refuse(slow(this.received, `at least ${Math.ceil(rate)} bytes a second, by its length, STEPD_REQUEST_TIMEOUT_MS and STEPD_MIN_BODY_RATE`));
    }
  }
}

/**
 * Frees a chunk's memory at once. It lies outside the heap, and left to the garbage collector 64 MiB of chunks cost a collection
 * of the whole heap, 10 to 15 ms, and the next chunk cold memory: together a quarter of a step of 16 Mi parameters (measured).
 */
export const discard = (chunk: Buffer): void => {
  const { buffer, byteOffset, length } = chunk;
  // Node 20 cannot. A part of a larger buffer is not this chunk's alone.
  if (byteOffset === 0 && buffer.byteLength === length) (buffer as ArrayBuffer).transfer?.(0);
};

/** Inflates a body into the lease of its call. Each piece is counted before the next is made. */
const inflate = async (bytes: Buffer, encoding: Encoding, lease: Lease, heap: HeapShare, maxBytes: number): Promise<Buffer> => {
  const stream = INFLATERS[encoding]();
  // A copy of at most 1 MiB: zlib does not read shared memory.
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

/** Checks a Content-Digest header (RFC 9530) where it has sha-256. */
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

/** Reads the rest of a refused body and drops it, so that the caller can finish sending and see the reply. What takes too long is cut off. */
export const dropRest = (req: Request, timeoutMs: number): void => {
  const { socket } = req;
  const timer = setTimeout(() => socket.destroy(), timeoutMs).unref();
  // The timer holds all of the request. Under overload there are thousands of them, and collecting garbage took all of the
  // thread. A request whose reply is out has no close of its own when its connection ends.
  const stop = (): void => {
    clearTimeout(timer);
    req.off("end", stop);
    socket.off("close", stop);
  };
  req.once("end", stop);
  socket.once("close", stop);
  req.on("data", discard);
};
