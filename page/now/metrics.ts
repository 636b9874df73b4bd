/** Reads the text of /metrics, and computes rates between two readings. */

export interface Sample {
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

const LINE = /^([a-z_:][\w:]*)(?:\{(.*)\})? (\S+)$/i;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** Parses the part of the Prometheus text format that stepd writes. */
export const parseMetrics = (text: string): readonly Sample[] =>
  text.split("\n").flatMap((line) => {
    const [, name, labels = "", value] = LINE.exec(line) ?? [];
    if (name === undefined) return [];
    return [{ name, labels: Object.fromEntries([...labels.matchAll(LABEL)].map(([, key = "", text = ""]) => [key, text])), value: Number(value) }];
  });

/** The samples of /metrics at one time. `time` is in seconds. */
export interface Reading {
  readonly time: number;
  readonly samples: readonly Sample[];
}

type Labels = Readonly<Record<string, string>>;

const matches = (sample: Sample, name: string, labels: Labels): boolean =>
  sample.name === name && Object.entries(labels).every(([key, value]) => sample.labels[key] === value);

/** Sums a metric over the series with these labels. */
export const total = ({ samples }: Reading, name: string, labels: Labels = {}): number =>
  samples.reduce((sum, sample) => (matches(sample, name, labels) ? sum + sample.value : sum), 0);

/** Computes the increase of a counter per second. A smaller second value means that the server restarted and counts from 0. */
export const rate = (before: Reading, after: Reading, name: string, labels: Labels = {}): number => {
  const [from, to] = [total(before, name, labels), total(after, name, labels)];
  return (to < from ? to : to - from) / (after.time - before.time);
};

/** Computes a quantile of a histogram's observations between two readings, interpolated within a bucket. Returns null without observations. */
export const quantile = (before: Reading, after: Reading, name: string, labels: Labels, q: number): number | null => {
  const bounds = new Map<number, number>();
  for (const [reading, sign] of [
    [before, -1],
    [after, 1],
  ] as const) {
    for (const sample of reading.samples) {
      if (!matches(sample, `${name}_bucket`, labels)) continue;
      const bound = sample.labels["le"] === "+Inf" ? Number.POSITIVE_INFINITY : Number(sample.labels["le"]);
      bounds.set(bound, (bounds.get(bound) ?? 0) + sign * sample.value);
    }
  }
  const buckets = [...bounds].sort(([a], [b]) => a - b);
  const count = buckets.at(-1)?.[1] ?? 0;
  if (count <= 0) return null;
  const rank = q * count;
  let [lower, below] = [0, 0];
  for (const [bound, cumulative] of buckets) {
    if (cumulative >= rank) {
      if (bound === Number.POSITIVE_INFINITY) return lower;
      return cumulative === below ? bound : lower + ((bound - lower) * (rank - below)) / (cumulative - below);
    }
    [lower, below] = [bound, cumulative];
  }
  return lower;
};

/** Lists the values of a metric's label. */
export const labelValues = ({ samples }: Reading, name: string, label: string): readonly string[] =>
  [...new Set(samples.flatMap((sample) => (sample.name === name ? (sample.labels[label] ?? []) : [])))].sort();
