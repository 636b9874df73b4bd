/** Computes the sum of squared differences between each two updates, for optimizer.distances. */
import type { Lease } from "../arena/arena.ts";
import { ITEMS_PER_YIELD, inTurns, type Run, type Task } from "../codec/turns.ts";
import { StepdError } from "../errors/errors.ts";
import { type Pool, scratch } from "../pool/pool.ts";
import { type CombinedTensor, jobsOf, listTensors, TABLE_ENTRY_BYTES, type Table, writeTables } from "./reduce.ts";
import { type Columns, fixed, type KernelCall, type Operand, type QueueTime, Runner, SUM_BYTES, sumsAt, type Target, WORKSPACE } from "./runner.ts";
import type { TensorFile } from "./tensors.ts";

/** The number of elements in a block. Sums are added block by block, so another size would change the bits of results. */
const BLOCK = 4096;

/** The kernel writes this many partial sums for each pair of updates. */
const PARTIAL_SUMS = 4;

/** The sums of one job take at most this many bytes. */
const MAX_SUM_BYTES = 2 ** 26;

/** A block of a tensor: the range of elements that one kernel call processes. */
interface Block extends Target {
  readonly passes: number;
  readonly calls: readonly KernelCall[];
  /** True for the last block of its tensor. */
  readonly isLast: boolean;
}

type Value = number | "NaN" | "Infinity" | "-Infinity";

/** Computes the matrix of distances, and adds it to `earlier`, the result of a call for other tensors. */
export const distances = async (
  files: readonly TensorFile[],
  earlier: readonly (readonly Value[])[] | undefined,
  lease: Lease,
  pool: Pool,
  queueTime: QueueTime,
  run: Run,
): Promise<number[][]> => {
  const totals = readEarlier(earlier, files.length);
  const count = files.length;
  const pairs = (count * (count - 1)) / 2;
  const updates = files.map((file) => ({ file, weight: 1 }));
  const combined = await run(listTensors({ prefix: "", params: undefined, updates, accumulator: undefined }, { form: "deltas" }, ""));
  const tableBytes = combined.length * count * TABLE_ENTRY_BYTES;
  if (pairs === 0 || tableBytes === 0) return matrixOf(totals, count);
  const sumBytes = PARTIAL_SUMS * pairs * SUM_BYTES;
  const blocksPerJob = Math.max(1, Math.floor(MAX_SUM_BYTES / sumBytes));
  const blocks = await run(blocksOf(combined, count, pool.kernel("reduce_distances"), (index) => tableBytes + (index % blocksPerJob) * sumBytes));
  const work = lease.alloc(tableBytes + Math.min(blocksPerJob, blocks.length) * sumBytes);
  const tables = combined.map(({ parts }, index): Table => ({ offset: index * count * TABLE_ENTRY_BYTES, parts }));
  await inTurns(writeTables(tables, updates, work, lease));
  const runner = new Runner(lease, pool, queueTime, [0, 0, 0, 0, 0, work]);
  const columns: Columns = { first: 0, width: pairs };
  let tensorSums = new Float64Array(pairs);
  for (let at = 0; at < blocks.length; at += blocksPerJob) {
    const some = blocks.slice(at, at + blocksPerJob);
    for (const job of jobsOf(some)) await runner.run(job, ({ calls }) => calls, true);
    const add = function* (): Task<void> {
      for (const block of some) {
        for (const [pair, sum] of runner.total(block, columns).entries()) tensorSums[pair] = (tensorSums[pair] as number) + sum;
        yield;
        if (!block.isLast) continue;
        for (const [pair, sum] of tensorSums.entries()) totals[pair] = (totals[pair] as number) + sum;
        tensorSums = new Float64Array(pairs);
      }
    };
    await inTurns(add());
  }
  return matrixOf(totals, count);
};

function* blocksOf(combined: readonly CombinedTensor[], count: number, kernel: number, sumsOf: (block: number) => number): Task<readonly Block[]> {
  const pairs = (count * (count - 1)) / 2;
  const columns: Columns = { first: 0, width: PARTIAL_SUMS * pairs };
  const scalars = [count];
  const blocks: Block[] = [];
  for (const [index, { name, elements }] of combined.entries()) {
    for (let start = 0; start < elements; start += BLOCK) {
      if (blocks.length % ITEMS_PER_YIELD === ITEMS_PER_YIELD - 1) yield;
      const operands = [tableAt, fixed({ address: 1 + start, stride: 1 }), sumsAt(columns), fixed(scratch(0))];
      blocks.push({
        name,
        elements: Math.min(BLOCK, elements - start),
        passes: count + pairs / 2,
        offsets: [index * count * TABLE_ENTRY_BYTES],
        sums: sumsOf(blocks.length),
        calls: [{ kernel, operands, scalars: () => scalars }],
        isLast: start + BLOCK >= elements,
      });
    }
  }
  return blocks;
}

const tableAt: Operand = ({ offsets }, bases) => ({ address: (bases[WORKSPACE] as number) + (offsets[0] as number), stride: 0 });

/** Returns the upper triangle of an earlier matrix, or zeros without one. Throws INVALID_PARAMS. */
const readEarlier = (earlier: readonly (readonly Value[])[] | undefined, count: number): Float64Array => {
  const isSquare = earlier === undefined || (earlier.length === count && earlier.every((row) => row.length === count));
  if (!isSquare) throw StepdError.mismatch("INVALID_PARAMS", "/distances", `a matrix of ${count} x ${count}, as many as updates`, `${earlier.length} rows`);
  const totals = new Float64Array((count * (count - 1)) / 2);
  for (let i = 0, pair = 0; i < count; i++) for (let j = i + 1; j < count; j++, pair++) totals[pair] = Number(earlier?.[i]?.[j] ?? 0);
  return totals;
};

const matrixOf = (totals: Float64Array, count: number): number[][] => {
  const matrix = Array.from({ length: count }, () => new Array<number>(count).fill(0));
  for (let i = 0, pair = 0; i < count; i++) {
    for (let j = i + 1; j < count; j++, pair++) {
      (matrix[i] as number[])[j] = totals[pair] as number;
      (matrix[j] as number[])[i] = totals[pair] as number;
    }
  }
  return matrix;
};
