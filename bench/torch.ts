/** Compares kernels with torch's own optimizers, which run in one process for each number of threads. */
import { Bench, jobsOf, KERNELS } from "./harness.ts";
import { repetitionsOf } from "./kernels.ts";
import { Peer } from "./processes.ts";
import { type Contender, legend, nsPerElementText, type Ratio, type Report, race, ratioOf, repeatedContender, type Setup, sizeName } from "./rounds.ts";

const SIZES = [2 ** 20, 2 ** 24, 2 ** 26];
const LARGEST = 2 ** 26;
/** Arrays of this size and larger do not fit into the cache. */
const IN_RAM = 2 ** 24;
/** The pause is longer than torch's threads spin after a step. */
const GAP_MS = 50;

const CASES = [
  { title: "AdamW", optimizer: "adamw", values: {}, goals: { one: 1.15, two: 1.05 } },
  { title: "SGD, momentum", optimizer: "sgd", values: { momentum: 0.9 }, goals: { one: 1.05, two: 1.05 } },
] as const;

const FOREACH_GOAL = 0.35;

export const benchTorch = async (setup: Setup): Promise<Report> => {
  const { python } = setup;
  if (python === undefined) throw new Error("torch needs its environment");
  await using bench = new Bench(LARGEST);
  await using stack = new AsyncDisposableStack();
  const kernels = await bench.load(KERNELS);
  const start = async (threads: number) => stack.use(await Peer.start(python, "kernels.py", [String(threads)], { OMP_NUM_THREADS: String(threads) }));
  const torch = { "1 thread": await start(1), "2 threads": await start(2) };
  const placements = { "1 thread": "inline", "2 threads": "2 workers" } as const;
  const rows: string[][] = [];
  const ratios: Ratio[] = [];
  for (const { title, goals, ...item } of CASES) {
    for (const elements of SIZES) {
      await bench.with(elements, async (memory) => {
        const jobs = jobsOf({ title, ...item }, elements, memory, kernels.kernel);
        const repetitions = repetitionsOf(elements);
        const contenders: Contender[] = [];
        for (const threads of ["1 thread", "2 threads"] as const) {
          await torch[threads].ask(`prepare ${item.optimizer} ${elements}`);
          contenders.push(repeatedContender(threads, repetitions, () => kernels.run[placements[threads]](jobs)));
          for (const implementation of ["fused", "foreach"])
            contenders.push({ name: `${implementation} ${threads}`, time: () => torch[threads].time(`${implementation} ${repetitions}`) });
        }
        const figuresOf = await race(`${title}, ${sizeName(elements)}, torch`, contenders, GAP_MS, setup);
        const isInRam = elements >= IN_RAM;
        for (const threads of ["1 thread", "2 threads"] as const) {
          const name = (rival: string): string => `${title} kernel, ${sizeName(elements)}, ${threads} / torch ${rival}`;
          const fused = ratioOf(
            name("fused"),
            figuresOf(threads),
            figuresOf(`fused ${threads}`),
            isInRam ? goals[threads === "1 thread" ? "one" : "two"] : undefined,
          );
          const hasForeachGoal = isInRam && threads === "1 thread" && item.optimizer === "adamw";
          const foreach = ratioOf(name("foreach"), figuresOf(threads), figuresOf(`foreach ${threads}`), hasForeachGoal ? FOREACH_GOAL : undefined);
          ratios.push(fused, foreach);
          rows.push([
            title,
            sizeName(elements),
            threads,
            ...[fused.median, fused.min, foreach.median].map((value) => value.toFixed(2)),
            ...[threads, `fused ${threads}`, `foreach ${threads}`].map((contender) => nsPerElementText(figuresOf(contender), elements)),
          ]);
        }
      });
    }
  }
  return {
    title: "Kernels against torch, ns per element",
    figures: legend(setup.rounds),
    head: ["optimizer", "elements", "on", "/ fused", "of minima", "/ foreach", "stepd", "torch fused", "torch foreach"],
    rows,
    ratios,
  };
};
