/**
 * A job encoded as float64 words in shared memory: the kernels to run on each shard, with addresses and scalars. The main thread
 * writes it, and workers claim its shards. Small jobs run the same way on the main thread. The layout:
 *
 *   job:   shard count, then all shards, then all units
 *   shard: index of its unit's first word, first element, element count
 *   unit:  1 if a result is suspect, call count, then its calls
 *   call:  kernel, pointer count, scalar count, then (address, bytes per element) for each pointer, then the scalars
 */
import type { Task } from "../codec/turns.ts";

/** Elements of a shard, and of a block of a sum. Changing it changes bits, because sums are combined block by block. */
export const SHARD = 65536;

/** Scratch areas per thread. Each has room for one shard of float64. */
export const SCRATCH_AREAS = 3;
const SCRATCH_BYTES = SHARD * Float64Array.BYTES_PER_ELEMENT;

/** The most scalars of one kernel. */
export const MAX_SCALARS = 16;

/** Bytes of one thread's scratch areas and of the kernel scalars that follow them. */
export const THREAD_SCRATCH_BYTES = SCRATCH_AREAS * SCRATCH_BYTES + MAX_SCALARS * Float64Array.BYTES_PER_ELEMENT;

/** The private memory of one thread. */
export interface Scratch {
  readonly address: number;
  readonly scalars: Float64Array;
}

export const scratchIn = (memory: WebAssembly.Memory, address: number): Scratch => ({
  address,
  scalars: new Float64Array(memory.buffer, address + SCRATCH_AREAS * SCRATCH_BYTES, MAX_SCALARS),
});

/** One operand of a kernel, as an address for the tensor's first element. */
export interface Pointer {
  readonly address: number;
  /** Bytes per element: a shard's address is `address` plus its first element times the stride. */
  readonly stride: number;
}

/** A scratch area of the thread that runs the shard. It carries data from one call of a unit to the next. */
export const scratch = (area: number): Pointer => ({ address: -1 - area, stride: 0 });

/** One kernel with its operands and scalars. */
export interface Call {
  readonly kernel: number;
  readonly pointers: readonly Pointer[];
  readonly scalars: readonly number[];
}

/** Calls that run one after the other on each shard of a tensor, so that later calls find the data in the processor's cache. */
export interface Unit {
  readonly elements: number;
  readonly calls: readonly Call[];
  /** True if the calls do not overwrite their inputs, so that an interrupted shard can run again. */
  readonly isRepeatable?: boolean;
  /** The work per element, relative to an ordinary kernel; 1 by default. */
  readonly passes?: number | undefined;
}

const SHARD_WORDS = 3;

/** The unit that a shard belongs to. */
export const unitOf = (units: readonly Unit[], shard: number): Unit | undefined => {
  let first = 0;
  return units.find((unit) => {
    first += shardsOf(unit);
    return shard < first;
  });
};

const shardsOf = ({ elements }: Unit): number => Math.ceil(elements / SHARD);

/** The number of shards of a job. */
export const shardCount = (units: readonly Unit[]): number => units.reduce((sum, unit) => sum + shardsOf(unit), 0);

const wordsOfCall = ({ pointers, scalars }: Call): number => 3 + 2 * pointers.length + scalars.length;

/** The length of the encoded job, in float64 words. */
export const jobWords = (units: readonly Unit[]): number =>
  units.reduce((sum, unit) => sum + shardsOf(unit) * SHARD_WORDS + 2 + unit.calls.reduce((words, call) => words + wordsOfCall(call), 0), 1);

/** Units written between two yields to the event loop. */
const TURN_UNITS = 256;

/** Encodes the job and returns its number of shards. */
export function* writeJob(units: readonly Unit[], words: Float64Array): Task<number> {
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

/** Indexes of the units with a suspect result: it may hold NaN or infinity. */
export const suspectsOf = (units: readonly Unit[], words: Float64Array): readonly number[] => {
  const found: number[] = [];
  let at = 1 + (words[0] as number) * SHARD_WORDS;
  units.forEach(({ calls }, index) => {
    if (words[at] !== 0) found.push(index);
    at += calls.reduce((sum, call) => sum + wordsOfCall(call), 2);
  });
  return found;
};

/** The operand's address for a shard. Address 0 means an absent operand, a negative one a scratch area. */
const operandAddress = (address: number, offset: number, scratchAddress: number): number => {
  if (address < 0) return scratchAddress + (-1 - address) * SCRATCH_BYTES;
  return address === 0 ? 0 : address + offset;
};

/** Arguments: operand addresses, the element count, the address of the scalars. Returns true if a result is suspect. */
export type Kernel = (...operands: number[]) => number | undefined;

/** Runs all calls of one shard on the calling thread. */
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
    for (let i = 0; i < pointers; i++, at += 2) operands.push(operandAddress(word(at), start * word(at + 1), scratch.address));
    for (let i = 0; i < scalars; i++) scratch.scalars[i] = word(at++);
    if (kernel(...operands, count, scratch.scalars.byteOffset)) words[unit] = 1;
  }
};
