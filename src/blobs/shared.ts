/**
 * The folder that the server shares with trainers on its host, for instance under /dev/shm. A call names a range of a file instead
 * of sending bytes, and results are written back there. Files are read and written, not mapped: truncating a mapped file would
 * kill the process by a signal.
 */
import { constants, realpathSync, statSync } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { join } from "node:path";
import type { Parts } from "../codec/parts.ts";
import { StepdError } from "../errors/errors.ts";
import type { SharedBlob } from "../generated/wire.gen.ts";

/** The bytes of one read or write on libuv's threads. Reads run in parallel. */
const CHUNK_BYTES = 16 * 2 ** 20;

/** The most buffers of one write, Linux's limit. */
const MAX_BUFFERS = 1024;

/** `O_NONBLOCK` opens a pipe without waiting for its other end; `open` refuses pipes afterwards. */
const FLAGS = constants.O_NOFOLLOW | constants.O_NONBLOCK;

const EXPECTED = {
  read: { flags: constants.O_RDONLY, file: "a regular file in the shared folder that this server may read" },
  write: { flags: constants.O_WRONLY, file: "a regular file in the shared folder that this server may write" },
};

const invalid = (field: string, expected: string, found: string): StepdError => StepdError.mismatch("INVALID_PARAMS", field, expected, found);

export class SharedFolder {
  readonly #path: string;
  /** Bytes read since the start. */
  bytesIn = 0;
  /** Bytes written since the start. */
  bytesOut = 0;

  /** Throws Error if the path is not a folder. */
  constructor(path: string) {
    this.#path = realpathSync(path);
    if (!statSync(this.#path).isDirectory()) throw new Error("it is no folder");
  }

  /**
   * Opens the file that `blob` names. On a server with tokens, which needs Linux, it is opened in the caller's own subfolder. Symbolic
   * and hard links are refused, because they could lead out of the folder. Throws INVALID_PARAMS for `field`, or OVERLOADED.
   */
  async open(blob: SharedBlob, use: "read" | "write", field: string, caller: string | undefined): Promise<SharedRange> {
    const { flags, file: expected } = EXPECTED[use];
    const refuse = (found: string): StepdError => invalid(`${field}/file`, expected, found);
    await using folder = caller === undefined ? undefined : await this.#folderOf(caller, refuse);
    // Opens by descriptor, because the folder could be replaced by a link after the check of its path.
    const path = folder === undefined ? this.#path : `/proc/self/fd/${folder.fd}`;
    const handle = await open(join(path, blob.file), flags | FLAGS).catch((error: NodeJS.ErrnoException) => {
      throw openError(error, refuse);
    });
    try {
      const found = await handle.stat();
      if (!found.isFile()) throw refuse("something else");
      if (found.nlink > 1) throw refuse("a file that has another name as well");
      // Without reserved memory a write could fail midway and leave the file half overwritten.
      if (use === "write" && found.blocks * BLOCK_BYTES < found.size) throw refuse("one with holes; reserve its memory, by fallocate or by writing zeros");
      if (blob.offset > found.size) throw invalid(`${field}/offset`, `at most ${found.size}, the file's size`, String(blob.offset));
      const available = found.size - blob.offset;
      if (blob.length > available) throw invalid(`${field}/length`, `at most ${available}, what the file has from there`, String(blob.length));
    } catch (error) {
      await handle.close();
      throw error;
    }
    return new SharedRange(this, handle, blob, field);
  }

  async #folderOf(caller: string, refuse: (found: string) => StepdError): Promise<FileHandle> {
    if (!FOLDER_NAME.test(caller)) throw refuse("a token whose name can be no folder's");
    return open(join(this.#path, caller), constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW).catch((error: NodeJS.ErrnoException) => {
      throw openError(error, () => refuse("no folder of the caller's token"));
    });
  }
}

/** Refuses "." and "..", which are valid token names. */
const FOLDER_NAME = /^\w/;

/** The unit of st_blocks. */
const BLOCK_BYTES = 512;

const EXHAUSTED = ["EMFILE", "ENFILE", "ENOMEM", "EAGAIN"];

/** The error for a file that cannot be opened: the caller's mistake, a temporary overload, or an internal error for the log. */
const openError = (error: NodeJS.ErrnoException, refuse: (found: string) => StepdError): Error => {
  const found = OPEN_REFUSALS[error.code ?? ""];
  if (found !== undefined) return refuse(found);
  if (EXHAUSTED.includes(error.code ?? ""))
    return new StepdError("OVERLOADED", "The server cannot open more files of the shared folder now", { found: error.code, retry_after: 1 });
  return error;
};

/** The found value of the error message, by error code. */
const OPEN_REFUSALS: Readonly<Record<string, string>> = {
  ENOENT: "none of that name",
  ELOOP: "a link",
  ENOTDIR: "a link",
  EACCES: "one that it may not",
  EPERM: "one that it may not",
  EROFS: "one that it may not",
  EISDIR: "a folder",
  ENXIO: "a pipe",
};

/** A byte range of an open file, to read from or to write to. */
export class SharedRange implements AsyncDisposable {
  readonly #folder: SharedFolder;
  readonly #handle: FileHandle;
  readonly blob: SharedBlob;
  readonly field: string;

  constructor(folder: SharedFolder, handle: FileHandle, blob: SharedBlob, field: string) {
    this.#folder = folder;
    this.#handle = handle;
    this.blob = blob;
    this.field = field;
  }

  /** Reads the range into `memory` at `start`. Throws INVALID_PARAMS if the file was truncated in the meantime. */
  async read(memory: Buffer, start: number): Promise<void> {
    const { offset, length } = this.blob;
    const starts = Array.from({ length: Math.ceil(length / CHUNK_BYTES) }, (_, index) => index * CHUNK_BYTES);
    const counts = await settled(starts.map((at) => this.#handle.read(memory, start + at, Math.min(CHUNK_BYTES, length - at), offset + at)));
    const read = counts.reduce((sum, { bytesRead }) => sum + bytesRead, 0);
    if (read < length) throw invalid(`${this.field}/length`, `${length} bytes in the file`, `${read} while reading`);
    this.#folder.bytesIn += length;
  }

  /** Throws INVALID_PARAMS if a result of `bytes` is longer than the range. */
  requireRoom(bytes: number): void {
    if (bytes > this.blob.length) throw invalid(`${this.field}/length`, `at least ${bytes}, the bytes of the result`, String(this.blob.length));
  }

  /**
   * Writes a result and returns its range. Chunks are written one after the other: Linux serializes writes to a file, and waiting
   * threads would spin (measured). Throws INVALID_PARAMS if the file is full, with the bytes written so far.
   */
  async write(result: Parts): Promise<SharedBlob> {
    let written = 0;
    for (const buffers of batches(result)) {
      for (let remaining = buffers; remaining.length > 0; ) {
        const { bytesWritten } = await this.#handle.writev(remaining, this.blob.offset + written).catch((error: NodeJS.ErrnoException) => {
          throw this.#writeError(error, result.length, written);
        });
        if (bytesWritten === 0) throw new Error(`the shared file ${this.blob.file} took nothing after ${written} bytes`);
        written += bytesWritten;
        // A partial write means that the file is full; the next write returns the reason.
        remaining = afterBytes(remaining, bytesWritten);
      }
    }
    this.#folder.bytesOut += result.length;
    return { ...this.blob, length: result.length };
  }

  /** INVALID_PARAMS, not a retryable error, because the call's inputs may be partly overwritten. */
  #writeError(error: NodeJS.ErrnoException, bytes: number, written: number): Error {
    const what = FULL_REASONS[error.code ?? ""];
    if (what === undefined) return error;
    const done = written > 0 ? "; what was there before is overwritten so far" : "";
    return invalid(`${this.field}/file`, `a place that takes all ${bytes} bytes of the result`, `${error.code}, ${what}, after ${written} bytes${done}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#handle.close();
  }
}

/** Reasons for a failed write to a file with reserved memory: a copy-on-write file system, or holes made after opening. */
const FULL_REASONS: Readonly<Record<string, string>> = {
  ENOSPC: "a full file system",
  EDQUOT: "a quota that is used up",
  EFBIG: "the server's limit of file sizes (ulimit -f)",
};

/** Waits for all promises, then returns their values or throws the first failure. Work on a lease must end before the lease is released. */
export const settled = async <T extends readonly unknown[]>(work: readonly [...{ [K in keyof T]: T[K] | Promise<T[K]> }]): Promise<T> => {
  const outcomes = await Promise.allSettled(work);
  for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
  return outcomes.map((outcome) => (outcome as PromiseFulfilledResult<unknown>).value) as unknown as T;
};

/** The buffers without their first bytes. */
const afterBytes = (buffers: readonly Uint8Array[], bytes: number): Uint8Array[] => {
  let skip = bytes;
  return buffers.flatMap((buffer) => {
    const rest = buffer.subarray(skip);
    skip = Math.max(0, skip - buffer.length);
    return rest.length > 0 ? [rest] : [];
  });
};

/** Groups the pieces of a result into writes, within the limits on bytes and buffers. */
const batches = ({ pieces }: Parts): Uint8Array[][] => {
  const all: Uint8Array[][] = [];
  let room = 0;
  for (const piece of pieces) {
    for (let at = 0; at < piece.length; ) {
      if (room <= 0 || all.at(-1)?.length === MAX_BUFFERS) {
        all.push([]);
        room = CHUNK_BYTES;
      }
      const part = piece.subarray(at, at + room);
      all.at(-1)?.push(part);
      room -= part.length;
      at += part.length;
    }
  }
  return all;
};
