/**
 * Reads and writes the folder that the server shares with trainers on its host, for instance under /dev/shm. A call names a range of a file instead of
 * sending bytes, and results go to such a range. Files are read and written, not mapped: if a mapped file were truncated, a signal
 * would kill the process.
 */
import { constants, realpathSync, statSync } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { join } from "node:path";
import type { Parts } from "../codec/parts.ts";
import { StepdError } from "../errors/errors.ts";
import type { SharedBlob } from "../generated/wire.gen.ts";

/** Each read or write on libuv's threads has at most this many bytes. Reads run in parallel. */
const CHUNK_BYTES = 16 * 2 ** 20;

/** Linux writes at most this many buffers at once. */
const MAX_BUFFERS_PER_WRITE = 1024;

// O_NONBLOCK opens a pipe without waiting for its other end. The folder's `open` then rejects the pipe.
const OPEN_FLAGS = constants.O_NOFOLLOW | constants.O_NONBLOCK;

const MODES = {
  read: { flags: constants.O_RDONLY, file: "a regular file in the shared folder that this server may read" },
  write: { flags: constants.O_WRONLY, file: "a regular file in the shared folder that this server may write" },
};

const invalid = (field: string, expected: string, found: string): StepdError => StepdError.mismatch("INVALID_PARAMS", field, expected, found);

export class SharedFolder {
  readonly #path: string;
  /** The bytes read since the server's start. */
  bytesIn = 0;
  /** The bytes written since the server's start. */
  bytesOut = 0;

  /** Throws an Error if the path is not a folder. */
  constructor(path: string) {
    this.#path = realpathSync(path);
    if (!statSync(this.#path).isDirectory()) throw new Error("it is no folder");
  }

  /**
   * Opens the file that `blob` names. A server with tokens, which needs Linux, opens it in the caller's own subfolder. Symbolic and hard
   * links are rejected, because they could lead out of the folder. Throws INVALID_PARAMS for `field`, or OVERLOADED.
   */
  async open(blob: SharedBlob, use: "read" | "write", field: string, caller: string | undefined): Promise<SharedRange> {
    const { flags, file: expected } = MODES[use];
    const refuse = (found: string): StepdError => invalid(`${field}/file`, expected, found);
    await using folder = caller === undefined ? undefined : await this.#folderOf(caller, refuse);
    // The subfolder could be replaced by a link after its path is checked, so the file is opened through the subfolder's descriptor.
    const path = folder === undefined ? this.#path : `/proc/self/fd/${folder.fd}`;
    const handle = await open(join(path, blob.file), flags | OPEN_FLAGS).catch((error: NodeJS.ErrnoException) => {
      throw openError(error, refuse);
    });
    try {
      const found = await handle.stat();
      if (!found.isFile()) throw refuse("something else");
      if (found.nlink > 1) throw refuse("a file that has another name as well");
      // A write to a file with holes could fail midway and leave the file half overwritten.
      if (use === "write" && found.blocks * STAT_BLOCK_BYTES < found.size) throw refuse("one with holes; reserve its memory, by fallocate or by writing zeros");
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

/** A subfolder's name starts with a letter, digit or underscore. This excludes "." and "..", which are valid token names. */
const FOLDER_NAME = /^\w/;

/** `blocks` of a file's stat counts units of this many bytes. */
const STAT_BLOCK_BYTES = 512;

const EXHAUSTION_CODES = ["EMFILE", "ENFILE", "ENOMEM", "EAGAIN"];

/** Converts an error of `open`: the caller's mistake becomes `refuse(found)`, exhaustion becomes OVERLOADED, the rest is internal. */
const openError = (error: NodeJS.ErrnoException, refuse: (found: string) => StepdError): Error => {
  const found = OPEN_REFUSALS[error.code ?? ""];
  if (found !== undefined) return refuse(found);
  if (EXHAUSTION_CODES.includes(error.code ?? ""))
    return new StepdError("OVERLOADED", "The server cannot open more files of the shared folder now", { found: error.code, retry_after: 1 });
  return error;
};

/** Describes each error code as the "found" part of an error message. */
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

/** A byte range of an open file. */
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

  /** Reads the range into `memory` at `start`. Throws INVALID_PARAMS if the file was truncated after it was opened. */
  async read(memory: Buffer, start: number): Promise<void> {
    const { offset, length } = this.blob;
    const starts = Array.from({ length: Math.ceil(length / CHUNK_BYTES) }, (_, index) => index * CHUNK_BYTES);
    const counts = await allSettled(starts.map((at) => this.#handle.read(memory, start + at, Math.min(CHUNK_BYTES, length - at), offset + at)));
    const read = counts.reduce((sum, { bytesRead }) => sum + bytesRead, 0);
    if (read < length) throw invalid(`${this.field}/length`, `${length} bytes in the file`, `${read} while reading`);
    this.#folder.bytesIn += length;
  }

  /** Throws INVALID_PARAMS if a result of `bytes` does not fit the range. */
  requireRoom(bytes: number): void {
    if (bytes > this.blob.length) throw invalid(`${this.field}/length`, `at least ${bytes}, the bytes of the result`, String(this.blob.length));
  }

  /**
   * Writes a result and returns its range. Chunks are written one after the other, because Linux serializes writes to a file and waiting
   * threads would spin (measured). Throws INVALID_PARAMS with the number of written bytes if the file cannot take more.
   */
  async write(result: Parts): Promise<SharedBlob> {
    let written = 0;
    for (const buffers of splitIntoWrites(result)) {
      for (let remaining = buffers; remaining.length > 0; ) {
        const { bytesWritten } = await this.#handle.writev(remaining, this.blob.offset + written).catch((error: NodeJS.ErrnoException) => {
          throw this.#writeError(error, result.length, written);
        });
        if (bytesWritten === 0) throw new Error(`the shared file ${this.blob.file} took nothing after ${written} bytes`);
        written += bytesWritten;
        // A partial write means that the file is full. The next write returns the reason.
        remaining = skipBytes(remaining, bytesWritten);
      }
    }
    this.#folder.bytesOut += result.length;
    return { ...this.blob, length: result.length };
  }

  /** Returns INVALID_PARAMS for a failed write. A retry cannot succeed, because the call's inputs may be partly overwritten. */
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

/** Describes each code of a failed write. Even a file without holes can fail: by copy-on-write, or by holes made after it was opened. */
const FULL_REASONS: Readonly<Record<string, string>> = {
  ENOSPC: "a full file system",
  EDQUOT: "a quota that is used up",
  EFBIG: "the server's limit of file sizes (ulimit -f)",
};

/** Waits for all promises, then returns their values or throws the first error. All work on a lease must end before its release. */
export const allSettled = async <T extends readonly unknown[]>(work: readonly [...{ [K in keyof T]: T[K] | Promise<T[K]> }]): Promise<T> => {
  const outcomes = await Promise.allSettled(work);
  for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
  return outcomes.map((outcome) => (outcome as PromiseFulfilledResult<unknown>).value) as unknown as T;
};

/** Removes the first bytes of a list of buffers. */
const skipBytes = (buffers: readonly Uint8Array[], bytes: number): Uint8Array[] => {
  let skip = bytes;
  return buffers.flatMap((buffer) => {
    const rest = buffer.subarray(skip);
    skip = Math.max(0, skip - buffer.length);
    return rest.length > 0 ? [rest] : [];
  });
};

/** Groups the pieces of a result into writes within the limits on bytes and buffers. */
const splitIntoWrites = ({ pieces }: Parts): Uint8Array[][] => {
  const all: Uint8Array[][] = [];
  let room = 0;
  for (const piece of pieces) {
    for (let at = 0; at < piece.length; ) {
      if (room <= 0 || all.at(-1)?.length === MAX_BUFFERS_PER_WRITE) {
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
