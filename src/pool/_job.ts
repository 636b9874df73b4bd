/**
 * A job as numbers in shared memory: which kernels run on which shards, with which addresses and scalars. The main thread
 * writes it, workers take shards of it; small jobs run the same way on the main thread.
 *
 * In float64 words: [shards, then for each shard (unit's word, first element, elements), then for each unit (calls, then for
 * each call (kernel, pointers, scalars, (address, bytes an element) for each pointer, scalars))].
 */

/** Elements in a shard and in a block of a sum. Part of the promise of bit-identical steps: sums are combined block by block. */
export const SHARD = 65536;

/** One kernel with its memory. A pointer advances by `stride` bytes for each element before the shard. */
export interface Call {
  readonly kernel: number;
  readonly pointers: readonly { readonly address: number; readonly stride: number }[];
  readonly scalars: readonly number[];
}

/** Calls that run one after the other on each shard of a tensor, so that the second finds its data in the cache. */
export interface Unit {
  readonly elements: number;
  readonly calls: readonly Call[];
}

const SHARD_WORDS = 3;

const shardsOf = ({ elements }: Unit): number => Math.ceil(elements / SHARD);

const wordsOfCall = ({ pointers, scalars }: Call): number => 3 + 2 * pointers.length + scalars.length;

/** Float64 words that the job takes. */
export const jobWords = (units: readonly Unit[]): number =>
  units.reduce((sum, unit) => sum + shardsOf(unit) * SHARD_WORDS + 1 + unit.calls.reduce((words, call) => words + wordsOfCall(call), 0), 1);

/** Writes the job and returns its number of shards. */
export const writeJob = (units: readonly Unit[], words: Float64Array): number => {
  const shards = units.reduce((sum, unit) => sum + shardsOf(unit), 0);
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

export type Kernel = (...operands: number[]) => void;

/** Runs all calls of one shard. */
export const runShard = (words: Float64Array, shard: number, kernels: readonly Kernel[]): void => {
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
    for (let i = 0; i < pointers; i++, at += 2) operands.push(word(at) === 0 ? 0 : word(at) + start * word(at + 1));
    operands.push(count);
    for (let i = 0; i < scalars; i++) operands.push(word(at++));
    kernel(...operands);
  }
};
