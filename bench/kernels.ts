/** Nanoseconds per element of each optimizer's kernels, beside the plain loop and the memory limit. */
import { Bench, type Case, jobsOf, KERNELS, type Memory, waysOf } from "./harness.ts";
import { type Arrays, loops } from "./loops.ts";
import { type Figures, medians, perElement, type Ratio, type Report, race, ratio, repeated, type Setup, sizeName } from "./rounds.ts";
import { buildStream, streamJobs } from "./stream.ts";

const SIZES = [2 ** 16, 2 ** 20, 2 ** 24];
const LARGEST = 2 ** 24;
const GAP_MS = 30;

/**
 * Steps in a row. After a gap Linux may start both workers on one virtual processor, and moves one away only at its next balance,
 * 4 to 8 ms later (perf sched): of a single step of 16 Mi elements that was a third, and not what the kernels take.
 */
export const repetitionsOf = (elements: number): number => Math.max(5, Math.min(40, 2 ** 22 / elements));

interface LoopCase extends Case {
  readonly loop: string;
  /** Arrays that each pass reads; all but the gradient are written. */
  readonly streams: readonly number[];
}

const CASES: readonly LoopCase[] = [
  { title: "sgd", optimizer: "sgd", loop: "sgd", streams: [2] },
  { title: "sgd, momentum", optimizer: "sgd", values: { momentum: 0.9 }, loop: "momentum", streams: [3] },
  { title: "qhm", optimizer: "qhm", values: { momentum: 0.9 }, loop: "qhm", streams: [3] },
  { title: "adam", optimizer: "adam", loop: "adam", streams: [4] },
  { title: "adamw", optimizer: "adamw", loop: "adamw", streams: [4] },
  { title: "qhadam", optimizer: "qhadam", loop: "qhadam", streams: [4] },
  { title: "qhadamw", optimizer: "qhadamw", loop: "qhadamw", streams: [4] },
  { title: "lamb", optimizer: "lamb", loop: "lamb", streams: [4, 2] },
];

export const benchKernels = async (setup: Setup): Promise<Report> => {
  await using bench = new Bench(LARGEST);
  const [kernels, limits] = [await bench.load(KERNELS), await bench.load(await buildStream())];
  const rows: string[][] = [];
  const ratios: Ratio[] = [];
  const measure = async (item: LoopCase, elements: number, memory: Memory, arrays: Arrays): Promise<void> => {
    const jobs = jobsOf(item, elements, memory, kernels.kernel);
    const streams = streamJobs(item.streams, elements, memory, limits.kernel);
    const ways = waysOf(elements);
    const repetitions = repetitionsOf(elements);
    const loop = (title: string, name: string) => repeated(title, Math.max(1, repetitions >> 2), () => void loops[name]?.(arrays));
    const isRounded = item.title === "adamw";
    const contenders = [
      ...ways.map((way) => repeated(way, repetitions, () => kernels.run[way](jobs))),
      ...ways.map((way) => repeated(`limit ${way}`, repetitions, () => limits.run[way](streams))),
      loop("loop", item.loop),
      ...(isRounded ? [loop("rounded", "adamwRounded")] : []),
    ];
    const of = await race(`${item.title}, ${sizeName(elements)}`, contenders, GAP_MS, setup);
    const best = ways.map(of).reduce((a, b) => (a.median <= b.median ? a : b));
    const hasWorkers = ways.includes("2 workers");
    const times = (a: Figures, b: Figures): string => (a.median / b.median).toFixed(2);
    const cell = (name: string, isThere = true): string => (isThere ? perElement(of(name), elements) : "-");
    rows.push([
      item.title,
      sizeName(elements),
      times(of("loop"), best),
      times(of("inline"), of("limit inline")),
      hasWorkers ? times(of("2 workers"), of("limit 2 workers")) : "-",
      cell("inline"),
      cell("1 worker", hasWorkers),
      cell("2 workers", hasWorkers),
      cell("limit inline"),
      cell("limit 2 workers", hasWorkers),
      cell("loop"),
    ]);
    if (isRounded) rows.push(["  float32 loop", sizeName(elements), times(of("rounded"), best), ...Array<string>(7).fill("-"), cell("rounded")]);
    if (elements === LARGEST)
      ratios.push(ratio(`${item.title} kernel, ${sizeName(elements)}, 1 thread / reading and writing its arrays`, of("inline"), of("limit inline")));
  };
  for (const elements of SIZES) for (const item of CASES) await bench.with(elements, (memory, arrays) => measure(item, elements, memory, arrays));
  return {
    title: "Kernels, ns per element; the limit reads and writes the same arrays and computes nothing",
    figures: medians(setup.rounds),
    head: ["kernel", "elements", "loop/best", "x limit", "x limit, 2w", "inline", "1 worker", "2 workers", "limit", "limit, 2w", "plain loop"],
    rows,
    ratios,
  };
};

const LAMB_GOAL = 1.6;

/** LAMB against AdamW: two passes and two sums against one pass. */
export const benchLamb = async (setup: Setup): Promise<Report> => {
  await using bench = new Bench(LARGEST);
  const kernels = await bench.load(KERNELS);
  const rows: string[][] = [];
  const ratios: Ratio[] = [];
  for (const elements of [2 ** 20, LARGEST]) {
    await bench.with(elements, async (memory) => {
      const ways = ["inline", "2 workers"] as const;
      const contenders = ["adamw", "lamb"].flatMap((optimizer) => {
        const jobs = jobsOf({ title: optimizer, optimizer }, elements, memory, kernels.kernel);
        return ways.map((way) => repeated(`${optimizer} ${way}`, repetitionsOf(elements), () => kernels.run[way](jobs)));
      });
      const of = await race(`lamb, ${sizeName(elements)}`, contenders, GAP_MS, setup);
      for (const way of ways) {
        const threads = way === "inline" ? "1 thread" : "2 workers";
        const [lamb, adamw] = [of(`lamb ${way}`), of(`adamw ${way}`)];
        const result = ratio(`LAMB kernels, ${sizeName(elements)}, ${threads} / AdamW`, lamb, adamw, LAMB_GOAL);
        ratios.push(result);
        rows.push([sizeName(elements), threads, result.median.toFixed(2), result.min.toFixed(2), perElement(lamb, elements), perElement(adamw, elements)]);
      }
    });
  }
  return {
    title: "LAMB against AdamW, ns per element",
    figures: medians(setup.rounds),
    head: ["elements", "on", "ratio", "of minima", "lamb", "adamw"],
    rows,
    ratios,
  };
};
