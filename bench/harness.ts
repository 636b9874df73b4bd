/** Runs the optimizers' kernels without a server, on arrays in an arena. Jobs run on the calling thread or on workers. */
import { Arena } from "../src/arena/arena.ts";
import { atOnce } from "../src/codec/turns.ts";
import { registry } from "../src/optimizers/registry.ts";
import { jobWords, runShard, scratchIn, writeJob } from "../src/pool/_job.ts";
import { compile, instantiate } from "../src/pool/kernels.ts";
import { Pool, poolBytes, type Unit } from "../src/pool/pool.ts";
import type { Arrays } from "./loops.ts";

export const KERNELS = new URL("../build/kernels.wasm", import.meta.url);

const FLOAT = 4;
const SHARD = 65536;

/**
 * The gap between two arrays in bytes, as in peers/kernels.py. Arrays compete for cache sets if the distance between them is a
 * power of two. With 64 Mi elements AdamW took 7.8 ns per element without a gap, 1.9 with 128 bytes and 0.88 with
 * this gap (measured).
 */
const GAP_BYTES = 65536;

/** The pool runs jobs of up to this many elements on the calling thread. */
const INLINE = 2 * SHARD;

export interface Case {
  readonly title: string;
  readonly optimizer: string;
  readonly values?: Readonly<Record<string, unknown>>;
}

const defaultsOf = (hyperparameters: Readonly<Record<string, { readonly default?: unknown }>>): Readonly<Record<string, unknown>> =>
  Object.fromEntries(Object.entries(hyperparameters).map(([name, { default: initial }]) => [name, initial]));

/** The addresses of a kernel's arrays. */
export interface Memory {
  readonly param: number;
  readonly grad: number;
  readonly slot0: number;
  readonly slot1: number;
  readonly sums: number;
}

/** Returns the jobs of one optimizer step, one job for each stage. */
export const jobsOf = ({ optimizer, values = {} }: Case, elements: number, memory: Memory, kernel: (name: string) => number): readonly Unit[] => {
  const definition = registry.get(optimizer);
  if (!definition) throw new Error(`there is no optimizer ${optimizer}`);
  const hyperparameters = { ...defaultsOf(definition.hyperparameters), ...values } as never;
  const slots = definition.slots(hyperparameters);
  return definition.stages(hyperparameters, []).map(({ kernel: name, operands, sums, scalars }) => ({
    elements,
    calls: [
      {
        kernel: kernel(`${name}_f32`),
        pointers: operands.map((operand) => {
          if (operand === "sums") return { address: memory.sums, stride: (sums * 8) / 65536 };
          if (operand === "param" || operand === "grad") return { address: memory[operand], stride: FLOAT };
          const slot = slots.indexOf(operand);
          return slot < 0 ? { address: 0, stride: 0 } : { address: slot === 0 ? memory.slot0 : memory.slot1, stride: FLOAT };
        }),
        scalars: scalars({ step: 10, lr: 1e-3, isFirst: false, elements, sums: [[1, 1]], allSums: [[1, 1]], scalarSlots: {} }),
      },
    ],
  }));
};

/** Returns a function that runs jobs on the calling thread, split into the pool's shards. */
const inlineRunner = (arena: Arena, module: WebAssembly.Module) => {
  const kernels = instantiate(module, arena.memory);
  const scratch = scratchIn(arena.memory, arena.reserved);
  return (units: readonly Unit[]): undefined => {
    for (const unit of units) {
      const words = new Float64Array(jobWords([unit]));
      const shards = atOnce(writeJob([unit], words));
      for (let shard = 0; shard < shards; shard++) runShard(words, shard, kernels, scratch);
    }
  };
};

const poolRunner =
  (arena: Arena, pool: Pool) =>
  async (units: readonly Unit[]): Promise<void> => {
    using lease = arena.lease(0);
    for (const unit of units) await pool.run([unit], lease);
  };

/**
 * Fills an array with values of magnitudes from 0.25 to 1, so that no moving average becomes subnormal. Subnormals take 1.8 times
 * as long (measured).
 */
const fill = (array: Float32Array, signed: boolean): void => {
  let state = 7;
  for (let i = 0; i < array.length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const size = 0.25 + (state >>> 9) / 2 ** 24;
    array[i] = signed && (state & 256) !== 0 ? -size : size;
  }
};

export type Placement = "inline" | "1 worker" | "2 workers";

/**
 * Lists the placements for jobs of a size. The pool runs small jobs only on the calling thread, so workers are absent for these.
 */
export const placementsOf = (elements: number): readonly Placement[] => (elements > INLINE ? ["inline", "1 worker", "2 workers"] : ["inline"]);

/** The kernels of one WebAssembly module. */
export interface Module {
  kernel(name: string): number;
  readonly run: Readonly<Record<Placement, (jobs: readonly Unit[]) => Promise<void> | undefined>>;
}

export class Bench implements AsyncDisposable {
  readonly #arena: Arena;
  readonly #pools: Pool[] = [];

  constructor(largest: number) {
    this.#arena = new Arena((4 * (largest * FLOAT + GAP_BYTES)) / 2 ** 20 + 16, poolBytes(2));
  }

  async load(url: URL): Promise<Module> {
    const onWorkerLost = (cause: unknown): void => console.error("a worker died", cause);
    const start = async (workers: number): Promise<Pool> => {
      const pool = await Pool.start(this.#arena, url, workers, { wideVectors: true, onWorkerLost });
      this.#pools.push(pool);
      return pool;
    };
    const [one, two] = [await start(1), await start(2)];
    return {
      kernel: (name) => one.kernel(name),
      run: { inline: inlineRunner(this.#arena, await compile(url)), "1 worker": poolRunner(this.#arena, one), "2 workers": poolRunner(this.#arena, two) },
    };
  }

  /** Calls `use` with filled arrays of a size and their addresses, then frees the memory. */
  async with<T>(elements: number, use: (memory: Memory, arrays: Arrays) => Promise<T>): Promise<T> {
    using lease = this.#arena.lease(0);
    const alloc = (): number => lease.alloc(elements * FLOAT + GAP_BYTES);
    const memory = { param: alloc(), grad: alloc(), slot0: alloc(), slot1: alloc(), sums: lease.alloc((elements / SHARD + 1) * 32) };
    const view = (address: number): Float32Array => new Float32Array(this.#arena.memory.buffer, address, elements);
    const arrays = { param: view(memory.param), grad: view(memory.grad), slot0: view(memory.slot0), slot1: view(memory.slot1) };
    for (const [name, array] of Object.entries(arrays)) fill(array, name !== "slot1");
    return await use(memory, arrays);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#pools.map((pool) => pool[Symbol.asyncDispose]()));
  }
}
