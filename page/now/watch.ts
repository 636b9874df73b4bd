/** Reads the metrics of this server and of its replicas once a second, and computes series from the readings. */
import { useEffect, useState } from "preact/hooks";
import { durationText } from "../common/format.ts";
import { messageOf } from "../common/panel.tsx";
import { request, requestMetrics } from "../common/session.ts";
import { parseMetrics, type Reading, total } from "./metrics.ts";

const POLL_MS = 1000;
/** The charts show this many readings. */
const WINDOW = 120;
/** Quantiles and mean phase times cover this many readings. One second has too few calls. */
export const QUANTILE_WINDOW = 10;

export const CALLS = "stepd_request_seconds";
export const STEPS = { method: "optimizer.step", outcome: "ok" };

/** What is known about a server. */
export interface Watch {
  /** The readings so far; undefined where the server did not answer. */
  readonly readings: readonly (Reading | undefined)[];
  /** True if the server takes calls; undefined if it has not answered. */
  readonly isReady: boolean | undefined;
  readonly error: string | undefined;
}

const UNKNOWN: Watch = { readings: [], isReady: undefined, error: undefined };

const readMetrics = async (response: Response): Promise<Reading> => {
  if (!response.ok) throw new Error(`GET ${new URL(response.url).pathname} has HTTP status ${response.status}.`);
  return { time: performance.now() / 1000, samples: parseMetrics(await response.text()) };
};

/** Adds a reading, or the reason why there is none. */
const extend = async ({ readings }: Watch, reading: Promise<Reading>): Promise<Watch> => {
  try {
    const found = await reading;
    return { readings: [...readings, found].slice(-WINDOW), isReady: total(found, "stepd_ready") === 1, error: undefined };
  } catch (error) {
    return { readings: [...readings, undefined].slice(-WINDOW), isReady: undefined, error: messageOf(error) };
  }
};

/** Polls once a second while the tab is visible. Returns the last value. */
const usePolling = <Value>(initial: Value, poll: (before: Value) => Promise<Value>): Value => {
  const [value, setValue] = useState(initial);
  useEffect(() => {
    let [isOver, last] = [false, initial];
    let timer: ReturnType<typeof setTimeout>;
    const run = async (): Promise<void> => {
      if (!document.hidden) last = await poll(last);
      if (isOver) return;
      setValue(last);
      timer = setTimeout(run, POLL_MS);
    };
    void run();
    return () => {
      isOver = true;
      clearTimeout(timer);
    };
  }, []);
  return value;
};

/** Watches this server. If it has its metrics on another port, only its health is known. */
export const useServer = (hasMetrics: boolean): Watch =>
  usePolling(UNKNOWN, async (before) => {
    if (hasMetrics) return extend(before, request("metrics").then(readMetrics));
    try {
      return { ...UNKNOWN, isReady: (await request("health/ready")).ok };
    } catch (error) {
      return { ...UNKNOWN, error: messageOf(error) };
    }
  });

/** A replica that does not answer in this time counts as away, so that the others are not held up. */
const REPLICA_TIMEOUT_MS = 2000;

/** Watches replicas. All have the same number of readings. */
export const useReplicas = (urls: readonly string[]): readonly Watch[] =>
  usePolling(
    urls.map(() => UNKNOWN),
    (before) => Promise.all(urls.map((url, index) => extend(before[index] ?? UNKNOWN, requestMetrics(url, REPLICA_TIMEOUT_MS).then(readMetrics)))),
  );

type Compute = (before: Reading, after: Reading) => number | null;

const between = (readings: Watch["readings"], distance: number, compute: Compute): readonly (number | null)[] =>
  readings.slice(1).map((after, index) => {
    const before = readings[Math.max(0, index + 1 - distance)];
    return before && after ? compute(before, after) : null;
  });

/** Computes a value for each pair of consecutive readings. */
export const betweenReadings = (readings: Watch["readings"], compute: Compute): readonly (number | null)[] => between(readings, 1, compute);

/** Computes a value for each window of QUANTILE_WINDOW readings. */
export const overWindow = (readings: Watch["readings"], compute: Compute): readonly (number | null)[] => between(readings, QUANTILE_WINDOW, compute);

export const healthText = (isReady: boolean | undefined, error: string | undefined): string => {
  if (error !== undefined) return "no answer";
  if (isReady === undefined) return "asking …";
  return isReady ? "ready: it takes calls" : "not ready: it is shutting down";
};

/** Formats the time since a server's start. The clocks of server and browser may differ. */
export const runningText = (started: number): string => durationText(Math.max(0, Date.now() / 1000 - started));
