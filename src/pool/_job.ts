/**
 * Encodes a job as float64 words in shared memory: the kernels to run on each shard, with addresses and scalars. The main thread
 * writes the job, and workers claim its shards. Small jobs run on the main thread in the same way. The encoding:
 *
 *   job:   shard count, then all shards, then all units
 *   shard: index of its unit's first word, first element, element count
 *   unit:  1 if a result is suspect, call count, then its calls
 *   call:  kernel, 1 if it runs block by block, pointer count, scalar count, then (address, bytes per element) for each pointer, then
 *          the scalars
 */
import type { Task } from "../codec/turns.ts";

/** The number of elements in a shard. Sums are added shard by shard, so another size would change the bits of results. */
export const SHARD_ELEMENTS = 65536;

/** Each thread has this many scratch areas. An area has room for one shard of float64. */
export const SCRATCH_AREAS = 6;
const SCRATCH_BYTES = SHARD_ELEMENTS * Float64Array.BYTES_PER_ELEMENT;

/**
 * The number of elements in a block. A block's widened moments stay in the second-level cache from one call to the next; those of a
 * whole shard may not. It is a multiple of 64, because 64 elements share a scale.
 */
const BLOCK = 8192;

/** A kernel has at most this many scalars. */
export const MAX_SCALARS = 16;

/** At most this many consecutive calls run block by block: a kernel, and two conversions for each widened moment. */
const MAX_BLOCKED_CALLS = 8;

/** One thread's scratch areas take this many bytes, with the kernel scalars that follow them. */
export const THREAD_SCRATCH_BYTES = SCRATCH_AREAS * SCRATCH_BYTES + MAX_BLOCKED_CALLS * MAX_SCALARS * Float64Array.BYTES_PER_ELEMENT;

/** The scratch memory of one thread. */
export interface Scratch {
  readonly address: number;
  readonly scalars: Float64Array;
}

export const scratchIn = (memory: WebAssembly.Memory, address: number): Scratch => ({
  address,
  scalars: new Float64Array(memory.buffer, address + SCRATCH_AREAS * SCRATCH_BYTES, MAX_BLOCKED_CALLS * MAX_SCALARS),
});

/** A pointer operand of a kernel. */
export interface Pointer {
  /** The address of the tensor's first element. */
  readonly address: number;
  /** The bytes per element. A shard's address is `address` plus the shard's first element times the stride. */
  readonly stride: number;
}

/**
 * Returns a pointer to a scratch area of the thread that runs the shard. The area carries data from one call of a unit to the next: a
 * whole shard, or with stride 0 a single block.
 */
export const scratch = (area: number, stride = 0): Pointer => ({ address: -1 - area, stride });

/** One call of a kernel, with its operands and scalars. */
export interface Call {
  readonly kernel: number;
  readonly pointers: readonly Pointer[];
  readonly scalars: readonly number[];
  /** True if the call may run block by block, together with neighbouring calls that may. Such a call has no sums. */
  readonly isBlocked?: boolean;
}

/** The calls for one tensor. All calls run on one shard before the next shard, so later calls find the data in the processor's cache. */
export interface Unit {
  readonly elements: number;
  readonly calls: readonly Call[];
  /** True if the calls keep their inputs, so an interrupted shard can run again. */
  readonly isRepeatable?: boolean;
  /** The work per element, relative to an ordinary kernel; 1 by default. */
  readonly passes?: number | undefined;
  /** The number of elements in a shard; SHARD_ELEMENTS by default. The elements of a unit may be rows of a matrix. */
  readonly shardElements?: number | undefined;
}

const SHARD_WORDS = 3;

/** Returns the unit of a shard. */
export const unitOf = (units: readonly Unit[], shard: number): Unit | undefined => {
  let first = 0;
  return units.find((unit) => {
    first += shardsOf(unit);
    return shard < first;
  });
};

const shardsOf = ({ elements, shardElements = SHARD_ELEMENTS }: Unit): number => Math.ceil(elements / shardElements);

/** Counts the shards of a job. */
export const shardCount = (units: readonly Unit[]): number => units.reduce((sum, unit) => sum + shardsOf(unit), 0);

const wordsOfCall = ({ pointers, scalars }: Call): number => 4 + 2 * pointers.length + scalars.length;

/** Returns the length of the encoded job in float64 words. */
export const jobWords = (units: readonly Unit[]): number =>
  units.reduce((sum, unit) => sum + shardsOf(unit) * SHARD_WORDS + 2 + unit.calls.reduce((words, call) => words + wordsOfCall(call), 0), 1);

/** Encoding a job yields after this many units. */
const UNITS_PER_YIELD = 256;

/** Encodes a job and returns its number of shards. */
export function* writeJob(units: readonly Unit[], words: Float64Array): Task<number> {
  const shards = shardCount(units);
  let shardAt = 1;
  let at = 1 + shards * SHARD_WORDS;
  words[0] = shards;
  for (const [index, unit] of units.entries()) {
    if (index % UNITS_PER_YIELD === UNITS_PER_YIELD - 1) yield;
    const { elements, shardElements = SHARD_ELEMENTS } = unit;
    for (let start = 0; start < elements; start += shardElements) {
      words[shardAt++] = at;
      words[shardAt++] = start;
      words[shardAt++] = Math.min(shardElements, elements - start);
    }
    words[at++] = 0;
    words[at++] = unit.calls.length;
    for (const { kernel, pointers, scalars, isBlocked } of unit.calls) {
      words[at++] = kernel;
      words[at++] = isBlocked ? 1 : 0;
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

/** Returns the indexes of units with a suspect result, which may contain NaN or infinity. */
export const suspectsOf = (units: readonly Unit[], words: Float64Array): readonly number[] => {
  const found: number[] = [];
  let at = 1 + (words[0] as number) * SHARD_WORDS;
  units.forEach(({ calls }, index) => {
    if (words[at] !== 0) found.push(index);
    at += calls.reduce((sum, call) => sum + wordsOfCall(call), 2);
  });
  return found;
};

/** Returns an operand's address for a shard. Address 0 means an absent operand, and a negative address a scratch area. */
const operandAddress = (address: number, offset: number, scratchAddress: number): number => {
  if (address < 0) return scratchAddress + (-1 - address) * SCRATCH_BYTES;
  return address === 0 ? 0 : address + offset;
};

/** A compiled kernel. Its arguments are operand addresses, the element count, and the address of the scalars. Returns true for a suspect result. */
export type Kernel = (...operands: number[]) => number | undefined;

/**
 * Calls a kernel with pointers, an element count and the address of its scalars. A call with spread arguments takes 0.8 microseconds, as
 * long as AdamW on 2,000 elements (measured).
 */
const invoke = (kernel: Kernel, pointers: readonly number[], count: number, scalars: number): number | undefined => {
  const [a, b, c, d, e, f, g] = pointers as [number, number, number, number, number, number, number];
  switch (pointers.length) {
    case 1:
      return kernel(a, count, scalars);
    case 2:
      return kernel(a, b, count, scalars);
    case 3:
      return kernel(a, b, c, count, scalars);
    case 4:
      return kernel(a, b, c, d, count, scalars);
    case 5:
      return kernel(a, b, c, d, e, count, scalars);
    case 6:
      return kernel(a, b, c, d, e, f, count, scalars);
    case 7:
      return kernel(a, b, c, d, e, f, g, count, scalars);
    default:
      return kernel(...pointers, count, scalars);
  }
};

/** Runs all calls of one shard on the current thread. */
export const runShard = (words: Float64Array, shard: number, kernels: readonly Kernel[], scratch: Scratch): void => {
  const word = (at: number): number => words[at] as number;
  const entry = 1 + shard * SHARD_WORDS;
  const unit = word(entry);
  let at = unit + 1;
  const start = word(entry + 1);
  const count = word(entry + 2);
  for (let calls = word(at++); calls > 0; calls--) {
    if (word(at + 1) === 1) {
      const blocked: BlockedCall[] = [];
      for (; calls > 0 && word(at + 1) === 1; calls--) {
        blocked.push(blockedCall(words, at, start, blocked.length, kernels, scratch));
        at += 4 + 2 * word(at + 2) + word(at + 3);
      }
      if (runBlocks(blocked, count)) words[unit] = 1;
      if (calls === 0) break;
    }
    const kernel = kernels[word(at)] as Kernel;
    const pointers = word(at + 2);
    const scalars = word(at + 3);
    at += 4;
    const operands: number[] = [];
    for (let i = 0; i < pointers; i++, at += 2) operands.push(operandAddress(word(at), start * word(at + 1), scratch.address));
    for (let i = 0; i < scalars; i++) scratch.scalars[i] = word(at++);
    if (invoke(kernel, operands, count, scratch.scalars.byteOffset)) words[unit] = 1;
  }
};

/** A call that runs block by block. Its scalars have their own memory. */
interface BlockedCall {
  readonly kernel: Kernel;
  /** The addresses of the next block. */
  readonly pointers: number[];
  /** The distances from a block to the next, in bytes. */
  readonly strides: readonly number[];
  readonly scalars: number;
}

const blockedCall = (words: Float64Array, at: number, start: number, index: number, kernels: readonly Kernel[], scratch: Scratch): BlockedCall => {
  const first = index * MAX_SCALARS;
  const scalarsAt = at + 4 + 2 * (words[at + 2] as number);
  scratch.scalars.set(words.subarray(scalarsAt, scalarsAt + (words[at + 3] as number)), first);
  const pointers: number[] = [];
  const strides: number[] = [];
  for (let word = at + 4; word < scalarsAt; word += 2) {
    const address = words[word] as number;
    const stride = words[word + 1] as number;
    pointers.push(operandAddress(address, start * stride, scratch.address));
    strides.push(address === 0 ? 0 : stride * BLOCK);
  }
  const kernel = kernels[words[at] as number] as Kernel;
  return { kernel, pointers, strides, scalars: scratch.scalars.byteOffset + first * Float64Array.BYTES_PER_ELEMENT };
};

/** Runs all calls on one block of a shard, then on the next block. Returns true if a result is suspect. */
const runBlocks = (calls: readonly BlockedCall[], count: number): boolean => {
  let isSuspect = false;
  for (let left = count; left > 0; left -= BLOCK) {
    const length = Math.min(BLOCK, left);
    for (const { kernel, pointers, strides, scalars } of calls) {
      if (invoke(kernel, pointers, length, scalars)) isSuspect = true;
      for (let i = 0; i < pointers.length; i++) pointers[i] = (pointers[i] as number) + (strides[i] as number);
    }
  }
  return isSuspect;
};
