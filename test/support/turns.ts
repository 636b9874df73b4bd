/**
 * Loaded into a server with --import: measures the longest turn of its event loop. The parent asks over IPC, and gets the longest
 * since its last question in ms: a turn in processor time (which a busy machine does not lengthen), a turn without its garbage
 * collections, a garbage collection, and a turn by the loop's own histogram.
 */
import { monitorEventLoopDelay, PerformanceObserver, performance } from "node:perf_hooks";

const histogram = monitorEventLoopDelay({ resolution: 1 });
histogram.enable();

interface Turn {
  readonly start: number;
  readonly end: number;
  readonly processor: number;
}

/** Turns longer than LONG_MS; shorter ones are not kept. */
let turns: Turn[] = [];
const LONG_MS = 10;

let last = process.threadCpuUsage();
let start = performance.now();

/** Runs once in every turn. It schedules itself again, so the loop never sleeps. */
const endTurn = (): void => {
  const now = process.threadCpuUsage();
  const end = performance.now();
  const processor = (now.user + now.system - last.user - last.system) / 1000;
  if (processor > LONG_MS) turns.push({ start, end, processor });
  last = now;
  start = end;
  setImmediate(endTurn).unref();
};
setImmediate(endTurn);

/** Garbage collections: work for the whole heap, not for one call. */
let collections: { readonly start: number; readonly ms: number }[] = [];
new PerformanceObserver((list) => {
  for (const { startTime, duration } of list.getEntries()) collections.push({ start: startTime, ms: duration });
}).observe({ entryTypes: ["gc"] });

/** Processor time of a turn without its garbage collections. */
const ownOf = ({ start, end, processor }: Turn): number => {
  const within = collections.filter(({ start: at, ms }) => at < end && at + ms > start);
  return within.reduce((rest, { ms }) => rest - ms, processor);
};

const longest = (times: readonly number[]): number => times.reduce((most, time) => Math.max(most, time), 0);

process.on("message", () => {
  process.send?.({
    processor: longest(turns.map(({ processor }) => processor)),
    own: longest(turns.map(ownOf)),
    collection: longest(collections.map(({ ms }) => ms)),
    histogram: histogram.max / 1e6,
  });
  turns = [];
  collections = [];
  histogram.reset();
});
process.channel?.unref();
