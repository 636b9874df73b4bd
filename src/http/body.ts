/** Receives a body into a lease: admission by its length before a byte is read, then one copy of each chunk. */
import { createHash, timingSafeEqual } from "node:crypto";
import { promisify } from "node:util";
import zlib from "node:zlib";
import type { Request, Response } from "express";
import { StepdError } from "../errors/errors.ts";
import type { Lease } from "../rpc/rpc.ts";
import type { Admission, Limits } from "./_types.ts";
import type { MediaType } from "./negotiate.ts";
import type { TextShare } from "./text.ts";

/** The first room for a body that does not say its length; it doubles as the body grows. */
const FIRST_ROOM = 65536;

/** The connection ended before the body did; nobody is there to be told. */
export class ClientGone extends Error {
  override readonly name = "ClientGone";
}

/** The body came too slowly, and held memory meanwhile; the connection was cut. */
export class TooSlow extends ClientGone {}

/** A body has this long until its rate is looked at. */
const GRACE_MS = 10_000;

/** How often it is looked at from then on. */
const RATE_CHECK_MS = 1000;

export interface Body {
  readonly lease: Lease;
  readonly bytes: Buffer;
}

const inflaters = {
  gzip: promisify<Buffer, zlib.ZlibOptions, Buffer>(zlib.gunzip),
  zstd: promisify<Buffer, zlib.ZstdOptions, Buffer>(zlib.zstdDecompress),
};

/**
 * Receives the whole body. The caller owns the lease; on any failure it has been given back. `text` is what a call with
 * JSON takes of the memory for it. `hold` is told of the body's bytes: all of them once they are admitted, or as they come where the body does not say its length.
 */
export const receive = async (
  req: Request,
  res: Response,
  type: MediaType,
  admission: Admission,
  limits: Limits,
  text: TextShare | undefined,
  hold: (bytes: number) => void,
): Promise<Body> => {
  const encoding = (req.headers["content-encoding"] ?? "identity").toLowerCase();
  const isCompressed = encoding !== "identity";
  if (isCompressed && (type.format !== "json" || !Object.hasOwn(inflaters, encoding))) {
    throw StepdError.mismatch("UNSUPPORTED_MEDIA_TYPE", "Content-Encoding", "identity, or gzip or zstd with JSON", encoding);
  }
  const header = req.headers["content-length"];
  const length = header === undefined ? undefined : Number(header);
  const requireWithin = (bytes: number): void => {
    if (isCompressed && bytes > limits.maxCompressedBytes)
      throw StepdError.mismatch("PAYLOAD_TOO_LARGE", "Content-Length", `at most ${limits.maxCompressedBytes} bytes of ${encoding}`, `${bytes}`);
    text?.growTo(bytes);
  };
  requireWithin(length ?? 0);
  const lease = admission.lease(length ?? FIRST_ROOM);
  hold(length ?? 0);
  try {
    // Only now is the caller asked to send (Expect: 100-continue), after admission.
    if (req.headers.expect !== undefined) res.writeContinue();
    const bytes = await fill(req, lease, length, limits.minBodyRate, (end, chunk) => {
      requireWithin(end);
      if (length === undefined) hold(chunk);
    });
    requireDigest(req.headers["content-digest"], bytes);
    if (!isCompressed) return { lease, bytes };
    const inflated = await inflate(bytes, encoding as keyof typeof inflaters, limits);
    text?.growTo(inflated.length);
    return { lease, bytes: inflated };
  } catch (error) {
    lease[Symbol.dispose]();
    throw error;
  }
};

/** Checks of all bodies that are coming in. One timer for all, because each small step would start and stop its own. */
const incoming = new Set<(now: number) => void>();
let timer: NodeJS.Timeout | undefined;

const watch = (check: (now: number) => void): void => {
  incoming.add(check);
  timer ??= setInterval(() => {
    const now = performance.now();
    for (const look of incoming) look(now);
    if (incoming.size > 0) return;
    clearInterval(timer);
    timer = undefined;
  }, RATE_CHECK_MS).unref();
};

const fill = (req: Request, lease: Lease, length: number | undefined, minRate: number, admit: (end: number, chunk: number) => void): Promise<Buffer> =>
  new Promise((resolve, reject) => {
    const begun = performance.now();
    const check = (now: number): void => {
      if (now - begun < GRACE_MS || received >= ((now - begun) / 1000) * minRate) return;
      fail(new TooSlow(`the body came with less than ${minRate} bytes a second`));
      req.socket.destroy();
    };
    watch(check);
    let room = length ?? FIRST_ROOM;
    let received = 0;
    // A body of unknown length moves to larger blocks as it comes.
    let { start } = lease;
    /** From here on the lease is another's. What still comes of a refused body must not touch it. */
    const stop = (): void => {
      incoming.delete(check);
      req.off("data", take).off("end", finish);
    };
    const fail = (error: unknown): void => {
      stop();
      reject(error);
    };
    const finish = (): void => {
      stop();
      // What a body of unknown length did not need is for its own computing, and for others.
      lease.trim(start, received);
      resolve(lease.view(start, received));
    };
    const lose = (): void => {
      // A request is closed at its good end as well, where an error with its stack would be 4 % of a small step.
      if (!req.readableEnded) fail(new ClientGone("the connection ended in the middle of a body"));
    };
    const take = (chunk: Buffer): void => {
      try {
        const end = received + chunk.length;
        admit(end, chunk.length);
        if (end > room) ({ start, bytes: room } = lease.grow(start, received, end, Math.max(room * 2, end)));
        // fill, not set or copy: into shared memory these are 10 times slower where the offsets differ modulo 8 (measured).
        if (chunk.length > 0) lease.bytes.fill(chunk, start + received, start + end);
        received = end;
        discard(chunk);
      } catch (error) {
        fail(error);
      }
    };
    req.on("data", take);
    req.once("end", finish);
    req.once("error", lose);
    req.once("close", lose);
  });

/**
 * Frees a chunk's memory at once. It lies outside the heap, and left to the garbage collector 64 MiB of chunks cost a collection
 * of the whole heap, 10 to 15 ms, and the next chunk cold memory: together a quarter of a step of 16 Mi parameters (measured).
 */
export const discard = (chunk: Buffer): void => {
  const { buffer, byteOffset, length } = chunk;
  // Node 20 cannot. A part of a larger buffer is not this chunk's alone.
  if (byteOffset === 0 && buffer.byteLength === length) (buffer as ArrayBuffer).transfer?.(0);
};

const inflate = async (bytes: Buffer, encoding: keyof typeof inflaters, { maxInflatedBytes }: Limits): Promise<Buffer> => {
  try {
    // The copy is small, and zlib does not read shared memory.
    return await inflaters[encoding](Buffer.from(bytes), { maxOutputLength: maxInflatedBytes });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ERR_BUFFER_TOO_LARGE") {
      throw StepdError.mismatch("PAYLOAD_TOO_LARGE", "the body", `at most ${maxInflatedBytes} bytes after inflation`, "more");
    }
    throw StepdError.mismatch("PARSE_ERROR", "the body", `${encoding} data`, (error as Error).message);
  }
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
