/**
 * Runs jobs on dedicated worker threads over the arena. One job at a time uses all workers, which claim shards by an atomic counter.
 * Small jobs run on the calling thread, because waking a worker would take longer. The pool replaces a worker that dies, and the others
 * run its shards. The job fails only if the dead worker interrupted a shard that overwrites its inputs.
 */
import { Worker } from "node:worker_threads";
import type { Arena, Lease } from "../arena/arena.ts";
import { atOnce, inTurns } from "../codec/turns.ts";
import { StepdError } from "../errors/errors.ts";
import {
  controlBytes,
  FINISHED,
  GENERATION,
  JOB,
  markFinished,
  SHARD_BEGUN,
  SHARD_FINISHED,
  SHARD_FREE,
  SHARD_STATES,
  SHARDS,
  TICKET,
  TRAPPED,
  WORKERS_FINISHED,
  type WorkerData,
} from "./_control.ts";
import { jobWords, type Kernel, runShard, type Scratch, scratchIn, shardCount, suspectsOf, THREAD_SCRATCH_BYTES, type Unit, unitOf, writeJob } from "./_job.ts";
import { JobQueue } from "./_queue.ts";
import { allowWideVectors, compile, instantiate, kernelNames, supportsWideVectors } from "./kernels.ts";

export { type Call, type Pointer, SHARD_ELEMENTS, scratch, type Unit } from "./_job.ts";
export { KernelsError } from "./kernels.ts";

/** Jobs up to this many elements run on the calling thread: waking the workers costs 1 to 24 us, as much as the work (measured). */
export const MAX_INLINE_ELEMENTS = 2 * 65536;

/** Jobs of more units run on the workers, because even the smallest tensor takes a microsecond. */
const MAX_INLINE_UNITS = 4096;

/** The pool gives up after this many consecutive failures to start a worker. */
const MAX_FAILED_STARTS = 5;

/** A job runs at most this many times. If every run loses a worker, the job is probably the cause. */
const MAX_RUNS = 4;

const WORD_BYTES = Float64Array.BYTES_PER_ELEMENT;
const SHARD_STATE_BYTES = Int32Array.BYTES_PER_ELEMENT;

/** Returns the arena bytes that a pool reserves: scratch areas for its workers and for the calling thread. */
export const poolBytes = (workers: number): number => (workers + 1) * THREAD_SCRATCH_BYTES;

/** The outcome of a job. */
export interface JobResult {
  /** The seconds that the job waited for other jobs. */
  readonly queueSeconds: number;
  /** The indexes of units whose results may contain NaN or infinity. */
  readonly suspects: readonly number[];
}

export interface PoolOptions {
  /** Lets V8 use 256-bit vectors in the whole process, if its version is tested with them. The bits of results stay the same. */
  readonly wideVectors: boolean;
  /** Called when a worker thread ends by itself. */
  onWorkerLost(cause: unknown): void;
}

export class Pool implements AsyncDisposable {
  readonly #arena: Arena;
  readonly #module: WebAssembly.Module;
  readonly #kernelNumbers: ReadonlyMap<string, number>;
  /** The kernels of the calling thread. */
  readonly #kernels: readonly Kernel[];
  readonly #control: Int32Array;
  readonly #busy: Float64Array;
  /** The scratch areas of the calling thread. */
  readonly #scratch: Scratch;
  #inlineBuffer = new Float64Array(0);
  readonly #workers: Worker[] = [];
  readonly #options: PoolOptions;
  readonly #queue = new JobQueue();
  #isRunning = false;
  #isClosing = false;
  #failedStarts = 0;

  private constructor(arena: Arena, module: WebAssembly.Module, workers: number, options: PoolOptions) {
    this.#arena = arena;
    this.#module = module;
    this.#options = options;
    this.#kernelNumbers = new Map(kernelNames(module).map((name, number) => [name, number]));
    this.#kernels = instantiate(module, arena.memory);
    this.#control = new Int32Array(new SharedArrayBuffer(controlBytes(workers)));
    this.#scratch = scratchIn(arena.memory, arena.reserved + workers * THREAD_SCRATCH_BYTES);
    this.#busy = new Float64Array(new SharedArrayBuffer(workers * WORD_BYTES));
  }

  /** Compiles the kernels and starts the workers. */
  static async start(arena: Arena, kernels: URL, workers: number, options: PoolOptions): Promise<Pool> {
    const pool = new Pool(arena, await compile(kernels), workers, options);
    const started = Promise.all(Array.from({ length: workers }, (_, index) => pool.#spawn(index)));
    const isWide = options.wideVectors && (await supportsWideVectors());
    await started;
    if (isWide) allowWideVectors();
    return pool;
  }

  /** Returns the number of a kernel, for `Call.kernel`. */
  kernel(name: string): number {
    const number = this.#kernelNumbers.get(name);
    if (number === undefined) throw new Error(`there is no kernel ${name}; rebuild with scripts/build-kernels.ts`);
    return number;
  }

  get kernelNames(): readonly string[] {
    return [...this.#kernelNumbers.keys()];
  }

  get workers(): number {
    return this.#busy.length;
  }

  /** The number of jobs that wait for the workers, plus one for a running job. */
  get queued(): number {
    return this.#queue.length;
  }

  /** The seconds that all workers together have spent in kernels. */
  get busySeconds(): number {
    return this.#busy.reduce((sum, seconds) => sum + seconds, 0);
  }

  /** The worker threads. Tests terminate one. */
  get threads(): readonly Worker[] {
    return this.#workers;
  }

  /** Runs a job. The encoded job takes memory of the lease. */
  async run(units: readonly Unit[], lease: Lease): Promise<JobResult> {
    const elements = units.reduce((sum, { elements, passes = 1 }) => sum + elements * passes, 0);
    if (elements <= MAX_INLINE_ELEMENTS && units.length <= MAX_INLINE_UNITS) {
      const words = this.#inlineWords(jobWords(units));
      const shards = atOnce(writeJob(units, words));
      for (let shard = 0; shard < shards; shard++) runShard(words, shard, this.#kernels, this.#scratch);
      return { queueSeconds: 0, suspects: suspectsOf(units, words) };
    }
    const length = jobWords(units);
    const address = lease.alloc(length * WORD_BYTES + shardCount(units) * SHARD_STATE_BYTES);
    const words = new Float64Array(this.#arena.memory.buffer, address, length);
    const written = inTurns(writeJob(units, words));
    const shards = written instanceof Promise ? await written : written;
    const states = new Int32Array(this.#arena.memory.buffer, address + length * WORD_BYTES, shards).fill(SHARD_FREE);
    const start = performance.now();
    await this.#queue.enter(elements);
    try {
      const queueSeconds = (performance.now() - start) / 1000;
      await this.#runOnWorkers(address / WORD_BYTES, states, units);
      return { queueSeconds, suspects: suspectsOf(units, words) };
    } finally {
      this.#queue.leave();
    }
  }

  /** Returns a reused buffer for jobs on the calling thread. Allocating one per job would cost as much as the kernels of a small step. */
  #inlineWords(length: number): Float64Array {
    if (this.#inlineBuffer.length < length) this.#inlineBuffer = new Float64Array(2 * length);
    return this.#inlineBuffer;
  }

  /** Runs a job until all its shards are finished. If a worker dies, the unfinished shards run again. */
  async #runOnWorkers(job: number, states: Int32Array, units: readonly Unit[]): Promise<void> {
    for (let runs = 1; ; runs++) {
      await this.#runOnce(job, states);
      if (Atomics.load(this.#control, TRAPPED) !== 0) throw new StepdError("INTERNAL_ERROR", "A kernel failed in this call; nothing was changed");
      if (states.every((state) => state === SHARD_FINISHED)) return;
      const isLost = states.some((state, shard) => state === SHARD_BEGUN && !unitOf(units, shard)?.isRepeatable);
      if (isLost || runs === MAX_RUNS)
        throw new StepdError("WORKER_LOST", "A worker thread died during this call; nothing was changed, send it again", { retry_after: 1 });
      for (const [shard, state] of states.entries()) if (state === SHARD_BEGUN) states[shard] = SHARD_FREE;
    }
  }

  async #runOnce(job: number, states: Int32Array): Promise<void> {
    const control = this.#control;
    const generation = (Atomics.load(control, GENERATION) + 1) | 0;
    this.#isRunning = true;
    Atomics.store(control, TRAPPED, 0);
    Atomics.store(control, JOB, job);
    Atomics.store(control, SHARD_STATES, states.byteOffset / SHARD_STATE_BYTES);
    Atomics.store(control, SHARDS, states.length);
    Atomics.store(control, TICKET, 0);
    // The generation is stored last, so a thread that sees it sees the whole job.
    Atomics.store(control, GENERATION, generation);
    Atomics.notify(control, GENERATION);
    // A worker may still send a late notification for the previous job, so this waits in a loop.
    for (let seen = Atomics.load(control, FINISHED); seen !== generation; seen = Atomics.load(control, FINISHED))
      await Atomics.waitAsync(control, FINISHED, seen).value;
    this.#isRunning = false;
  }

  /** Returns the address of a thread's scratch areas. The calling thread's areas follow those of the workers. */
  #scratchAddress(thread: number): number {
    return this.#arena.reserved + thread * THREAD_SCRATCH_BYTES;
  }

  async #spawn(index: number): Promise<void> {
    const generation = Atomics.load(this.#control, GENERATION);
    Atomics.store(this.#control, WORKERS_FINISHED + index, generation);
    const data: WorkerData = {
      module: this.#module,
      memory: this.#arena.memory,
      control: this.#control,
      busy: this.#busy,
      index,
      scratchAddress: this.#scratchAddress(index),
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
      worker.unref(); // An idle pool must not keep the process running.
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

  /** Replaces a dead worker, and marks the running job as finished by it. */
  #replace(index: number): void {
    const generation = Atomics.load(this.#control, GENERATION);
    if (this.#failedStarts >= MAX_FAILED_STARTS) throw new Error("worker threads cannot be started");
    void this.#spawn(index);
    if (this.#isRunning) markFinished(this.#control, index, generation);
  }

  /** Terminates the workers. No job may be running. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#isClosing = true;
    await Promise.all(this.#workers.map((worker) => worker.terminate()));
  }
}
