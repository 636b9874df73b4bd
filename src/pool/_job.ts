/**
 * A job as numbers in shared memory: which kernels run on which shards, with which addresses and scalars. The main thread
 * writes it, workers take shards of it; small jobs run the same way on the main thread.
 *
 * In float64 words: [shards, then for each shard (unit's word, first element, elements), then for each unit (whether a kernel
 * found it suspect, calls, then for each call (kernel, pointers, scalars, (address, bytes an element) for each pointer, scalars))].
 */
import type { Turns } from "../codec/turns.ts";

/** Elements in a shard and in a block of a sum. Part of the promise of bit-identical steps: sums are combined block by block. */
export const SHARD = 65536;

/** Scratch areas that each thread has for itself, each with room for a shard of float64. */
export const SCRATCH_AREAS = 3;
const SCRATCH_BYTES = SHARD * Float64Array.BYTES_PER_ELEMENT;

/** Numbers that a kernel takes beside its operands, at most. */
export const MOST_SCALARS = 16;

/** Bytes of one thread's scratch areas, with a block for the scalars of a kernel behind them. */
export const THREAD_SCRATCH_BYTES = SCRATCH_AREAS * SCRATCH_BYTES + MOST_SCALARS * Float64Array.BYTES_PER_ELEMENT;

/** Memory that one thread has for itself. */
export interface Scratch {
  readonly address: number;
  readonly scalars: Float64Array;
}

export const scratchIn = (memory: WebAssembly.Memory, address: number): Scratch => ({
  address,
  scalars: new Float64Array(memory.buffer, address + SCRATCH_AREAS * SCRATCH_BYTES, MOST_SCALARS),
});

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
  units.reduce((sum, unit) => sum + shardsOf(unit) * SHARD_WORDS + 2 + unit.calls.reduce((words, call) => words + wordsOfCall(call), 0), 1);

/** Units of a large job that are written between two yields. */
const TURN_UNITS = 256;

/** Writes the job and returns its number of shards. */
export function* writeJob(units: readonly Unit[], words: Float64Array): Turns<number> {
  const shards = shardCount(units);
  let shardAt = 1;
  let at = 1 + shards * SHARD_WORDS;
  words[0] = shards;
  for (const [index, unit] of units.entries()) {
    if (index % TURN_UNITS === TURN_UNITS - 1) yield;
    for (let start = 0; start < unit.elements; start += SHARD) {
      words[shardAt++] = at;
      words[shardAt++] = start;
      words[shardAt++] = Math.min(SHARD, unit.elements - start);
    }
    words[at++] = 0;
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
}

/** Indexes of the units in which a kernel found a result suspect: they may hold values that are not finite. */
export const suspectsOf = (units: readonly Unit[], words: Float64Array): readonly number[] => {
  const found: number[] = [];
  let at = 1 + (words[0] as number) * SHARD_WORDS;
  units.forEach(({ calls }, index) => {
    if (words[at] !== 0) found.push(index);
    at += calls.reduce((sum, call) => sum + wordsOfCall(call), 2);
  });
  return found;
};

/** Address 0 stands for memory that is not there, a negative one for a scratch area. */
const locate = (address: number, offset: number, scratchAddress: number): number => {
  if (address < 0) return scratchAddress + (-1 - address) * SCRATCH_BYTES;
  return address === 0 ? 0 : address + offset;
};

/** Takes addresses, the count of elements and the address of its scalars. Returns whether a result that it wrote is suspect. */
export type Kernel = (...operands: number[]) => number | undefined;

/** Runs all calls of one shard in the calling thread's scratch memory. */
export const runShard = (words: Float64Array, shard: number, kernels: readonly Kernel[], scratch: Scratch): void => {
  const word = (at: number): number => words[at] as number;
  const entry = 1 + shard * SHARD_WORDS;
  const unit = word(entry);
  let at = unit + 1;
  const start = word(entry + 1);
  const count = word(entry + 2);
  for (let calls = word(at++); calls > 0; calls--) {
    const kernel = kernels[word(at)] as Kernel;
    const pointers = word(at + 1);
    const scalars = word(at + 2);
    at += 3;
    const operands: number[] = [];
    for (let i = 0; i < pointers; i++, at += 2) operands.push(locate(word(at), start * word(at + 1), scratch.address));
    for (let i = 0; i < scalars; i++) scratch.scalars[i] = word(at++);
    if (kernel(...operands, count, scratch.scalars.byteOffset)) words[unit] = 1;
  }
};
