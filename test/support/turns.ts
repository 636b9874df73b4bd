/**
 * Loaded into a server by --import: measures the longest turn of its event loop. The parent asks over IPC, and gets the longest
 * since it last asked, in ms: in processor time of the main thread, which a busy machine does not lengthen, and by the loop's own histogram.
 */
import { monitorEventLoopDelay } from "node:perf_hooks";

const histogram = monitorEventLoopDelay({ resolution: 1 });
histogram.enable();
let longest = 0;
let last = process.threadCpuUsage();

/** The loop never sleeps: each of its turns ends here. */
const endTurn = (): void => {
  const now = process.threadCpuUsage();
  longest = Math.max(longest, now.user + now.system - last.user - last.system);
  last = now;
  setImmediate(endTurn).unref();
};
setImmediate(endTurn);

process.on("message", () => {
  process.send?.({ processor: longest / 1000, histogram: histogram.max / 1e6 });
  longest = 0;
  histogram.reset();
});
process.channel?.unref();
