/**
 * Runs recipes on targets. A target is one tensor of a call with its offsets; a recipe is a sequence of kernel calls that targets
 * share. Only this file builds the pool's units and reads the sums.
 */

import { setImmediate } from "node:timers/promises";
import type { Lease } from "../arena/arena.ts";
import { bytesOf } from "../codec/dtype.ts";
import { mapInTurns } from "../codec/turns.ts";
import type { StepContext } from "../optimizers/registry.ts";
import { type Call, type Pointer, type Pool, SHARD, type Unit } from "../pool/pool.ts";

/** The memory blocks that offsets refer to: the three files of a call, new slots, rounded parameters, and work memory for gradients and sums. */
export const [PARAMS, GRADS, STATE, NEW_SLOTS, ROUNDED, WORKSPACE] = [0, 1, 2, 3, 4, 5] as const;

/** The addresses of the blocks in one call. */
export type Bases = readonly number[];

/** The bytes of one sum, a float64. */
const SUM_BYTES = 8;

/** One tensor of a call, with an offset for each operand of its recipe. */
export interface Target {
  readonly name: string;
  readonly elements: number;
  /** The offsets of its operands, each in its block. */
  readonly offsets: readonly number[];
  /** The offset of its sums in the block WORKSPACE. */
  readonly sums: number;
}

/** The inputs from which a call's scalars are computed. */
export interface ScalarInputs {
  readonly context: StepContext;
  /** The clipping factor of all gradients. */
  readonly scale: number;
  readonly target: Target;
}

/** Computes a kernel's pointer from a target and the addresses of the blocks. */
export type Operand = (target: Target, bases: Bases) => Pointer;

export interface KernelCall {
  readonly kernel: number;
  readonly operands: readonly Operand[];
  /** Computes the scalars. Undefined skips the call. */
  scalars(inputs: ScalarInputs): readonly number[] | undefined;
}

/** The sums of one kernel: a range of columns in a target's matrix of sums, which has one row per shard. */
export interface Columns {
  readonly first: number;
  readonly width: number;
}

export const fixed =
  (pointer: Pointer): Operand =>
  () =>
    pointer;

/** The operand for one of the target's offsets. */
export const tensorAt = (block: number, index: number, dtype: string): Operand => {
  const stride = bytesOf(dtype) as number;
  return ({ offsets }, bases) => ({ address: (bases[block] as number) + (offsets[index] as number), stride });
};

const blocksOf = ({ elements }: Target): number => Math.ceil(elements / SHARD);

/** The bytes of a target's matrix of sums. */
export const sumBytes = (elements: number, columns: number): number => Math.ceil(elements / SHARD) * columns * SUM_BYTES;

const rowAddress = (target: Target, { first, width }: Columns, block: number): number => target.sums + (first * blocksOf(target) + width * block) * SUM_BYTES;

/** The operand for a kernel's sums, from column `from` on. */
export const sumsAt = (columns: Columns, from = 0): Operand => {
  const stride = (columns.width * SUM_BYTES) / SHARD;
  return (target, bases) => ({ address: (bases[WORKSPACE] as number) + rowAddress(target, columns, 0) + from * SUM_BYTES, stride });
};

/** True if gradients can be measured again after a lost worker. A loss scale divides them in place, which must happen once. */
export const isRepeatable = (lossScale = 1): boolean => lossScale === 1;

/** A call's waiting time for other calls' jobs. A mutable counter, so that a failed call reports it, too. */
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

  /** Runs the kernel calls of each target. `isRepeatable` allows running a shard again after a lost worker. Returns the indexes of targets whose results may not be finite. */
  async run<T extends Target>(
    targets: readonly T[],
    callsOf: (target: T) => readonly KernelCall[],
    isRepeatable: boolean,
    inputsOf: (target: T, index: number) => ScalarInputs = withoutContext,
  ): Promise<readonly number[]> {
    const built = mapInTurns(targets, (target, index): Unit => {
      const inputs = inputsOf(target, index);
      const calls: Call[] = [];
      for (const call of callsOf(target)) {
        const values = call.scalars(inputs);
        if (values) calls.push({ kernel: call.kernel, pointers: call.operands.map((operand) => operand(target, this.#bases)), scalars: values });
      }
      return { elements: target.elements, calls, isRepeatable };
    });
    // A promise means very many units. Encoding their job then starts in a new turn.
    const units = built instanceof Promise ? await built.finally(setImmediate) : built;
    const { queueSeconds, suspects } = await this.#pool.run(units, this.#lease);
    if (built instanceof Promise) await setImmediate();
    this.#queueTime.seconds += queueSeconds;
    return suspects;
  }

  /** The sums over a whole target: its rows added in order. */
  total(target: Target, columns: Columns | undefined): number[] {
    if (!columns) return [];
    const totals = new Array<number>(columns.width).fill(0);
    for (let block = 0; block < blocksOf(target); block++) {
      const row = (this.#bases[WORKSPACE] as number) + rowAddress(target, columns, block);
      for (let i = 0; i < columns.width; i++) totals[i] = (totals[i] as number) + this.#lease.bytes.readDoubleLE(row + i * SUM_BYTES);
    }
    return totals;
  }
}

const NO_CONTEXT: StepContext = { step: 0, lr: 0, isFirst: false, elements: 0, sums: [], scalarSlots: {} };

const withoutContext = (target: Target): ScalarInputs => ({ context: NO_CONTEXT, scale: 1, target });
