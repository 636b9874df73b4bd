/**
 * Runs recipes on targets. A target is one tensor of a call with its offsets. A recipe is a sequence of kernel calls, shared by
 * similar tensors. Only this file builds the pool's units and reads the kernels' sums.
 */

import { setImmediate } from "node:timers/promises";
import type { Lease } from "../arena/arena.ts";
import { bytesOf } from "../codec/dtype.ts";
import { mapInTurns } from "../codec/turns.ts";
import type { Rows, StepContext } from "../optimizers/registry.ts";
import { type Call, type Pointer, type Pool, SHARD_ELEMENTS, type Unit } from "../pool/pool.ts";

/** Each offset is relative to one of these memory blocks: the call's three files, new slots, rounded parameters, or work memory. */
export const [PARAMS, GRADS, STATE, NEW_SLOTS, ROUNDED, WORKSPACE, RETAINED_PARAMS, RETAINED_STATE] = [0, 1, 2, 3, 4, 5, 6, 7] as const;

/** The arena address of each block, in one call. */
export type Bases = readonly number[];

// Each sum is a float64.
export const SUM_BYTES = 8;

/** A tensor of a call, with an offset for each operand of its recipe. */
export interface Target {
  readonly name: string;
  readonly elements: number;
  /** The index of its first element in the whole tensor; 0 unless it is a slice. */
  readonly first?: number;
  /** The offset of each operand in its memory block. */
  readonly offsets: readonly number[];
  /** The offset of the tensor's sums in the block WORKSPACE. */
  readonly sums: number;
  /** The work per element, relative to an ordinary kernel; 1 by default. */
  readonly passes?: number;
}

/** A kernel call computes its scalar arguments from these inputs. */
export interface ScalarInputs {
  readonly context: StepContext;
  /** The clipping factor, by which all gradients are multiplied. */
  readonly scale: number;
  readonly target: Target;
}

/** Computes a pointer argument of a kernel from a target and the block addresses. */
export type Operand = (target: Target, bases: Bases) => Pointer;

export interface KernelCall {
  readonly kernel: number;
  readonly operands: readonly Operand[];
  /** True if the call may run block by block; see Call. */
  readonly isBlocked?: boolean;
  /** Computes the kernel's scalar arguments. Returns undefined to skip the call. */
  scalars(inputs: ScalarInputs): readonly number[] | undefined;
}

/** The columns that one kernel writes in a target's matrix of sums. The matrix has one row per shard. */
export interface Columns {
  readonly first: number;
  readonly width: number;
}

export const fixed =
  (pointer: Pointer): Operand =>
  () =>
    pointer;

/** The operand of an absent tensor. */
export const absent = fixed({ address: 0, stride: 0 });

/** Creates an operand for a tensor of `block`, at the target's offset number `index`. `sharing` consecutive elements use the same value. */
export const tensorAt = (block: number, index: number, dtype: string, sharing = 1): Operand => {
  const stride = (bytesOf(dtype) as number) / sharing;
  return ({ offsets }, bases) => ({ address: (bases[block] as number) + (offsets[index] as number), stride });
};

const shardsOf = ({ elements }: Target): number => Math.ceil(elements / SHARD_ELEMENTS);

/** Returns the size of a target's matrix of sums. */
export const sumBytes = (elements: number, columns: number): number => Math.ceil(elements / SHARD_ELEMENTS) * columns * SUM_BYTES;

const rowAddress = (target: Target, { first, width }: Columns, block: number): number => target.sums + (first * shardsOf(target) + width * block) * SUM_BYTES;

/** Creates an operand that points to a kernel's sums, starting at its column `from`. */
export const sumsAt = (columns: Columns, from = 0): Operand => {
  const stride = (columns.width * SUM_BYTES) / SHARD_ELEMENTS;
  return (target, bases) => ({ address: (bases[WORKSPACE] as number) + rowAddress(target, columns, 0) + from * SUM_BYTES, stride });
};

/** True if the gradients can be measured again after a worker is lost. Unscaling divides them in place, which must happen only once. */
export const isRepeatable = (lossScale = 1): boolean => lossScale === 1;

/** The time that a call has waited for other calls' jobs. The counter is mutable, so a failed call reports its time, too. */
export interface QueueTime {
  seconds: number;
}

export class Runner {
  readonly #lease: Lease;
  readonly #pool: Pool;
  readonly #queueTime: QueueTime;
  readonly #bases: Bases;

  constructor(lease: Lease, pool: Pool, queueTime: QueueTime, bases: Bases) {
    this.#lease = lease;
    this.#pool = pool;
    this.#queueTime = queueTime;
    this.#bases = bases;
  }

  /**
   * Runs the kernel calls of each target: over its elements, or over the rows that `rowsOf` returns. `isRepeatable` lets the pool run a shard again after a worker is lost. Returns the indexes
   * of targets whose results may not be finite.
   */
  async run<T extends Target>(
    targets: readonly T[],
    callsOf: (target: T) => readonly KernelCall[],
    isRepeatable: boolean,
    inputsOf: (target: T, index: number) => ScalarInputs = withoutContext,
    rowsOf: (target: T) => Rows | undefined = () => undefined,
  ): Promise<readonly number[]> {
    const built = mapInTurns(targets, (target, index): Unit => {
      const inputs = inputsOf(target, index);
      const calls: Call[] = [];
      for (const call of callsOf(target)) {
        const values = call.scalars(inputs);
        if (values)
          calls.push({
            kernel: call.kernel,
            pointers: call.operands.map((operand) => operand(target, this.#bases)),
            scalars: values,
            isBlocked: call.isBlocked === true,
          });
      }
      const rows = rowsOf(target);
      if (rows) return { elements: rows.count, calls, isRepeatable, passes: rows.work, shardElements: rows.perShard };
      return { elements: target.elements, calls, isRepeatable, passes: target.passes };
    });
    // mapInTurns returns a promise only for many targets. The pool then encodes the job in a new turn.
    const units = built instanceof Promise ? await built.finally(setImmediate) : built;
    const { queueSeconds, suspects } = await this.#pool.run(units, this.#lease);
    if (built instanceof Promise) await setImmediate();
    this.#queueTime.seconds += queueSeconds;
    return suspects;
  }

  /** Adds up the sums of all shards, in order. */
  total(target: Target, columns: Columns | undefined): number[] {
    if (!columns) return [];
    const totals = new Array<number>(columns.width).fill(0);
    for (let block = 0; block < shardsOf(target); block++)
      for (let i = 0; i < columns.width; i++) totals[i] = (totals[i] as number) + this.#sumAt(target, columns, block, i);
    return totals;
  }

  /** Returns one of a kernel's sums by shard. */
  shardSums(target: Target, columns: Columns, index: number): number[] {
    return Array.from({ length: shardsOf(target) }, (_, block) => this.#sumAt(target, columns, block, index));
  }

  #sumAt(target: Target, columns: Columns, block: number, index: number): number {
    return this.#lease.bytes.readDoubleLE((this.#bases[WORKSPACE] as number) + rowAddress(target, columns, block) + index * SUM_BYTES);
  }
}

export const NO_CONTEXT: StepContext = { step: 0, lr: 0, isFirst: false, elements: 0, sums: [], allSums: [], scalarSlots: {} };

const withoutContext = (target: Target): ScalarInputs => ({ context: NO_CONTEXT, scale: 1, target });
