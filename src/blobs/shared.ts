/**
 * The folder that the server shares with trainers on its host, for instance under /dev/shm: a call names bytes in its files
 * instead of sending them, and the results go back there. Files are read and written, not mapped, so that a file that is cut
 * short by its owner is an error and no signal.
 */
import { constants, realpathSync, statSync } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { join } from "node:path";
import type { Parts } from "../codec/parts.ts";
import { StepdError } from "../errors/errors.ts";
import type { SharedBlob } from "../generated/wire.gen.ts";

/** Pieces of this many bytes are read and written at a time, by libuv's threads: several at once where they are read. */
const PIECE_BYTES = 16 * 2 ** 20;

/** Buffers in one write; Linux takes 1024. */
const MAX_BUFFERS = 1024;

/** `O_NONBLOCK` opens a pipe without waiting for its other end, so that it can be refused. */
const FLAGS = constants.O_NOFOLLOW | constants.O_NONBLOCK;

const EXPECTED = {
  read: { flags: constants.O_RDONLY, file: "a regular file in the shared folder that this server may read" },
  write: { flags: constants.O_WRONLY, file: "a regular file in the shared folder that this server may write" },
};

const invalid = (field: string, expected: string, found: string): StepdError => StepdError.mismatch("INVALID_PARAMS", field, expected, found);

export class SharedFolder {
  readonly #path: string;
  /** Bytes read and written since the start. */
  bytesIn = 0;
  bytesOut = 0;

  /** Throws Error where the path is no folder. */
  constructor(path: string) {
    this.#path = realpathSync(path);
    if (!statSync(this.#path).isDirectory()) throw new Error("it is no folder");
  }

  /**
   * Opens the file that `blob` names: one of the caller's own folder where there are tokens, which works on Linux alone. Links
   * of either kind are refused: they would lead out of the folder. Throws INVALID_PARAMS naming `field`, or OVERLOADED.
   */
  async open(blob: SharedBlob, use: "read" | "write", field: string, caller: string | undefined): Promise<SharedPlace> {
    const { flags, file: expected } = EXPECTED[use];
    const refuse = (found: string): StepdError => invalid(`${field}/file`, expected, found);
    await using folder = caller === undefined ? undefined : await this.#folderOf(caller, refuse);
    // By the descriptor: between a look at the path and its use the folder could become a link.
    const path = folder === undefined ? this.#path : `/proc/self/fd/${folder.fd}`;
    const handle = await open(join(path, blob.file), flags | FLAGS).catch((error: NodeJS.ErrnoException) => {
      throw whyNot(error, refuse);
    });
    try {
      const found = await handle.stat();
      if (!found.isFile()) throw refuse("something else");
      if (found.nlink > 1) throw refuse("a file that has another name as well");
      // A result that finds no memory in the middle would leave half of itself, and half of what was there.
      if (use === "write" && found.blocks * BLOCK_BYTES < found.size) throw refuse("one with holes; reserve its memory, by fallocate or by writing zeros");
      if (blob.offset > found.size) throw invalid(`${field}/offset`, `at most ${found.size}, the file's size`, String(blob.offset));
      const rest = found.size - blob.offset;
      if (blob.length > rest) throw invalid(`${field}/length`, `at most ${rest}, what the file has from there`, String(blob.length));
    } catch (error) {
      await handle.close();
      throw error;
    }
    return new SharedPlace(this, handle, blob, field);
  }

  async #folderOf(caller: string, refuse: (found: string) => StepdError): Promise<FileHandle> {
    if (!FOLDER_NAME.test(caller)) throw refuse("a token whose name can be no folder's");
    return open(join(this.#path, caller), constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW).catch((error: NodeJS.ErrnoException) => {
      throw whyNot(error, () => refuse("no folder of the caller's token"));
    });
  }
}

/** Token names may also be . and .. */
const FOLDER_NAME = /^\w/;

/** What st_blocks counts. */
const BLOCK_BYTES = 512;

const EXHAUSTED = ["EMFILE", "ENFILE", "ENOMEM", "EAGAIN"];

/** Why a file cannot be opened: by the caller's fault, for now, or by one of the server's that only its log tells. */
const whyNot = (error: NodeJS.ErrnoException, refuse: (found: string) => StepdError): Error => {
  const found = WHY[error.code ?? ""];
  if (found !== undefined) return refuse(found);
  if (EXHAUSTED.includes(error.code ?? ""))
    return new StepdError("OVERLOADED", "The server cannot open more files of the shared folder now", { found: error.code, retry_after: 1 });
  return error;
};

const WHY: Readonly<Record<string, string>> = {
  ENOENT: "none of that name",
  ELOOP: "a link",
  ENOTDIR: "a link",
  EACCES: "one that it may not",
  EPERM: "one that it may not",
  EROFS: "one that it may not",
  EISDIR: "a folder",
  ENXIO: "a pipe",
};

/** Bytes of an open file, or room for them. */
export class SharedPlace implements AsyncDisposable {
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

  /** Reads all of it to `start` of the memory. Throws INVALID_PARAMS where the file has been cut short meanwhile. */
  async read(memory: Buffer, start: number): Promise<void> {
    const { offset, length } = this.blob;
    const starts = Array.from({ length: Math.ceil(length / PIECE_BYTES) }, (_, index) => index * PIECE_BYTES);
    const counts = await settled(starts.map((at) => this.#handle.read(memory, start + at, Math.min(PIECE_BYTES, length - at), offset + at)));
    const read = counts.reduce((sum, { bytesRead }) => sum + bytesRead, 0);
    if (read < length) throw invalid(`${this.field}/length`, `${length} bytes in the file`, `${read} while reading`);
    this.#folder.bytesIn += length;
  }

  /** Throws INVALID_PARAMS where a result is longer than the place. */
  requireRoom(bytes: number): void {
    if (bytes > this.blob.length) throw invalid(`${this.field}/length`, `at least ${bytes}, the bytes of the result`, String(this.blob.length));
  }

  /**
   * Writes a result and returns where it is. One piece after the other: Linux writes to a file one at a time, and who waits spins
   * (measured). Throws INVALID_PARAMS where the file takes no more, with what was written up to then.
   */
  async write(result: Parts): Promise<SharedBlob> {
    let written = 0;
    for (const buffers of batches(result)) {
      for (let rest = buffers; rest.length > 0; ) {
        const { bytesWritten } = await this.#handle.writev(rest, this.blob.offset + written).catch((error: NodeJS.ErrnoException) => {
          throw this.#whyFull(error, result.length, written);
        });
        if (bytesWritten === 0) throw new Error(`the shared file ${this.blob.file} took nothing after ${written} bytes`);
        written += bytesWritten;
        // Less than all is written where there is room for no more. Why, the next write says.
        rest = behind(rest, bytesWritten);
      }
    }
    this.#folder.bytesOut += result.length;
    return { ...this.blob, length: result.length };
  }

  /** INVALID_PARAMS, because nobody may send the call again as it is: what it came from may be overwritten in part. */
  #whyFull(error: NodeJS.ErrnoException, bytes: number, written: number): Error {
    const what = FULL[error.code ?? ""];
    if (what === undefined) return error;
    const done = written > 0 ? "; what was there before is overwritten so far" : "";
    return invalid(`${this.field}/file`, `a place that takes all ${bytes} bytes of the result`, `${error.code}, ${what}, after ${written} bytes${done}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#handle.close();
  }
}

/** Why a file that had its memory may take no more: on file systems that copy on writing, or with holes made since it was opened. */
const FULL: Readonly<Record<string, string>> = {
  ENOSPC: "a full file system",
  EDQUOT: "a quota that is used up",
  EFBIG: "the server's limit of file sizes (ulimit -f)",
};

/** The results of work on a lease's memory, or the first failure: not before all of it has ended, because then the memory may be another's. */
export const settled = async <T extends readonly unknown[]>(work: readonly [...{ [K in keyof T]: T[K] | Promise<T[K]> }]): Promise<T> => {
  const outcomes = await Promise.allSettled(work);
  for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
  return outcomes.map((outcome) => (outcome as PromiseFulfilledResult<unknown>).value) as unknown as T;
};

/** What follows the first bytes of buffers. */
const behind = (buffers: readonly Uint8Array[], bytes: number): Uint8Array[] => {
  let skip = bytes;
  return buffers.flatMap((buffer) => {
    const rest = buffer.subarray(skip);
    skip = Math.max(0, skip - buffer.length);
    return rest.length > 0 ? [rest] : [];
  });
};

/** A result as buffers that are written together. */
const batches = ({ pieces }: Parts): Uint8Array[][] => {
  const all: Uint8Array[][] = [];
  let room = 0;
  for (const piece of pieces) {
    for (let at = 0; at < piece.length; ) {
      if (room <= 0 || all.at(-1)?.length === MAX_BUFFERS) {
        all.push([]);
        room = PIECE_BYTES;
      }
      const part = piece.subarray(at, at + room);
      all.at(-1)?.push(part);
      room -= part.length;
      at += part.length;
    }
  }
  return all;
};
