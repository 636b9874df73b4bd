/** Kernels over an arena without a server: jobs of each optimizer, on the calling thread and on workers. */
import { Arena } from "../src/arena/arena.ts";
import { registry } from "../src/optimizers/registry.ts";
import { jobWords, runShard, scratchIn, writeJob } from "../src/pool/_job.ts";
import { compile, instantiate } from "../src/pool/kernels.ts";
import { Pool, poolBytes, type Unit } from "../src/pool/pool.ts";
import type { Arrays } from "./loops.ts";

export const KERNELS = new URL("../build/kernels.wasm", import.meta.url);

const FLOAT = 4;
const SHARD = 65536;

/**
 * Bytes between two arrays, the same here and in peers/kernels.py. Arrays that lie a power of two apart get in each other's way:
 * at 64 Mi AdamW took 7.8 ns for an element that way, 1.9 with 128 bytes between and 0.88 with these (measured).
 */
const BETWEEN = 65536;

/** Jobs of up to this many elements the pool runs inline. */
const INLINE = 2 * SHARD;

export interface Case {
  readonly title: string;
  readonly optimizer: string;
  readonly values?: Readonly<Record<string, unknown>>;
}

const defaults = (hyperparameters: Readonly<Record<string, { readonly default?: unknown }>>): Readonly<Record<string, unknown>> =>
  Object.fromEntries(Object.entries(hyperparameters).map(([name, { default: initial }]) => [name, initial]));

/** Addresses of what a kernel takes. */
export interface Memory {
  readonly param: number;
  readonly grad: number;
  readonly slot0: number;
  readonly slot1: number;
  readonly sums: number;
}

/** The jobs of one step, stage by stage. */
export const jobsOf = ({ optimizer, values = {} }: Case, elements: number, memory: Memory, kernel: (name: string) => number): readonly Unit[] => {
  const definition = registry.get(optimizer);
  if (!definition) throw new Error(`there is no optimizer ${optimizer}`);
  const hyperparameters = { ...defaults(definition.hyperparameters), ...values } as never;
  const slots = definition.slots(hyperparameters);
  return definition.stages(hyperparameters).map(({ kernel: name, operands, sums, scalars }) => ({
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
        scalars: scalars({ step: 10, lr: 1e-3, first: false, elements, sums: [[1, 1]], scalarSlots: {} }),
      },
    ],
  }));
};

/** Runs jobs on the calling thread, in the pool's shards. */
const inlineRunner = (arena: Arena, module: WebAssembly.Module) => {
  const kernels = instantiate(module, arena.memory);
  const scratch = scratchIn(arena.memory, arena.reserved);
  return (units: readonly Unit[]): undefined => {
    for (const unit of units) {
      const words = new Float64Array(jobWords([unit]));
      const shards = writeJob([unit], words);
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

/** Values between 0.25 and 1 in size, so that nothing underflows however long they are averaged: subnormals cost 1.8 times (measured). */
const fill = (array: Float32Array, signed: boolean): void => {
  let state = 7;
  for (let i = 0; i < array.length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const size = 0.25 + (state >>> 9) / 2 ** 24;
    array[i] = signed && (state & 256) !== 0 ? -size : size;
  }
};

export type Way = "inline" | "1 worker" | "2 workers";

/** How jobs of a size run: the service's own pool takes small ones inline, so there is no figure for workers. */
export const waysOf = (elements: number): readonly Way[] => (elements > INLINE ? ["inline", "1 worker", "2 workers"] : ["inline"]);

/** One module's kernels. */
export interface Module {
  kernel(name: string): number;
  readonly run: Readonly<Record<Way, (jobs: readonly Unit[]) => Promise<void> | undefined>>;
}

export class Bench implements AsyncDisposable {
  readonly #arena: Arena;
  readonly #pools: Pool[] = [];

  constructor(largest: number) {
    this.#arena = new Arena((4 * (largest * FLOAT + BETWEEN)) / 2 ** 20 + 16, poolBytes(2));
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

  /** Calls with the addresses and the arrays of a size, filled, and gives the memory back afterwards. */
  async with<T>(elements: number, use: (memory: Memory, arrays: Arrays) => Promise<T>): Promise<T> {
    using lease = this.#arena.lease(0);
    const alloc = (): number => lease.alloc(elements * FLOAT + BETWEEN);
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
