/** Nanoseconds per element of each optimizer's kernels, beside the plain loop and the memory limit. */

import { readFileSync } from "node:fs";
import { Arena } from "../src/arena/arena.ts";
import { type Progress, table } from "../src/cli/terminal.ts";
import { registry } from "../src/optimizers/registry.ts";
import { jobWords, runShard, writeJob } from "../src/pool/_job.ts";
import { instantiate } from "../src/pool/kernels.ts";
import { Pool, poolBytes, type Unit } from "../src/pool/pool.ts";
import { loops } from "./loops.ts";
import { type Contender, type Figures, race, sizeName } from "./rounds.ts";
import { buildStream } from "./stream.ts";

const KERNELS = new URL("../build/kernels.wasm", import.meta.url);
const SIZES = [2 ** 16, 2 ** 20, 2 ** 24];
/** Repetitions by size, for figures of milliseconds. */
const REPETITIONS = new Map([
  [2 ** 16, 40],
  [2 ** 20, 4],
  [2 ** 24, 1],
]);
const GAP_MS = 20;
const FLOAT = 4;

interface Case {
  readonly title: string;
  readonly optimizer: string;
  readonly values?: Readonly<Record<string, unknown>>;
  readonly loop: string;
  /** Arrays that each pass reads; all but the gradient are written. */
  readonly streams: readonly number[];
}

const CASES: readonly Case[] = [
  { title: "sgd", optimizer: "sgd", loop: "sgd", streams: [2] },
  { title: "sgd, momentum", optimizer: "sgd", values: { momentum: 0.9 }, loop: "momentum", streams: [3] },
  { title: "qhm", optimizer: "qhm", values: { momentum: 0.9 }, loop: "qhm", streams: [3] },
  { title: "adam", optimizer: "adam", loop: "adam", streams: [4] },
  { title: "adamw", optimizer: "adamw", loop: "adamw", streams: [4] },
  { title: "qhadam", optimizer: "qhadam", loop: "qhadam", streams: [4] },
  { title: "qhadamw", optimizer: "qhadamw", loop: "qhadamw", streams: [4] },
  { title: "lamb", optimizer: "lamb", loop: "lamb", streams: [4, 2] },
];

const defaults = (hyperparameters: Readonly<Record<string, { readonly default?: unknown }>>): Readonly<Record<string, unknown>> =>
  Object.fromEntries(Object.entries(hyperparameters).map(([name, { default: initial }]) => [name, initial]));

/** Addresses of what a kernel takes. */
interface Memory {
  readonly param: number;
  readonly grad: number;
  readonly slot0: number;
  readonly slot1: number;
  readonly sums: number;
}

/** The jobs of one step, stage by stage. */
const jobsOf = ({ optimizer, values = {} }: Case, elements: number, memory: Memory, kernel: (name: string) => number): readonly Unit[] => {
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

const streamJobs = ({ streams }: Case, elements: number, { param, grad, slot0, slot1 }: Memory, kernel: (name: string) => number): readonly Unit[] =>
  streams.map((arrays) => ({
    elements,
    calls: [
      {
        kernel: kernel(`stream${arrays}`),
        pointers: [param, grad, slot0, slot1].slice(0, arrays).map((address) => ({ address, stride: FLOAT })),
        scalars: [0],
      },
    ],
  }));

/** Runs jobs on the calling thread, in the pool's shards. */
const inlineRunner = (arena: Arena, module: URL) => {
  const compiled = new WebAssembly.Module(readFileSync(module));
  const kernels = instantiate(compiled, arena.memory);
  return (units: readonly Unit[]): void => {
    for (const unit of units) {
      const words = new Float64Array(jobWords([unit]));
      const shards = writeJob([unit], words);
      for (let shard = 0; shard < shards; shard++) runShard(words, shard, kernels, arena.reserved);
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

const perElement = ({ median, min }: Figures, elements: number): string => `${((median * 1e6) / elements).toFixed(3)} [${((min * 1e6) / elements).toFixed(3)}]`;

const ratio = (a: Figures | undefined, b: Figures | undefined): string => (a && b ? (a.median / b.median).toFixed(2) : "");

export const benchKernels = async (rounds: number, bar: Progress): Promise<string> => {
  const stream = await buildStream();
  const largest = SIZES.at(-1) as number;
  const arena = new Arena((4 * largest * FLOAT) / 2 ** 20 + 16, poolBytes(2));
  const events = { onWorkerLost: (cause: unknown) => console.error("a worker died", cause) };
  const pools = new Map<string, Pool>();
  const start = async (module: URL, workers: number): Promise<Pool> => {
    const pool = await Pool.start(arena, module, workers, events);
    pools.set(`${module} ${workers}`, pool);
    return pool;
  };
  const rows: string[][] = [];
  try {
    const [kernels1, kernels2, stream1, stream2] = [await start(KERNELS, 1), await start(KERNELS, 2), await start(stream, 1), await start(stream, 2)];
    const number = (name: string): number => kernels1.kernel(name);
    const streamNumber = (name: string): number => stream1.kernel(name);
    const runners = { inline: inlineRunner(arena, KERNELS), "1 worker": poolRunner(arena, kernels1), "2 workers": poolRunner(arena, kernels2) };
    const limits = { inline: inlineRunner(arena, stream), "1 worker": poolRunner(arena, stream1), "2 workers": poolRunner(arena, stream2) };
    for (const elements of SIZES) {
      using lease = arena.lease(0);
      const alloc = (): number => lease.alloc(elements * FLOAT);
      const memory: Memory = { param: alloc(), grad: alloc(), slot0: alloc(), slot1: alloc(), sums: lease.alloc((elements / 65536 + 1) * 32) };
      const view = (address: number): Float32Array => new Float32Array(arena.memory.buffer, address, elements);
      const arrays = { param: view(memory.param), grad: view(memory.grad), slot0: view(memory.slot0), slot1: view(memory.slot1) };
      const repetitions = REPETITIONS.get(elements) ?? 1;
      // The pool itself runs jobs of this size inline.
      const ways = Object.keys(runners).filter((way) => way === "inline" || elements > 2 * 65536) as (keyof typeof runners)[];
      for (const item of CASES) {
        for (const [name, array] of Object.entries(arrays)) fill(array, name !== "slot1");
        const jobs = jobsOf(item, elements, memory, number);
        const streams = streamJobs(item, elements, memory, streamNumber);
        const loop = loops[item.loop];
        const contenders: Contender[] = [
          ...ways.map((way) => ({ name: way, repetitions, run: () => runners[way](jobs) })),
          ...ways.map((way) => ({ name: `limit ${way}`, repetitions, run: () => limits[way](streams) })),
          { name: "loop", repetitions: Math.max(1, repetitions >> 2), run: () => loop?.(arrays) },
          ...(item.title === "adamw" ? [{ name: "rounded", repetitions: Math.max(1, repetitions >> 2), run: () => loops["adamwRounded"]?.(arrays) }] : []),
        ];
        bar.begin(`${item.title}, ${sizeName(elements)}`, contenders.length * (rounds + 1));
        const figures = await race(contenders, rounds, GAP_MS, bar);
        const best = ways.reduce((a, b) => ((figures.get(a)?.median ?? 0) <= (figures.get(b)?.median ?? 0) ? a : b));
        const cell = (name: string): string => {
          const found = figures.get(name);
          return found ? perElement(found, elements) : "-";
        };
        rows.push([
          `${item.title}${item.title === "adamw" ? "*" : ""}`,
          sizeName(elements),
          ratio(figures.get("loop"), figures.get(best)),
          ratio(figures.get("inline"), figures.get("limit inline")),
          ratio(figures.get("2 workers"), figures.get("limit 2 workers")) || "-",
          cell("inline"),
          cell("1 worker"),
          cell("2 workers"),
          cell("limit inline"),
          cell("limit 2 workers"),
          cell("loop"),
        ]);
        if (figures.has("rounded"))
          rows.push(["  float32 loop", sizeName(elements), ratio(figures.get("rounded"), figures.get(best)), "", "", "", "", "", "", "", cell("rounded")]);
      }
    }
  } finally {
    await Promise.all([...pools.values()].map((pool) => pool[Symbol.asyncDispose]()));
  }
  const head = ["kernel", "elements", "loop/best", "x limit", "x limit, 2w", "inline", "1 worker", "2 workers", "limit", "limit, 2w", "plain loop"];
  return `Kernels: ns per element, median [min] of ${rounds} rounds; the limit reads and writes the same arrays and computes nothing\n\n${table(head, rows)}`;
};
