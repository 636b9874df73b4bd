/**
 * A job as numbers in shared memory: which kernels run on which shards, with which addresses and scalars. The main thread
 * writes it, workers take shards of it; small jobs run the same way on the main thread.
 *
 * In float64 words: [shards, then for each shard (unit's word, first element, elements), then for each unit (calls, then for
 * each call (kernel, pointers, scalars, (address, bytes an element) for each pointer, scalars))].
 */

/** Elements in a shard and in a block of a sum. Part of the promise of bit-identical steps: sums are combined block by block. */
export const SHARD = 65536;

/** Scratch areas that each thread has for itself, each with room for a shard of float64. */
export const SCRATCH_AREAS = 3;
const SCRATCH_BYTES = SHARD * Float64Array.BYTES_PER_ELEMENT;

/** Bytes of one thread's scratch areas. */
export const THREAD_SCRATCH_BYTES = SCRATCH_AREAS * SCRATCH_BYTES;

/** Memory that a kernel takes. */
export interface Pointer {
  readonly address: number;
  /** Bytes by which it advances for each element before the shard. */
  readonly stride: number;
}

/** A scratch area of whichever thread runs the shard: what one call of a unit leaves there, the next finds. */
export const scratch = (area: number): Pointer => ({ address: -1 - area, stride: 0 });

/** One kernel with its memory. */
export interface Call {
  readonly kernel: number;
  readonly pointers: readonly Pointer[];
  readonly scalars: readonly number[];
}

/** Calls that run one after the other on each shard of a tensor, so that the second finds its data in the cache. */
export interface Unit {
  readonly elements: number;
  readonly calls: readonly Call[];
  /** Whether the calls overwrite none of what they read: a shard that was left half done may be done again. */
  readonly isRepeatable?: boolean;
}

const SHARD_WORDS = 3;

/** The unit that a shard is of. */
export const unitOf = (units: readonly Unit[], shard: number): Unit | undefined => {
  let first = 0;
  return units.find((unit) => {
    first += shardsOf(unit);
    return shard < first;
  });
};

const shardsOf = ({ elements }: Unit): number => Math.ceil(elements / SHARD);

/** Shards of a job. */
export const shardCount = (units: readonly Unit[]): number => units.reduce((sum, unit) => sum + shardsOf(unit), 0);

const wordsOfCall = ({ pointers, scalars }: Call): number => 3 + 2 * pointers.length + scalars.length;

/** Float64 words that the job takes. */
export const jobWords = (units: readonly Unit[]): number =>
  units.reduce((sum, unit) => sum + shardsOf(unit) * SHARD_WORDS + 1 + unit.calls.reduce((words, call) => words + wordsOfCall(call), 0), 1);

/** Writes the job and returns its number of shards. */
export const writeJob = (units: readonly Unit[], words: Float64Array): number => {
  const shards = shardCount(units);
  let shardAt = 1;
  let at = 1 + shards * SHARD_WORDS;
  words[0] = shards;
  for (const unit of units) {
    for (let start = 0; start < unit.elements; start += SHARD) {
      words[shardAt++] = at;
      words[shardAt++] = start;
      words[shardAt++] = Math.min(SHARD, unit.elements - start);
    }
    words[at++] = unit.calls.length;
    for (const { kernel, pointers, scalars } of unit.calls) {
      words[at++] = kernel;
      words[at++] = pointers.length;
      words[at++] = scalars.length;
      for (const { address, stride } of pointers) {
        words[at++] = address;
        words[at++] = stride;
      }
      for (const scalar of scalars) words[at++] = scalar;
    }
  }
  return shards;
};

/** Address 0 stands for memory that is not there, a negative one for a scratch area. */
const locate = (address: number, offset: number, scratchAddress: number): number => {
  if (address < 0) return scratchAddress + (-1 - address) * SCRATCH_BYTES;
  return address === 0 ? 0 : address + offset;
};

export type Kernel = (...operands: number[]) => void;

/** Runs all calls of one shard, with the scratch areas of the calling thread at `scratchAddress`. */
export const runShard = (words: Float64Array, shard: number, kernels: readonly Kernel[], scratchAddress: number): void => {
  const word = (at: number): number => words[at] as number;
  const entry = 1 + shard * SHARD_WORDS;
  let at = word(entry);
  const start = word(entry + 1);
  const count = word(entry + 2);
  for (let calls = word(at++); calls > 0; calls--) {
    const kernel = kernels[word(at)] as Kernel;
    const pointers = word(at + 1);
    const scalars = word(at + 2);
    at += 3;
    const operands: number[] = [];
    for (let i = 0; i < pointers; i++, at += 2) operands.push(locate(word(at), start * word(at + 1), scratchAddress));
    operands.push(count);
    for (let i = 0; i < scalars; i++) operands.push(word(at++));
    kernel(...operands);
  }
};
