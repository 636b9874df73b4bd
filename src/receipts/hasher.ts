/** Computes SHA-256 digests beside the main thread. Its threads start with the first large blob and end when they have no work. */
import type { Tinypool } from "tinypool";
import hash, { type HashTask } from "./_hash-worker.ts";

/** Smaller blobs are hashed on the calling thread, in about 0.1 ms. */
const MIN_THREAD_BYTES = 2 ** 17;

/** A call has at most this many large blobs at once: parameters, gradients and state. */
const MAX_THREADS = 3;

/** A thread without work ends after this time. */
const IDLE_MS = 30_000;

export class Hasher implements AsyncDisposable {
  readonly #memory: WebAssembly.Memory;
  readonly #maxThreads: number;
  #pool: Promise<Tinypool> | undefined;

  /** `memory` is the arena. `processors` bounds the number of threads. */
  constructor(memory: WebAssembly.Memory, processors: number) {
    this.#memory = memory;
    this.#maxThreads = Math.max(1, Math.min(processors, MAX_THREADS));
  }

  /** Returns the digest of a blob in hexadecimal. The pieces must not change meanwhile. */
  async sha256(pieces: readonly Uint8Array[]): Promise<string> {
    const length = pieces.reduce((sum, piece) => sum + piece.length, 0);
    const memory = this.#memory;
    if (length < MIN_THREAD_BYTES) return hash({ memory, pieces });
    this.#pool ??= this.#start();
    // V8 cannot send a view of an arena of 4 GiB, but its memory. It would copy the whole buffer of any other view, so these are copied.
    const task: HashTask = {
      memory,
      pieces: pieces.map((piece) => (piece.buffer === memory.buffer ? { start: piece.byteOffset, length: piece.length } : new Uint8Array(piece))),
    };
    // A thread of tinypool keeps no process alive, even while it works. In a command, nothing else does.
    const keepAlive = setInterval(() => {}, IDLE_MS);
    try {
      return await (await this.#pool).run(task);
    } finally {
      clearInterval(keepAlive);
    }
  }

  async #start(): Promise<Tinypool> {
    const { Tinypool } = await import("tinypool");
    const filename = new URL("./_hash-worker.ts", import.meta.url).href;
    return new Tinypool({ filename, runtime: "worker_threads", minThreads: 0, maxThreads: this.#maxThreads, idleTimeout: IDLE_MS, execArgv: [] });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await (await this.#pool)?.destroy();
  }
}
