/** Reads safetensors files from disk: whole, only the header and scalars, or a tensor in chunks. Writes files atomically. */
import { closeSync, constants, fstatSync, fsyncSync, lstatSync, openSync, readSync, renameSync, rmSync, writeSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { bytesOf } from "../codec/dtype.ts";
import { MAX_HEADER_BYTES, readSafetensors, type Safetensors, type TensorInfo } from "../codec/safetensors.ts";
import { StepdError } from "../errors/errors.ts";
import { CommandError, UsageError } from "./_command.ts";

const LENGTH_BYTES = 8;
const CHUNK_BYTES = 8 * 2 ** 20;

/** An open safetensors file. */
export class TensorFile implements Disposable {
  readonly path: string;
  readonly size: number;
  readonly #fd: number;

  constructor(path: string) {
    this.path = path;
    try {
      this.#fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    } catch (error) {
      throw new CommandError(`${path}: expected a file that can be read, found ${reasonOf(error)}`);
    }
    const stat = fstatSync(this.#fd);
    this.size = stat.size;
    if (stat.isFile()) return;
    closeSync(this.#fd);
    throw new CommandError(`${path}: expected a file, found ${stat.isDirectory() ? "a folder" : "something else"}`);
  }

  /**
   * Reads only the header and the scalars, into a buffer of the file's size. The rest of the buffer takes no memory until it is touched,
   * so the file may be larger than the machine's memory.
   */
  readHead(): { readonly file: Buffer; readonly content: Safetensors } {
    let file: Buffer;
    try {
      file = Buffer.allocUnsafeSlow(this.size);
    } catch {
      throw new CommandError(`${this.path}: expected a file that the address space of this process has room for, found ${this.size} bytes`);
    }
    this.#readRange(file, 0, LENGTH_BYTES);
    if (this.size >= LENGTH_BYTES) {
      const header = file.readBigUInt64LE(0);
      // readSafetensors rejects a longer header by its length field alone.
      if (header <= Math.min(this.size - LENGTH_BYTES, MAX_HEADER_BYTES)) this.#readRange(file, LENGTH_BYTES, LENGTH_BYTES + Number(header));
    }
    const content = readSafetensors(file, this.path, "TENSORS_CORRUPT");
    for (const [start, end] of mergedRanges(content.tensors.filter(({ shape }) => shape.length === 0))) this.#readRange(file, start, end);
    return { file, content };
  }

  /** Reads the whole file into `target`. */
  readInto(target: Buffer): void {
    this.#readRange(target, 0, this.size);
  }

  /** Reads a tensor in chunks of whole elements. Each chunk overwrites the chunk before. */
  *chunks({ dtype, offset, bytes }: TensorInfo): Generator<Buffer> {
    const size = bytesOf(dtype) as number;
    const chunk = Buffer.allocUnsafeSlow(Math.min(bytes, CHUNK_BYTES - (CHUNK_BYTES % size)));
    for (let at = 0; at < bytes; at += chunk.length) {
      const part = chunk.subarray(0, Math.min(chunk.length, bytes - at));
      readFully(this.#fd, part, offset + at, this.path);
      yield part;
    }
  }

  #readRange(target: Buffer, start: number, end: number): void {
    readFully(this.#fd, target.subarray(start, Math.min(end, this.size)), start, this.path);
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }
}

/** Lists the byte ranges of tensors, with adjacent ranges merged. */
const mergedRanges = (tensors: readonly TensorInfo[]): readonly (readonly [number, number])[] => {
  const ranges: [number, number][] = [];
  for (const { offset, bytes } of tensors.toSorted((a, b) => a.offset - b.offset)) {
    const last = ranges.at(-1);
    if (last?.[1] === offset) last[1] += bytes;
    else ranges.push([offset, offset + bytes]);
  }
  return ranges;
};

/** A system call reads at most this many bytes, because Linux limits it to 2 GiB. */
const MAX_READ_BYTES = 2 ** 30;

const readFully = (fd: number, target: Buffer, position: number, path: string): void => {
  for (let at = 0; at < target.length; ) {
    const read = readSync(fd, target, at, Math.min(target.length - at, MAX_READ_BYTES), position + at);
    if (read === 0) throw new CommandError(`${path}: expected ${target.length - at} more bytes at ${position + at}, found the end: the file became shorter`);
    at += read;
  }
};

const OPEN_ERRORS: Readonly<Record<string, string>> = { ENOENT: "none", EACCES: "one that this user may not read", EISDIR: "a folder", ENOTDIR: "none" };

const reasonOf = (error: unknown): string => OPEN_ERRORS[(error as NodeJS.ErrnoException).code ?? ""] ?? (error as Error).message;

const exists = (path: string): boolean => lstatSync(path, { throwIfNoEntry: false }) !== undefined;

/** Throws CommandError if a file exists at the path, unless `isForced`. */
export const requireAbsent = (path: string, isForced: boolean): void => {
  if (!isForced && exists(path)) throw new CommandError(`${path}: expected a path where nothing is, or --force, found a file`);
};

/** Writes a file atomically: writes a temporary file in the same folder, then renames it. */
export const writeAtomically = (path: string, pieces: readonly Uint8Array[], isForced: boolean): void => {
  const partial = join(dirname(path), `.${basename(path)}.${process.pid}.partial`);
  let fd: number;
  try {
    fd = openSync(partial, "wx");
  } catch (error) {
    throw new CommandError(`${path}: expected a folder that can be written to, found ${reasonOf(error)}`);
  }
  try {
    try {
      for (const piece of pieces) {
        for (let at = 0; at < piece.length; ) at += writeSync(fd, piece, at, Math.min(piece.length - at, MAX_READ_BYTES));
      }
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    requireAbsent(path, isForced);
    renameSync(partial, path);
  } catch (error) {
    rmSync(partial, { force: true });
    throw error;
  }
};

/** Escapes a text for use as a replacement in String.replace. */
export const escapeReplacement = (text: string): string => text.replaceAll("$", "$$$$");

/** Replaces the field in a service error by the user's file name or option. */
export const withOptionName = (error: unknown, names: readonly (readonly [RegExp, string])[]): unknown => {
  if (!(error instanceof StepdError)) return error;
  const { field = "", expected, found } = error.detail;
  const match = names.find(([pattern]) => pattern.test(field));
  if (!match || expected === undefined || found === undefined) return error;
  const message = `${field.replace(match[0], match[1])}: expected ${expected}, found ${found}`;
  return error.code === "INVALID_PARAMS" && match[1].startsWith("--") ? new UsageError(message) : new CommandError(message);
};
