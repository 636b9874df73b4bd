/** A histogram whose series are looked up by one string: prom-client hashes the labels at each observation, 3 % of a small step (measured). */
import type { Metric, Registry } from "prom-client";

interface Series {
  readonly labels: Readonly<Record<string, string>>;
  /** By bucket; the last is for what is over all bounds. */
  readonly counts: number[];
  sum: number;
}

interface Configuration {
  readonly name: string;
  readonly help: string;
  readonly labelNames: readonly string[];
  /** Upper bounds, from low to high. */
  readonly buckets: readonly number[];
}

export class Timings {
  readonly #configuration: Configuration;
  readonly #series = new Map<string, Series>();

  constructor(registry: Registry, configuration: Configuration) {
    this.#configuration = configuration;
    // All that a registry uses of a metric.
    registry.registerMetric({ name: configuration.name, get: async () => this.#exposition() } as unknown as Metric);
  }

  /** Counts a time under the labels' values, in the order of their names. */
  observe(seconds: number, ...values: readonly [string, ...string[]]): void {
    const key = values.length === 1 ? values[0] : values.join("\n");
    const series = this.#series.get(key) ?? this.#add(key, values);
    const { buckets } = this.#configuration;
    let bucket = 0;
    while (bucket < buckets.length && seconds > (buckets[bucket] as number)) bucket++;
    (series.counts[bucket] as number)++;
    series.sum += seconds;
  }

  #add(key: string, values: readonly string[]): Series {
    const { labelNames, buckets } = this.#configuration;
    const labels = Object.fromEntries(labelNames.map((name, index) => [name, values[index] ?? ""]));
    const series = { labels, counts: new Array<number>(buckets.length + 1).fill(0), sum: 0 };
    this.#series.set(key, series);
    return series;
  }

  #exposition(): unknown {
    const { name, help, buckets } = this.#configuration;
    const values = [...this.#series.values()].flatMap(({ labels, counts, sum }) => {
      let count = 0;
      const lines = counts.map((more, index) => {
        count += more;
        return { metricName: `${name}_bucket`, labels: { le: buckets[index] ?? "+Inf", ...labels }, value: count };
      });
      return [...lines, { metricName: `${name}_sum`, labels, value: sum }, { metricName: `${name}_count`, labels, value: count }];
    });
    return { name, help, type: "histogram", values, aggregator: "sum" };
  }
}
