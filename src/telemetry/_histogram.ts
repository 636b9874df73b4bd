/**
 * A histogram of times that prom-client writes out as one of its own. Its own finds the series of each observation by all of
 * its labels: with seven of them a call that was a twelfth of a small step (measured).
 */

/** Seconds, from 50 us to over a minute. */
const BUCKETS = [0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60];

/** The observations under the same labels. */
class Series {
  /** Observations in each bucket and in no lower one; those above all buckets come last. */
  readonly counts = new Array<number>(BUCKETS.length + 1).fill(0);
  sum = 0;

  observe(seconds: number): void {
    let bucket = 0;
    while (bucket < BUCKETS.length && seconds > (BUCKETS[bucket] as number)) bucket++;
    this.counts[bucket] = (this.counts[bucket] as number) + 1;
    this.sum += seconds;
  }
}

/** With one label and, where there is a second name, another. */
export class Histogram {
  readonly name: string;
  readonly help: string;
  readonly type = "histogram";
  readonly aggregator = "sum";
  readonly #labelNames: readonly [string] | readonly [string, string];
  readonly #series = new Map<string, Map<string, Series>>();

  constructor(name: string, help: string, labelNames: readonly [string] | readonly [string, string]) {
    this.name = name;
    this.help = help;
    this.#labelNames = labelNames;
  }

  observe(seconds: number, first: string, second = ""): void {
    const known = this.#series.get(first)?.get(second);
    (known ?? this.#begin(first, second)).observe(seconds);
  }

  #begin(first: string, second: string): Series {
    const series = new Series();
    this.#series.set(first, (this.#series.get(first) ?? new Map<string, Series>()).set(second, series));
    return series;
  }

  /** What prom-client asks a metric for. */
  async get() {
    const { name, help, type, aggregator } = this;
    return { name, help, type, aggregator, values: [...this.#values()] };
  }

  *#values() {
    const [firstName, secondName] = this.#labelNames;
    for (const [first, same] of this.#series) {
      for (const [second, { counts, sum }] of same) {
        const labels = { [firstName]: first, ...(secondName !== undefined && { [secondName]: second }) };
        let below = 0;
        for (const [bucket, count] of counts.entries()) {
          below += count;
          yield { metricName: `${this.name}_bucket`, labels: { le: BUCKETS[bucket] ?? "+Inf", ...labels }, value: below };
        }
        yield { metricName: `${this.name}_sum`, labels, value: sum };
        yield { metricName: `${this.name}_count`, labels, value: below };
      }
    }
  }
}
