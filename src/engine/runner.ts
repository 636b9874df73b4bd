/**
 * Runs kernels on tensors whose places are known. A target is one tensor's part of a call, a recipe the kernels that targets of
 * one kind have in common. This file alone makes the pool's units of them and reads their sums.
 */

import { setImmediate } from "node:timers/promises";
import type { Lease } from "../arena/arena.ts";
import { bytesOf } from "../codec/dtype.ts";
import { mapInTurns } from "../codec/turns.ts";
import type { StepContext } from "../optimizers/registry.ts";
import { type Call, type Pointer, type Pool, SHARD, type Unit } from "../pool/pool.ts";

/** The blocks of memory that tensors lie in: the files of a call, slots made in this step, rounded parameters, and gradients and sums between kernels. */
export const [PARAMS, GRADS, STATE, MADE, ROUNDED, WORK] = [0, 1, 2, 3, 4, 5] as const;

/** Addresses of the blocks in one call. */
export type Bases = readonly number[];

/** Bytes of a kernel's sum, a float64. */
const SUM_BYTES = 8;

/** One tensor of a call, in as many places as its recipe has. */
export interface Target {
  readonly name: string;
  readonly elements: number;
  /** Offsets in their blocks. */
  readonly offsets: readonly number[];
  /** Offset of its sums in the block WORK. */
  readonly sums: number;
}

/** What scalars are computed from. */
export interface Scalars {
  readonly moment: StepContext;
  /** Factor of all gradients. */
  readonly scale: number;
  readonly target: Target;
}

/** Memory that a kernel takes, once the call's blocks have addresses. */
export type Operand = (target: Target, bases: Bases) => Pointer;

export interface KernelCall {
  readonly kernel: number;
  readonly operands: readonly Operand[];
  /** Undefined leaves the call out. */
  scalars(from: Scalars): readonly number[] | undefined;
}

/** Sums that a kernel gives for each block of a target: columns of the target's matrix of sums. */
export interface Columns {
  readonly first: number;
  readonly width: number;
}

export const fixed =
  (pointer: Pointer): Operand =>
  () =>
    pointer;

/** The tensor at an index of the target's offsets. */
export const tensorAt = (block: number, index: number, dtype: string): Operand => {
  const stride = bytesOf(dtype) as number;
  return ({ offsets }, bases) => ({ address: (bases[block] as number) + (offsets[index] as number), stride });
};

const blocksOf = ({ elements }: Target): number => Math.ceil(elements / SHARD);

/** Bytes of so many columns of sums. */
export const sumBytes = (elements: number, columns: number): number => Math.ceil(elements / SHARD) * columns * SUM_BYTES;

const rowAddress = (target: Target, { first, width }: Columns, block: number): number => target.sums + (first * blocksOf(target) + width * block) * SUM_BYTES;

/** A kernel's row of sums, from the given one on. */
export const sumsAt = (columns: Columns, from = 0): Operand => {
  const stride = (columns.width * SUM_BYTES) / SHARD;
  return (target, bases) => ({ address: (bases[WORK] as number) + rowAddress(target, columns, 0) + from * SUM_BYTES, stride });
};

/** Whether gradients can be measured twice: a loss scale divides them in place. */
export const isRepeatable = (lossScale = 1): boolean => lossScale === 1;

/** The time that a call spent waiting for other calls' jobs. It is counted up as it passes, so that it is known of a call that fails, too. */
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

  /** Runs calls on each target. Repeatable ones do the same when they run twice. `from` is what scalars are computed from. Returns the indexes of targets whose results may not be finite. */
  async run<T extends Target>(
    targets: readonly T[],
    callsOf: (target: T) => readonly KernelCall[],
    isRepeatable: boolean,
    from: (target: T, index: number) => Scalars = without,
  ): Promise<readonly number[]> {
    const made = mapInTurns(targets, (target, index): Unit => {
      const scalars = from(target, index);
      const calls: Call[] = [];
      for (const call of callsOf(target)) {
        const values = call.scalars(scalars);
        if (values) calls.push({ kernel: call.kernel, pointers: call.operands.map((operand) => operand(target, this.#bases)), scalars: values });
      }
      return { elements: target.elements, calls, isRepeatable };
    });
    // Units that took turns are many: writing their job has a turn of its own.
    const units = made instanceof Promise ? await made.finally(setImmediate) : made;
    const { queueSeconds, suspects } = await this.#pool.run(units, this.#lease);
    if (made instanceof Promise) await setImmediate();
    this.#queueTime.seconds += queueSeconds;
    return suspects;
  }

  /** The sums of a whole target: block by block, in order. */
  total(target: Target, columns: Columns | undefined): number[] {
    if (!columns) return [];
    const totals = new Array<number>(columns.width).fill(0);
    for (let block = 0; block < blocksOf(target); block++) {
      const row = (this.#bases[WORK] as number) + rowAddress(target, columns, block);
      for (let i = 0; i < columns.width; i++) totals[i] = (totals[i] as number) + this.#lease.bytes.readDoubleLE(row + i * SUM_BYTES);
    }
    return totals;
  }
}

const NOWHERE: StepContext = { step: 0, lr: 0, isFirst: false, elements: 0, sums: [], scalarSlots: {} };

const without = (target: Target): Scalars => ({ moment: NOWHERE, scale: 1, target });
