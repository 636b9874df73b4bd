/**
 * Runs jobs on dedicated worker threads over the arena. One job at a time has all workers; each takes shards from an atomic
 * ticket. Jobs too small to be worth a wake-up run on the calling thread. A worker that dies is replaced, and the others do its
 * shards. The job fails only if a shard was left half done that overwrites what it reads.
 */
import { Worker } from "node:worker_threads";
import type { Arena, Lease } from "../arena/arena.ts";
import { atOnce, inTurns } from "../codec/turns.ts";
import { StepdError } from "../errors/errors.ts";
import {
  BEGUN,
  controlBytes,
  DONE,
  FINISHED,
  FINISHED_SHARD,
  FREE,
  finish,
  GENERATION,
  JOB,
  MARKS,
  SHARDS,
  TICKET,
  TRAPPED,
  type WorkerData,
} from "./_control.ts";
import { jobWords, type Kernel, runShard, type Scratch, scratchIn, shardCount, suspectsOf, THREAD_SCRATCH_BYTES, type Unit, unitOf, writeJob } from "./_job.ts";
import { Line } from "./_line.ts";
import { allowWideVectors, compile, instantiate, kernelNames, knowsWideVectors } from "./kernels.ts";

export { type Call, type Pointer, SHARD, scratch, type Unit } from "./_job.ts";
export { KernelsError } from "./kernels.ts";

/** Jobs of up to this many elements run inline: waking the pool costs 1 to 24 us, as much as the work (measured). */
export const INLINE_ELEMENTS = 2 * 65536;

/** Jobs of more tensors do not run inline: each takes a microsecond, however small it is. */
const INLINE_UNITS = 4096;

/** A worker that dies this often before it is ready would do so for ever. */
const MAX_FAILED_STARTS = 5;

/** A job that loses a worker this often is likely to be the cause. */
const MAX_RUNS = 4;

const WORD = Float64Array.BYTES_PER_ELEMENT;
const MARK = Int32Array.BYTES_PER_ELEMENT;

/** Bytes of the arena that a pool keeps for the scratch areas of its workers and of the calling thread. */
export const poolBytes = (workers: number): number => (workers + 1) * THREAD_SCRATCH_BYTES;

/** What a job came to. */
export interface Ran {
  /** Seconds that it waited for other jobs. */
  readonly waited: number;
  /** Indexes of units whose results may hold values that are not finite: a kernel's quick look did not rule it out. */
  readonly suspects: readonly number[];
}

export interface PoolOptions {
  /** Whether V8 may use vectors of 256 bits where it is known to do so well, in all of the process. The results are the same. */
  readonly wideVectors: boolean;
  /** A worker thread ended by itself. */
  onWorkerLost(cause: unknown): void;
}

export class Pool implements AsyncDisposable {
  readonly #arena: Arena;
  readonly #module: WebAssembly.Module;
  readonly #numbers: ReadonlyMap<string, number>;
  readonly #inline: readonly Kernel[];
  readonly #control: Int32Array;
  readonly #busy: Float64Array;
  /** The calling thread's. */
  readonly #scratch: Scratch;
  #words = new Float64Array(0);
  readonly #workers: Worker[] = [];
  readonly #options: PoolOptions;
  readonly #line = new Line();
  #isRunning = false;
  #isClosing = false;
  #failedStarts = 0;

  private constructor(arena: Arena, module: WebAssembly.Module, workers: number, options: PoolOptions) {
    this.#arena = arena;
    this.#module = module;
    this.#options = options;
    this.#numbers = new Map(kernelNames(module).map((name, number) => [name, number]));
    this.#inline = instantiate(module, arena.memory);
    this.#control = new Int32Array(new SharedArrayBuffer(controlBytes(workers)));
    this.#scratch = scratchIn(arena.memory, arena.reserved + workers * THREAD_SCRATCH_BYTES);
    this.#busy = new Float64Array(new SharedArrayBuffer(workers * WORD));
  }

  /** Compiles the kernels and starts the workers. */
  static async start(arena: Arena, kernels: URL, workers: number, options: PoolOptions): Promise<Pool> {
    const pool = new Pool(arena, await compile(kernels), workers, options);
    const started = Promise.all(Array.from({ length: workers }, (_, index) => pool.#spawn(index)));
    const isWide = options.wideVectors && (await knowsWideVectors());
    await started;
    if (isWide) allowWideVectors();
    return pool;
  }

  /** The number of a kernel, for `Call.kernel`. */
  kernel(name: string): number {
    const number = this.#numbers.get(name);
    if (number === undefined) throw new Error(`there is no kernel ${name}; rebuild with scripts/build-kernels.ts`);
    return number;
  }

  get kernelNames(): readonly string[] {
    return [...this.#numbers.keys()];
  }

  get workers(): number {
    return this.#busy.length;
  }

  /** Jobs that wait for the workers, with the one that runs. */
  get queued(): number {
    return this.#line.length;
  }

  /** Seconds that all workers together have spent in kernels. */
  get busySeconds(): number {
    return this.#busy.reduce((sum, seconds) => sum + seconds, 0);
  }

  /** The thread ids of the workers, for tests that end one. */
  get threads(): readonly Worker[] {
    return this.#workers;
  }

  /** Runs all units to their end; the job is written into the lease. */
  async run(units: readonly Unit[], lease: Lease): Promise<Ran> {
    const elements = units.reduce((sum, unit) => sum + unit.elements, 0);
    if (elements <= INLINE_ELEMENTS && units.length <= INLINE_UNITS) {
      const words = this.#inlineWords(jobWords(units));
      const shards = atOnce(writeJob(units, words));
      for (let shard = 0; shard < shards; shard++) runShard(words, shard, this.#inline, this.#scratch);
      return { waited: 0, suspects: suspectsOf(units, words) };
    }
    const length = jobWords(units);
    const address = lease.alloc(length * WORD + shardCount(units) * MARK);
    const words = new Float64Array(this.#arena.memory.buffer, address, length);
    const written = inTurns(writeJob(units, words));
    const shards = written instanceof Promise ? await written : written;
    const marks = new Int32Array(this.#arena.memory.buffer, address + length * WORD, shards).fill(FREE);
    const start = performance.now();
    await this.#line.enter(elements);
    try {
      const waited = (performance.now() - start) / 1000;
      await this.#runOnWorkers(address / WORD, marks, units);
      return { waited, suspects: suspectsOf(units, words) };
    } finally {
      this.#line.leave();
    }
  }

  /** Memory for a job on the calling thread, used again by the next: new memory for each would cost as much as a small step's kernels. */
  #inlineWords(length: number): Float64Array {
    if (this.#words.length < length) this.#words = new Float64Array(2 * length);
    return this.#words;
  }

  /** Runs a job until all of its shards are finished: again, for the rest, when a worker died that had shards to do. */
  async #runOnWorkers(job: number, marks: Int32Array, units: readonly Unit[]): Promise<void> {
    for (let runs = 1; ; runs++) {
      await this.#runOnce(job, marks);
      if (Atomics.load(this.#control, TRAPPED) !== 0) throw new StepdError("INTERNAL_ERROR", "A kernel failed in this call; nothing was changed");
      if (marks.every((mark) => mark === FINISHED_SHARD)) return;
      const isLost = marks.some((mark, shard) => mark === BEGUN && !unitOf(units, shard)?.isRepeatable);
      if (isLost || runs === MAX_RUNS)
        throw new StepdError("WORKER_LOST", "A worker thread died during this call; nothing was changed, send it again", { retry_after: 1 });
      for (const [shard, mark] of marks.entries()) if (mark === BEGUN) marks[shard] = FREE;
    }
  }

  async #runOnce(job: number, marks: Int32Array): Promise<void> {
    const control = this.#control;
    const generation = (Atomics.load(control, GENERATION) + 1) | 0;
    this.#isRunning = true;
    Atomics.store(control, TRAPPED, 0);
    Atomics.store(control, JOB, job);
    Atomics.store(control, MARKS, marks.byteOffset / MARK);
    Atomics.store(control, SHARDS, marks.length);
    Atomics.store(control, TICKET, 0);
    // Last, so that whoever sees the new generation sees the whole job.
    Atomics.store(control, GENERATION, generation);
    Atomics.notify(control, GENERATION);
    // A worker may notify late: for the job before this one, when another had done so already.
    for (let seen = Atomics.load(control, FINISHED); seen !== generation; seen = Atomics.load(control, FINISHED))
      await Atomics.waitAsync(control, FINISHED, seen).value;
    this.#isRunning = false;
  }

  /** Where a thread's scratch memory is; the calling thread comes after the workers. */
  #scratchOf(thread: number): number {
    return this.#arena.reserved + thread * THREAD_SCRATCH_BYTES;
  }

  async #spawn(index: number): Promise<void> {
    const generation = Atomics.load(this.#control, GENERATION);
    Atomics.store(this.#control, DONE + index, generation);
    const data: WorkerData = {
      module: this.#module,
      memory: this.#arena.memory,
      control: this.#control,
      busy: this.#busy,
      index,
      scratchAddress: this.#scratchOf(index),
      generation,
    };
    const worker = new Worker(new URL("./worker.ts", import.meta.url), { workerData: data, execArgv: [] });
    this.#workers[index] = worker;
    let isReady = false;
    let cause: unknown = "it ended by itself";
    const { promise, resolve } = Promise.withResolvers<void>();
    worker.once("message", () => {
      isReady = true;
      this.#failedStarts = 0;
      worker.unref(); // A pool alone does not keep the process running.
      resolve();
    });
    worker.on("error", (error) => {
      cause = error;
    });
    worker.once("exit", () => {
      if (this.#isClosing) return;
      if (!isReady) this.#failedStarts++;
      this.#options.onWorkerLost(cause);
      this.#replace(index);
      resolve();
    });
    return promise;
  }

  /** Ends the running job's wait for a dead worker and starts another in its place. */
  #replace(index: number): void {
    const generation = Atomics.load(this.#control, GENERATION);
    if (this.#failedStarts >= MAX_FAILED_STARTS) throw new Error("worker threads cannot be started");
    void this.#spawn(index);
    if (this.#isRunning) finish(this.#control, index, generation);
  }

  /** Ends the workers. No job may be running. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#isClosing = true;
    await Promise.all(this.#workers.map((worker) => worker.terminate()));
  }
}
