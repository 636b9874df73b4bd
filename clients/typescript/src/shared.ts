/**
 * A folder that the client shares with a server on its host. Requests name files in the folder instead of carrying the bytes.
 * Node only: the module `node:fs` loads when the option is set, so that browser bundles contain no Node module.
 *
 * Files are reused, because new memory costs more than a copy. A file is reused only when no process can see it: neither this
 * one nor a server that may still be working on a call whose reply was lost.
 */
import type { SharedBlob } from "./wire.gen.ts";

/** Bytes per read. Several reads run at once on Node's threads. */
const PIECE_BYTES = 16 * 2 ** 20;

/** Buffers per write. Linux allows 1024. */
const MAX_BUFFERS = 1024;

/** File mode before the umask. The group may write, because the server may run as another user. */
const FILE_MODE = 0o660;

/** Bytes of zeros per write. */
const ZERO_BYTES = 2 ** 20;

/** The part of node:fs that this module uses. The package does not depend on Node's types. */
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

/** A file and its capacity in bytes. */
interface Region {
  readonly file: string;
  readonly fd: number;
  capacity: number;
  /** True if a server may still use the file, for a call whose reply was lost. */
  isLost: boolean;
}

/** Removes the files of a folder. */
type Clean = () => void;

/** Functions to call when the process exits, one per folder. Undefined until the first folder exists. */
let cleanAtExit: Set<Clean> | undefined;

const collectedFolders = new FinalizationRegistry<Clean>((clean) => clean());

export class SharedFolder {
  readonly #files: Files;
  readonly #path: string;
  /** All files that still have a name in the folder. */
  readonly #regions = new Set<Region>();
  #free: Region[] = [];
  #isClosed = false;
  readonly #collectedPlaces = new FinalizationRegistry<Region>((region) => this.#release(region));
  readonly #clean: Clean;

  /** `path` is the folder as this process sees it. Throws TypeError if no file can be created in the folder. */
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
    if (cleanAtExit === undefined) {
      cleanAtExit = new Set();
      process.on("exit", cleanAll);
    }
    this.#clean = cleanerFor(files, this.#path, this.#regions);
    cleanAtExit.add(this.#clean);
    collectedFolders.register(this, this.#clean);
  }

  /** Reserves room for a result. */
  room(bytes: number): SharedPlace {
    return new SharedPlace(this, this.#files, this.#acquire(bytes), bytes);
  }

  /**
   * Writes the parts one after the other, synchronously. Throws the file system's error, for instance if the folder is full.
   */
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

  /** Frees a place for reuse. */
  release({ region }: SharedPlace): void {
    this.#release(region);
  }

  /** Releases a place when its last reference is gone. */
  keep(place: SharedPlace): void {
    this.#collectedPlaces.register(place, place.region);
  }

  /** Removes all files. Existing places stay readable. Their memory is freed once the last place is gone. */
  close(): void {
    this.#isClosed = true;
    this.#clean();
    for (const { fd } of this.#free) this.#files.closeSync(fd);
    this.#free = [];
  }

  #create(): Region {
    const { O_RDWR = 0, O_CREAT = 0, O_EXCL = 0, O_NOFOLLOW = 0 } = this.#files.constants;
    const file = `stepd-${crypto.randomUUID()}`;
    const fd = this.#files.openSync(`${this.#path}/${file}`, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, FILE_MODE);
    const region = { file, fd, capacity: 0, isLost: false };
    this.#regions.add(region);
    return region;
  }

  /** Takes the smallest free file with enough capacity, otherwise grows the largest. */
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

  /** Grows a file by writing zeros, because Node has no fallocate. Throws the file system's error if the folder is full. */
  #reserve(region: Region, bytes: number): void {
    const zeros = new Uint8Array(Math.min(Math.max(bytes - region.capacity, 0), ZERO_BYTES));
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

/**
 * Returns a function that removes the files. A reference from the function to the folder would keep the folder from being
 * collected.
 */
const cleanerFor = (files: Files, path: string, regions: Set<Region>): Clean => {
  const clean = (): void => {
    for (const region of regions) remove(files, path, region);
    regions.clear();
    cleanAtExit?.delete(clean);
  };
  return clean;
};

const cleanAll = (): void => {
  for (const clean of cleanAtExit ?? []) clean();
};

const remove = (files: Files, path: string, { file }: Region): void => {
  try {
    files.unlinkSync(`${path}/${file}`);
  } catch {
    // Another process has already removed the file or the folder.
  }
};

/** The first `length` bytes of a file in the folder. One call or one state owns a place. */
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

  /** The place in the form in which requests name it. */
  get blob(): SharedBlob {
    return { file: this.region.file, offset: 0, length: this.length };
  }

  /** Returns the part that the server has written. */
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

  /** Reads all bytes into new memory. */
  async read(): Promise<Uint8Array<ArrayBuffer>> {
    const memory = new Uint8Array(this.length);
    const starts = Array.from({ length: Math.ceil(this.length / PIECE_BYTES) }, (_, index) => index * PIECE_BYTES);
    await Promise.all(starts.map((start) => this.#readPiece(memory, start, Math.min(PIECE_BYTES, this.length - start))));
    return memory;
  }

  /** Reads the bytes from `start` to `end` into the same positions of `memory`. */
  readSync(memory: Uint8Array, start: number, end: number): void {
    for (let at = start; at < end; at += PIECE_BYTES) {
      const length = Math.min(PIECE_BYTES, end - at);
      requireLength(this.#files.readSync(this.region.fd, memory, at, length, at), length);
    }
  }

  #readPiece(memory: Uint8Array, start: number, length: number): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#files.read(this.region.fd, memory, start, length, start, (error, bytesRead) => {
        try {
          if (error) throw error;
          resolve(requireLength(bytesRead, length));
        } catch (cause) {
          reject(cause);
        }
      });
    });
  }
}

const requireLength = (read: number, length: number): void => {
  if (read < length) throw new Error(`a file of the shared folder was cut short: expected ${length} bytes, found ${read}`);
};

/** Groups the parts into writes of at most PIECE_BYTES and MAX_BUFFERS. */
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
