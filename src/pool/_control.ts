/** The control block: int32 fields in shared memory that synchronize the main thread and the workers. */

/** The job's number. The main thread increments it for each job; workers sleep on it. */
export const GENERATION = 0;
/** The index of the next shard that a worker will claim. */
export const TICKET = 1;
/** The number of shards of the job. */
export const SHARDS = 2;
/** The job's address, in float64 words from the start of the arena. */
export const JOB = 3;
/** The last generation that all workers have finished. The main thread waits on it. */
export const FINISHED = 4;
/** Not 0 if a kernel trapped in this job. */
export const TRAPPED = 5;
/** The address of the job's shard states, in int32 words from the start of the arena. */
export const SHARD_STATES = 6;
/** From this index on, one field per worker: the last generation that it has finished. */
export const DONE = 16;

/** The states of a shard: not begun, running on a worker, finished. */
export const SHARD_FREE = 0;
export const SHARD_BEGUN = 1;
export const SHARD_FINISHED = 2;

export const controlBytes = (workers: number): number => (DONE + workers) * Int32Array.BYTES_PER_ELEMENT;

/** Marks a worker as done with a generation. The last worker wakes the main thread. */
export const finish = (control: Int32Array, worker: number, generation: number): void => {
  Atomics.store(control, DONE + worker, generation);
  // Stores its flag before reading all of them, so of two workers that finish together at least one sees both flags.
  for (let i = DONE; i < control.length; i++) if (Atomics.load(control, i) !== generation) return;
  Atomics.store(control, FINISHED, generation);
  Atomics.notify(control, FINISHED);
};

/** The start arguments of a worker thread. */
export interface WorkerData {
  readonly module: WebAssembly.Module;
  readonly memory: WebAssembly.Memory;
  readonly control: Int32Array;
  /** Seconds in kernels, per worker. */
  readonly busy: Float64Array;
  readonly index: number;
  /** The arena address of this thread's scratch areas. */
  readonly scratchAddress: number;
  /** The generation at the worker's start. The worker waits for the next one. */
  readonly generation: number;
}
