/**
 * Loaded into a server by --import: measures the longest turn of its event loop. The parent asks over IPC, and gets what was longest
 * since it last asked, in ms: a turn in processor time of the main thread, which a busy machine does not lengthen, a turn without the
 * collections of garbage in it, a collection, and a turn by the loop's own histogram.
 */
import { monitorEventLoopDelay, PerformanceObserver, performance } from "node:perf_hooks";

const histogram = monitorEventLoopDelay({ resolution: 1 });
histogram.enable();

interface Turn {
  readonly start: number;
  readonly end: number;
  readonly processor: number;
}

/** Turns of some length, which are few. */
let turns: Turn[] = [];
const LONG_MS = 10;

let last = process.threadCpuUsage();
let start = performance.now();

/** The loop never sleeps: each of its turns ends here. */
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

/** Collections of garbage: what the heap needs for all calls, and no call's own work. */
let collections: { readonly start: number; readonly ms: number }[] = [];
new PerformanceObserver((list) => {
  for (const { startTime, duration } of list.getEntries()) collections.push({ start: startTime, ms: duration });
}).observe({ entryTypes: ["gc"] });

/** A turn's time without collections in it. */
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
