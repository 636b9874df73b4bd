/** The words of shared memory by which the main thread and the workers meet. */

/** Raised by the main thread for each job; workers sleep on it. */
export const GENERATION = 0;
/** The next shard to take. */
export const TICKET = 1;
/** Shards in the job. */
export const SHARDS = 2;
/** Where the job's words are, in float64 words from the start of the arena. */
export const JOB = 3;
/** The last generation that all workers have finished; the main thread waits on it. */
export const FINISHED = 4;
/** Not 0 where a kernel trapped in this job. */
export const TRAPPED = 5;
/** Where the marks of the job's shards are, in int32 words from the start of the arena. */
export const MARKS = 6;
/** From here on, for each worker, the last generation that it has finished. */
export const DONE = 16;

/** Marks of a shard: nobody has begun it, a worker writes it, it is finished. */
export const FREE = 0;
export const BEGUN = 1;
export const FINISHED_SHARD = 2;

export const controlBytes = (workers: number): number => (DONE + workers) * Int32Array.BYTES_PER_ELEMENT;

/** Marks a worker as done with a generation; whoever is last wakes the main thread. */
export const finish = (control: Int32Array, worker: number, generation: number): void => {
  Atomics.store(control, DONE + worker, generation);
  // Store, then look at all: of two workers that finish together at least one sees both flags.
  for (let i = DONE; i < control.length; i++) if (Atomics.load(control, i) !== generation) return;
  Atomics.store(control, FINISHED, generation);
  Atomics.notify(control, FINISHED);
};

/** What a worker is started with. */
export interface WorkerData {
  readonly module: WebAssembly.Module;
  readonly memory: WebAssembly.Memory;
  readonly control: Int32Array;
  /** Seconds that each worker has spent in kernels. */
  readonly busy: Float64Array;
  readonly index: number;
  /** Where this thread's scratch areas are in the arena. */
  readonly scratchAddress: number;
  /** The generation at the worker's start: it waits for the next. */
  readonly generation: number;
}
