/**
 * Measures the longest turn of a server's event loop; loaded into the server with --import. The parent process asks over IPC.
 * The answer holds four times in ms, each the longest since the last question. The first is a turn in processor time, which a
 * busy machine does not lengthen. The second is a turn without its garbage collections. The third is a garbage collection. The
 * fourth is a turn by the histogram of the event loop.
 */
import { monitorEventLoopDelay, PerformanceObserver, performance } from "node:perf_hooks";

const histogram = monitorEventLoopDelay({ resolution: 1 });
histogram.enable();

interface Turn {
  readonly start: number;
  readonly end: number;
  readonly processor: number;
}

/** Turns longer than LONG_MS. Shorter turns are dropped. */
let turns: Turn[] = [];
const LONG_MS = 10;

let last = process.threadCpuUsage();
let start = performance.now();

/** Runs once in every turn. The function schedules itself again, so the event loop never sleeps. */
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

/** Garbage collections work for the whole heap, not for one call, so they are subtracted from a turn. */
let collections: { readonly start: number; readonly ms: number }[] = [];
new PerformanceObserver((list) => {
  for (const { startTime, duration } of list.getEntries()) collections.push({ start: startTime, ms: duration });
}).observe({ entryTypes: ["gc"] });

/** Returns the processor time of a turn without its garbage collections. */
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
