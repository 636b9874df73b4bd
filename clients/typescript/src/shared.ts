/**
 * A folder that a server on the same host shares: bytes stand in files there instead of travelling. Node only; node:fs is asked
 * for when the option is set, so that a browser's bundle has no module of Node's.
 *
 * Files are taken again, because new memory costs more than a copy, but only when nobody can see them: neither this process nor
 * a server that still works at a call whose reply was lost.
 */
import type { SharedBlob } from "./wire.gen.ts";

/** Read at a time, several at once on Node's threads. */
const PIECE_BYTES = 16 * 2 ** 20;

/** Buffers in one write; Linux takes 1024. */
const MAX_BUFFERS = 1024;

/** Before the umask: the server's user may be another one of the group. */
const MODE = 0o660;

/** Zeros that are written at a time. */
const ZEROS = 2 ** 20;

/** What is used of node:fs. The package has no types of Node's. */
interface Files {
  readonly constants: Readonly<Record<"O_RDWR" | "O_CREAT" | "O_EXCL" | "O_NOFOLLOW", number | undefined>>;
  realpathSync(path: string): string;
  openSync(path: string, flags: number, mode: number): number;
  writevSync(fd: number, buffers: readonly Uint8Array[], position: number): number;
  readSync(fd: number, buffer: Uint8Array, offset: number, length: number, position: number): number;
  read(fd: number, buffer: Uint8Array, offset: number, length: number, position: number, done: (error: Error | null, bytesRead: number) => void): void;
  closeSync(fd: number): void;
  unlinkSync(path: string): void;
}

interface NodeProcess {
  getBuiltinModule?(name: string): unknown;
  on(event: "exit", listener: () => void): void;
}

/** A file, and what it has room for. */
interface Region {
  readonly file: string;
  readonly fd: number;
  capacity: number;
  /** Whether a server may still read or write it, for a call whose reply was lost. */
  isLost: boolean;
}

/** Removes the files of a folder. */
type Clean = () => void;

/** What there is to remove when the process ends; undefined until there was a folder. */
let unclean: Set<Clean> | undefined;

const abandoned = new FinalizationRegistry<Clean>((clean) => clean());

export class SharedFolder {
  readonly #files: Files;
  readonly #path: string;
  /** All that have a name. */
  readonly #regions = new Set<Region>();
  #free: Region[] = [];
  #isClosed = false;
  readonly #dropped = new FinalizationRegistry<Region>((region) => this.#release(region));
  readonly #clean: Clean;

  /** `path` is the folder as this process sees it. Throws TypeError where it is none, or no file can be made there. */
  constructor(path: string) {
    const { process } = globalThis as unknown as { process?: NodeProcess };
    const files = process?.getBuiltinModule?.("node:fs") as Files | undefined;
    if (!process || !files) throw new TypeError("sharedDir: expected Node from 20.16 on, found a platform without its files");
    this.#files = files;
    try {
      if (path === "") throw new Error("no name");
      this.#path = files.realpathSync(path);
      this.#free.push(this.#create());
    } catch (cause) {
      throw new TypeError(`sharedDir: expected a folder that this process may write to, found ${JSON.stringify(path)} (${(cause as Error).message})`, {
        cause,
      });
    }
    if (unclean === undefined) {
      unclean = new Set();
      process.on("exit", cleanAll);
    }
    this.#clean = cleaner(files, this.#path, this.#regions);
    unclean.add(this.#clean);
    abandoned.register(this, this.#clean);
  }

  /** Room for a result. */
  room(bytes: number): SharedPlace {
    return new SharedPlace(this, this.#files, this.#acquire(bytes), bytes);
  }

  /** Writes parts one after the other, before it returns. Throws what the file system says, for instance that the folder is full. */
  write(parts: readonly Uint8Array[]): SharedPlace {
    const place = this.room(parts.reduce((sum, { length }) => sum + length, 0));
    try {
      place.fill(parts);
    } catch (error) {
      this.release(place);
      throw error;
    }
    return place;
  }

  /** Nobody looks at a place any more. */
  release({ region }: SharedPlace): void {
    this.#release(region);
  }

  /** A place that is released when the last reference to it is gone. */
  keep(place: SharedPlace): void {
    this.#dropped.register(place, place.region);
  }

  /** Removes all files. What they hold can still be read by who has a place; the memory is free after that. */
  close(): void {
    this.#isClosed = true;
    this.#clean();
    for (const { fd } of this.#free) this.#files.closeSync(fd);
    this.#free = [];
  }

  #create(): Region {
    const { O_RDWR = 0, O_CREAT = 0, O_EXCL = 0, O_NOFOLLOW = 0 } = this.#files.constants;
    const file = `stepd-${crypto.randomUUID()}`;
    const fd = this.#files.openSync(`${this.#path}/${file}`, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, MODE);
    const region = { file, fd, capacity: 0, isLost: false };
    this.#regions.add(region);
    return region;
  }

  /** The smallest free file with so much room, or else the largest, made larger. */
  #acquire(bytes: number): Region {
    const bySize = [...this.#free].sort((a, b) => a.capacity - b.capacity);
    const region = bySize.find(({ capacity }) => capacity >= bytes) ?? bySize.at(-1) ?? this.#create();
    this.#free = this.#free.filter((other) => other !== region);
    try {
      this.#reserve(region, bytes);
    } catch (error) {
      this.#free.push(region);
      throw error;
    }
    return region;
  }

  /** Makes a file as large, with memory for all of it: with zeros, as Node has no fallocate. Throws the file system's error where it is full. */
  #reserve(region: Region, bytes: number): void {
    const zeros = new Uint8Array(Math.min(Math.max(bytes - region.capacity, 0), ZEROS));
    while (region.capacity < bytes) {
      const rest = bytes - region.capacity;
      region.capacity += this.#files.writevSync(region.fd, [zeros.subarray(0, rest)], region.capacity);
    }
  }

  #release(region: Region): void {
    if (!this.#isClosed && !region.isLost) {
      this.#free.push(region);
      return;
    }
    if (this.#regions.delete(region)) remove(this.#files, this.#path, region);
    this.#files.closeSync(region.fd);
  }
}

/** It must not know the folder, which would stay for ever then. */
const cleaner = (files: Files, path: string, regions: Set<Region>): Clean => {
  const clean = (): void => {
    for (const region of regions) remove(files, path, region);
    regions.clear();
    unclean?.delete(clean);
  };
  return clean;
};

const cleanAll = (): void => {
  for (const clean of unclean ?? []) clean();
};

const remove = (files: Files, path: string, { file }: Region): void => {
  try {
    files.unlinkSync(`${path}/${file}`);
  } catch {
    // Somebody else has removed it, or the whole folder.
  }
};

/** The start of a file of the folder, which is one call's or one state's. */
export class SharedPlace {
  readonly folder: SharedFolder;
  readonly region: Region;
  readonly length: number;
  readonly #files: Files;

  constructor(folder: SharedFolder, files: Files, region: Region, length: number) {
    this.folder = folder;
    this.region = region;
    this.length = length;
    this.#files = files;
  }

  /** What names it to the server. */
  get blob(): SharedBlob {
    return { file: this.region.file, offset: 0, length: this.length };
  }

  /** As much of it as was written. */
  trimmed(length: number): SharedPlace {
    return new SharedPlace(this.folder, this.#files, this.region, length);
  }

  fill(parts: readonly Uint8Array[]): void {
    let at = 0;
    for (const buffers of batches(parts)) {
      const bytes = buffers.reduce((sum, { length }) => sum + length, 0);
      const written = this.#files.writevSync(this.region.fd, buffers, at);
      if (written < bytes) throw new Error(`the shared folder took ${at + written} of ${this.length} bytes: it is full`);
      at += bytes;
    }
  }

  /** All of it, in new memory. */
  async read(): Promise<Uint8Array<ArrayBuffer>> {
    const memory = new Uint8Array(this.length);
    const starts = Array.from({ length: Math.ceil(this.length / PIECE_BYTES) }, (_, index) => index * PIECE_BYTES);
    await Promise.all(starts.map((start) => this.#readPiece(memory, start, Math.min(PIECE_BYTES, this.length - start))));
    return memory;
  }

  /** The bytes from `start` to `end`, to where they stand in `memory`. */
  readSync(memory: Uint8Array, start: number, end: number): void {
    for (let at = start; at < end; at += PIECE_BYTES) {
      const length = Math.min(PIECE_BYTES, end - at);
      requireAll(this.#files.readSync(this.region.fd, memory, at, length, at), length);
    }
  }

  #readPiece(memory: Uint8Array, start: number, length: number): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#files.read(this.region.fd, memory, start, length, start, (error, bytesRead) => {
        try {
          if (error) throw error;
          resolve(requireAll(bytesRead, length));
        } catch (cause) {
          reject(cause);
        }
      });
    });
  }
}

const requireAll = (read: number, length: number): void => {
  if (read < length) throw new Error(`a file of the shared folder was cut short: expected ${length} bytes, found ${read}`);
};

/** Parts that are written together. */
const batches = (parts: readonly Uint8Array[]): Uint8Array[][] => {
  const all: Uint8Array[][] = [];
  let room = 0;
  for (const part of parts) {
    for (let at = 0; at < part.length; ) {
      if (room <= 0 || all.at(-1)?.length === MAX_BUFFERS) {
        all.push([]);
        room = PIECE_BYTES;
      }
      const piece = part.subarray(at, at + room);
      all.at(-1)?.push(piece);
      room -= piece.length;
      at += piece.length;
    }
  }
  return all;
};
