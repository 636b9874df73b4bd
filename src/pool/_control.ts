/** Defines the control block: int32 fields in shared memory that synchronize the main thread and the workers. Each constant is a field's index. */

/** The number of the current job. Workers sleep until the main thread increments it. */
export const GENERATION = 0;
/** The next shard that a worker will claim. */
export const TICKET = 1;
/** The number of shards of the job. */
export const SHARDS = 2;
/** The address of the encoded job, in float64 words from the start of the arena. */
export const JOB = 3;
/** The last job that all workers have finished. The main thread waits for this field to change. */
export const FINISHED = 4;
/** Not 0 if a kernel trapped during the job. */
export const TRAPPED = 5;
/** The address of the job's shard states, in int32 words from the start of the arena. */
export const SHARD_STATES = 6;
/** From this index on, each worker has one field: the last job that it has finished. */
export const WORKERS_FINISHED = 16;

// A shard is not begun, running on a worker, or finished.
export const SHARD_FREE = 0;
export const SHARD_BEGUN = 1;
export const SHARD_FINISHED = 2;

export const controlBytes = (workers: number): number => (WORKERS_FINISHED + workers) * Int32Array.BYTES_PER_ELEMENT;

/** Marks a job as finished by one worker. The last worker wakes the main thread. */
export const markFinished = (control: Int32Array, worker: number, generation: number): void => {
  Atomics.store(control, WORKERS_FINISHED + worker, generation);
  // Each worker stores its own field before it reads all fields. So of two workers that finish together, at least one sees both.
  for (let i = WORKERS_FINISHED; i < control.length; i++) if (Atomics.load(control, i) !== generation) return;
  Atomics.store(control, FINISHED, generation);
  Atomics.notify(control, FINISHED);
};

/** The data that a worker thread receives at its start. */
export interface WorkerData {
  readonly module: WebAssembly.Module;
  readonly memory: WebAssembly.Memory;
  readonly control: Int32Array;
  /** The seconds that each worker has spent in kernels. */
  readonly busy: Float64Array;
  readonly index: number;
  /** The arena address of this thread's scratch areas. */
  readonly scratchAddress: number;
  /** The number of the current job at the worker's start. The worker waits for the next one. */
  readonly generation: number;
}
