/**
 * Measures the nanoseconds per element of each optimizer's kernels, and compares them with a plain loop and with the memory
 * bandwidth.
 */
import { Bench, type Case, jobsOf, KERNELS, type Memory, placementsOf } from "./harness.ts";
import { type Arrays, loops } from "./loops.ts";
import { type Figures, legend, nsPerElementText, type Ratio, type Report, race, ratioOf, repeatedContender, type Setup, sizeName } from "./rounds.ts";
import { buildStream, streamJobs } from "./stream.ts";

const SIZES = [2 ** 16, 2 ** 20, 2 ** 24];
const LARGEST = 2 ** 24;
const GAP_MS = 30;

/**
 * Returns the number of steps to run in a row. After a pause Linux may start both workers on one virtual processor. It moves
 * one worker 4 to 8 ms later, at its next balancing (perf sched). This delay was a third of the time of a single step of 16 Mi
 * elements.
 */
export const repetitionsOf = (elements: number): number => Math.max(5, Math.min(40, 2 ** 22 / elements));

interface LoopCase extends Case {
  readonly loop: string;
  /** The number of arrays that each pass reads. A pass writes all of these arrays except the gradient. */
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
    const placements = placementsOf(elements);
    const repetitions = repetitionsOf(elements);
    const loop = (title: string, name: string) => repeatedContender(title, Math.max(1, repetitions >> 2), () => void loops[name]?.(arrays));
    const isRounded = item.title === "adamw";
    const contenders = [
      ...placements.map((placement) => repeatedContender(placement, repetitions, () => kernels.run[placement](jobs))),
      ...placements.map((placement) => repeatedContender(`limit ${placement}`, repetitions, () => limits.run[placement](streams))),
      loop("loop", item.loop),
      ...(isRounded ? [loop("rounded", "adamwRounded")] : []),
    ];
    const figuresOf = await race(`${item.title}, ${sizeName(elements)}`, contenders, GAP_MS, setup);
    const best = placements.map(figuresOf).reduce((a, b) => (a.median <= b.median ? a : b));
    const hasWorkers = placements.includes("2 workers");
    const times = (a: Figures, b: Figures): string => (a.median / b.median).toFixed(2);
    const cell = (name: string, isThere = true): string => (isThere ? nsPerElementText(figuresOf(name), elements) : "-");
    rows.push([
      item.title,
      sizeName(elements),
      times(figuresOf("loop"), best),
      times(figuresOf("inline"), figuresOf("limit inline")),
      hasWorkers ? times(figuresOf("2 workers"), figuresOf("limit 2 workers")) : "-",
      cell("inline"),
      cell("1 worker", hasWorkers),
      cell("2 workers", hasWorkers),
      cell("limit inline"),
      cell("limit 2 workers", hasWorkers),
      cell("loop"),
    ]);
    if (isRounded) rows.push(["  float32 loop", sizeName(elements), times(figuresOf("rounded"), best), ...Array<string>(7).fill("-"), cell("rounded")]);
    if (elements === LARGEST)
      ratios.push(
        ratioOf(`${item.title} kernel, ${sizeName(elements)}, 1 thread / reading and writing its arrays`, figuresOf("inline"), figuresOf("limit inline")),
      );
  };
  for (const elements of SIZES) for (const item of CASES) await bench.with(elements, (memory, arrays) => measure(item, elements, memory, arrays));
  return {
    title: "Kernels, ns per element; the limit reads and writes the same arrays and computes nothing",
    figures: legend(setup.rounds),
    head: ["kernel", "elements", "loop/best", "x limit", "x limit, 2w", "inline", "1 worker", "2 workers", "limit", "limit, 2w", "plain loop"],
    rows,
    ratios,
  };
};

const LAMB_GOAL = 1.6;

/** Compares LAMB (two passes over the arrays and two sums) with AdamW (one pass). */
export const benchLamb = async (setup: Setup): Promise<Report> => {
  await using bench = new Bench(LARGEST);
  const kernels = await bench.load(KERNELS);
  const rows: string[][] = [];
  const ratios: Ratio[] = [];
  for (const elements of [2 ** 20, LARGEST]) {
    await bench.with(elements, async (memory) => {
      const placements = ["inline", "2 workers"] as const;
      const contenders = ["adamw", "lamb"].flatMap((optimizer) => {
        const jobs = jobsOf({ title: optimizer, optimizer }, elements, memory, kernels.kernel);
        return placements.map((placement) => repeatedContender(`${optimizer} ${placement}`, repetitionsOf(elements), () => kernels.run[placement](jobs)));
      });
      const figuresOf = await race(`lamb, ${sizeName(elements)}`, contenders, GAP_MS, setup);
      for (const placement of placements) {
        const threads = placement === "inline" ? "1 thread" : "2 workers";
        const [lamb, adamw] = [figuresOf(`lamb ${placement}`), figuresOf(`adamw ${placement}`)];
        const result = ratioOf(`LAMB kernels, ${sizeName(elements)}, ${threads} / AdamW`, lamb, adamw, LAMB_GOAL);
        ratios.push(result);
        rows.push([
          sizeName(elements),
          threads,
          result.median.toFixed(2),
          result.min.toFixed(2),
          nsPerElementText(lamb, elements),
          nsPerElementText(adamw, elements),
        ]);
      }
    });
  }
  return {
    title: "LAMB against AdamW, ns per element",
    figures: legend(setup.rounds),
    head: ["elements", "on", "ratio", "of minima", "lamb", "adamw"],
    rows,
    ratios,
  };
};
