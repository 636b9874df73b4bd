/** Records Prometheus metrics and writes the log. Labels come from fixed sets of names, never from a caller's text. */
import pino, { type Logger } from "pino";
import { Counter, collectDefaultMetrics, Gauge, type Metric, Registry } from "prom-client";
import { Histogram } from "./_histogram.ts";
import { LogStream } from "./_stream.ts";
import { LOG_LEVELS } from "./levels.ts";

export type Phase = "receive" | "decode" | "transfer" | "queue" | "compute" | "encode" | "send";

/** The phases that a call passes through, one at a time. */
const FLIGHT_PHASES = ["receive", "queue", "compute", "send"] as const;

type FlightPhase = (typeof FLIGHT_PHASES)[number];

/** Gauges and counters read these objects at each scrape. */
export interface MetricSources {
  readonly arena: { readonly used: number; readonly capacity: number; readonly highWater: number };
  readonly pool: { readonly busySeconds: number; readonly workers: number; readonly queued: number };
  /** The shared folder. Undefined if the server shares none. */
  readonly folder: { readonly bytesIn: number; readonly bytesOut: number } | undefined;
  /** The cache of results. Undefined if it is off. */
  readonly cache:
    | {
        readonly used: number;
        readonly capacity: number;
        readonly hits: number;
        readonly misses: number;
        readonly evictions: number;
        usedBy(caller: string): number;
      }
    | undefined;
  readonly callers: {
    /** The callers that have sent a token. */
    readonly named: Iterable<CallerCounts>;
    readonly connections: number;
    readonly flights: Iterable<{ readonly phase: FlightPhase; readonly start: number }>;
  };
  /** True if the server accepts calls. False from the start of a drain. */
  isReady(): boolean;
}

/** What one caller has done and holds. */
export interface CallerCounts {
  readonly name: string;
  readonly outcomes: Iterable<{ readonly outcome: string; readonly limit: RefusingLimit | undefined; readonly count: number }>;
  readonly bytesIn: number;
  readonly bytesOut: number;
  readonly nonFinite: number;
  readonly arenaBytes: number;
  readonly flights: { readonly size: number };
  readonly sockets: { readonly size: number };
}

/** The reasons to refuse a call before it runs: error names, then reasons to close a connection, then errors that Node answers itself. */
const REFUSALS = [
  "OVERLOADED",
  "PAYLOAD_TOO_LARGE",
  "DRAINING",
  "UNSUPPORTED_MEDIA_TYPE",
  "NOT_ACCEPTABLE",
  "UNAUTHENTICATED",
  "SLOW_BODY",
  "CONNECTIONS",
  "PIPELINED",
  "TLS_HANDSHAKE",
  "SLOW_REPLY",
  "SLOW_REQUEST",
  "HEADERS_TOO_LARGE",
  "MALFORMED",
] as const;

export type Refusal = (typeof REFUSALS)[number];

/** Whose limit refused a call: see `limit` in schemas/error.schema.json. Only these refusals have the label. */
export type RefusingLimit = "server" | "share" | "caller";

const LIMIT_LABELS: Readonly<Partial<Record<Refusal, readonly RefusingLimit[]>>> = {
  OVERLOADED: ["server", "share", "caller"],
  PAYLOAD_TOO_LARGE: ["server", "caller"],
};

/** Returns the labels of a refusal. A refusal for want of room is the server's if it names no limit. */
const refusalLabels = <T extends object>(labels: T, reason: string, limit: RefusingLimit | undefined): T & { readonly limit?: RefusingLimit } =>
  reason in LIMIT_LABELS ? { ...labels, limit: limit ?? "server" } : labels;

/** These default metrics of prom-client break naming rules (gauges named _total, names that end in a type) or are mostly empty. */
const REMOVED_METRICS = [
  "nodejs_active_handles_total",
  "nodejs_active_requests_total",
  "nodejs_active_resources_total",
  "nodejs_active_requests",
  "nodejs_eventloop_utilization_summary",
  "nodejs_eventloop_utilization_histogram",
];

/** The label of a certificate's file: the server's chain, or the authorities that sign client certificates. */
const CERTIFICATE_FILES = ["certificate", "client_ca"] as const;

export interface Certificate {
  readonly file: (typeof CERTIFICATE_FILES)[number];
  readonly subject: string;
  readonly validFrom: Date;
  readonly validTo: Date;
}

/** A call in flight, from its headers to the last byte of its reply. */
export interface CallInFlight {
  /** Counts bytes of the call's body that have arrived. */
  addBytes(bytes: number): void;
  /** Ends the call, after its last byte is sent or its connection is closed. */
  end(): void;
}

const byDirection = (bytes: { readonly in: number; readonly out: number }) =>
  Object.entries(bytes).map(([direction, count]) => [{ direction }, count] as const);

const STDERR = 2;

/** At shutdown, the log waits for a slow reader at most this long, in ms. */
const MAX_FLUSH_MS = 1000;

export class Telemetry implements Disposable {
  readonly log: Logger;
  /** Undefined if the log is silent. */
  readonly #stream: LogStream | undefined;
  readonly #registry = new Registry();
  readonly #requests = new Histogram("stepd_request_seconds", "Time from a call's headers to the last byte of its reply", ["method", "outcome"]);
  readonly #phases = new Histogram("stepd_phase_seconds", "Time that calls spend in each phase", ["phase"]);
  readonly #refusals: Counter<"reason" | "limit">;
  readonly #nonFinite: Counter;
  readonly #workersLost: Counter;
  readonly #expiry: Gauge<"file">;
  readonly #reloads: Gauge<"setting">;
  readonly #bytes = { in: 0, out: 0 };
  readonly #elements = new Map<string, { readonly optimizer: string; readonly dtype: string; count: number }>();
  #reduced = 0;
  #inFlight = 0;
  #inFlightBytes = 0;

  constructor({ level, version, node }: { readonly level: string; readonly version: string; readonly node: string }) {
    this.#stream = level === "silent" ? undefined : new LogStream(STDERR);
    this.log = pino({ level, base: null, timestamp: pino.stdTimeFunctions.isoTime }, this.#stream ?? { write: () => {} });
    const registers = [this.#registry];
    collectDefaultMetrics({ register: this.#registry });
    for (const name of REMOVED_METRICS) this.#registry.removeSingleMetric(name);
    // prom-client's types accept only its own metric classes, but its code calls only `get`.
    for (const histogram of [this.#requests, this.#phases]) this.#registry.registerMetric(histogram as unknown as Metric);
    this.#addCounter("stepd_bytes_total", "Bytes of completely received bodies, after inflation, and of completely sent replies", ["direction"], () =>
      byDirection(this.#bytes),
    );
    this.#addCounter("stepd_elements_total", "Parameters stepped", ["optimizer", "dtype"], () =>
      [...this.#elements.values()].map(({ count, ...labels }) => [labels, count]),
    );
    this.#addCounter("stepd_reduced_elements_total", "Elements of all updates that optimizer.reduce combined", [], () => [[{}, this.#reduced]]);
    this.#addGauge("stepd_in_flight_requests", "Calls that are being received, computed or sent", () => this.#inFlight);
    this.#addGauge("stepd_in_flight_bytes", "Bytes of the bodies of calls in flight that have arrived", () => this.#inFlightBytes);
    this.#refusals = new Counter({
      name: "stepd_refusals_total",
      help: "Refused calls and requests, and connections that the server closed, by reason and by whose limit it was",
      labelNames: ["reason", "limit"],
      registers,
    });
    // Prometheus sees no increase in a counter that first appears with 1, so every reason starts at 0.
    for (const reason of REFUSALS) {
      for (const limit of LIMIT_LABELS[reason] ?? [undefined]) this.#refusals.inc(refusalLabels({ reason }, reason, limit), 0);
    }
    this.#nonFinite = new Counter({
      name: "stepd_non_finite_gradients_total",
      help: "Steps that were refused or skipped because a gradient has NaN or infinity",
      registers,
    });
    this.#workersLost = new Counter({ name: "stepd_workers_lost_total", help: "Worker threads that died and were replaced", registers });
    this.#expiry = new Gauge({
      name: "stepd_tls_expiry_timestamp_seconds",
      help: "Unix time at which the first certificate of a file expires; 0 without the file",
      labelNames: ["file"],
      registers,
    });
    for (const file of CERTIFICATE_FILES) this.#expiry.set({ file }, 0);
    this.#reloads = new Gauge({
      name: "stepd_reload_success",
      help: "1 if the last reading of a setting's file succeeded, 0 if it failed and the server uses what it read before",
      labelNames: ["setting"],
      registers,
    });
    this.#addCounter("stepd_log_lines_lost_total", "Log lines that could not be written", [], () => [[{}, this.#stream?.lost ?? 0]]);
    new Gauge({ name: "stepd_build_info", help: "1, with the versions of stepd and Node.js as labels", labelNames: ["version", "node"], registers }).set(
      { version, node },
      1,
    );
  }

  /** Registers the metrics that read the sources at each scrape. */
  observe({ arena, pool, folder, cache, callers, isReady }: MetricSources): void {
    this.#addGauge("stepd_arena_used_bytes", "Bytes of the arena that leases hold", () => arena.used);
    this.#addGauge("stepd_arena_capacity_bytes", "Bytes of the arena", () => arena.capacity);
    this.#addGauge("stepd_arena_high_water_bytes", "Largest number of bytes that leases have held", () => arena.highWater);
    this.#addGauge("stepd_ready", "1 if the server accepts calls, 0 from the start of a drain", () => Number(isReady()));
    this.#addGauge("stepd_workers", "Worker threads", () => pool.workers);
    this.#addGauge("stepd_queued_jobs", "Jobs that wait for the workers, plus the running job", () => pool.queued);
    this.#addCounter("stepd_worker_busy_seconds_total", "Time that all worker threads together have spent in kernels", [], () => [[{}, pool.busySeconds]]);
    this.#addGauge("stepd_cache_used_bytes", "Bytes of cached results", () => cache?.used ?? 0);
    this.#addGauge("stepd_cache_capacity_bytes", "Capacity of the cache in bytes", () => cache?.capacity ?? 0);
    this.#addCounter("stepd_cache_lookups_total", "Cached blobs that calls named by handle", ["result"], () => [
      [{ result: "hit" }, cache?.hits ?? 0],
      [{ result: "miss" }, cache?.misses ?? 0],
    ]);
    this.#addCounter("stepd_cache_evictions_total", "Cached results that were dropped because calls or newer results needed the memory", [], () => [
      [{}, cache?.evictions ?? 0],
    ]);
    this.#addGauge("stepd_connections", "Open connections", () => callers.connections);
    const byPhase = (read: (starts: readonly number[]) => number) => () =>
      FLIGHT_PHASES.map((phase) => [{ phase }, read([...callers.flights].filter((flight) => flight.phase === phase).map(({ start }) => start))] as const);
    this.#addGauges(
      "stepd_phase_calls",
      "Calls in flight that are in a phase now",
      ["phase"],
      byPhase((starts) => starts.length),
    );
    this.#addGauges(
      "stepd_phase_oldest_call_seconds",
      "Age of the oldest call in flight that is in a phase now, from its headers; 0 without one",
      ["phase"],
      byPhase((starts) => (starts.length === 0 ? 0 : (performance.now() - Math.min(...starts)) / 1000)),
    );
    const byCaller = (read: (caller: CallerCounts) => number) => () => [...callers.named].map((caller) => [{ caller: caller.name }, read(caller)] as const);
    this.#addGauges(
      "stepd_caller_connections",
      "Open connections by caller",
      ["caller"],
      byCaller(({ sockets }) => sockets.size),
    );
    this.#addGauges(
      "stepd_caller_in_flight_requests",
      "Calls in flight by caller",
      ["caller"],
      byCaller(({ flights }) => flights.size),
    );
    this.#addGauges(
      "stepd_caller_arena_bytes",
      "Bytes of the arena that a caller's calls hold",
      ["caller"],
      byCaller(({ arenaBytes }) => arenaBytes),
    );
    this.#addGauges(
      "stepd_caller_cache_bytes",
      "Bytes of a caller's cached results",
      ["caller"],
      byCaller(({ name }) => cache?.usedBy(name) ?? 0),
    );
    this.#addCounter("stepd_caller_calls_total", "Calls by caller, outcome and whose limit refused them", ["caller", "outcome", "limit"], () =>
      [...callers.named].flatMap(({ name, outcomes }) =>
        [...outcomes].map(({ outcome, limit, count }) => [refusalLabels({ caller: name, outcome }, outcome, limit), count] as const),
      ),
    );
    this.#addCounter("stepd_caller_bytes_total", "Bytes of received bodies and of sent replies by caller", ["caller", "direction"], () =>
      [...callers.named].flatMap(({ name, bytesIn, bytesOut }) =>
        byDirection({ in: bytesIn, out: bytesOut }).map(([labels, count]) => [{ caller: name, ...labels }, count] as const),
      ),
    );
    this.#addCounter(
      "stepd_caller_non_finite_gradients_total",
      "Steps by caller with NaN or infinity in a gradient",
      ["caller"],
      byCaller(({ nonFinite }) => nonFinite),
    );
    this.#addCounter("stepd_shared_bytes_total", "Bytes read from and written to the shared folder", ["direction"], () =>
      byDirection({ in: folder?.bytesIn ?? 0, out: folder?.bytesOut ?? 0 }),
    );
  }

  /** Adds a gauge that is read only at each scrape, so calls do not pay for updating it. */
  #addGauge(name: string, help: string, read: () => number): void {
    new Gauge({
      name,
      help,
      registers: [this.#registry],
      collect() {
        this.set(read());
      },
    });
  }

  /** Adds a gauge with labels that is read only at each scrape. */
  #addGauges(name: string, help: string, labelNames: readonly string[], read: () => readonly (readonly [Readonly<Record<string, string>>, number])[]): void {
    new Gauge({
      name,
      help,
      labelNames: [...labelNames],
      registers: [this.#registry],
      collect() {
        this.reset();
        for (const [labels, value] of read()) this.set(labels, value);
      },
    });
  }

  /** Adds a counter that is read only at each scrape. `read` returns pairs of labels and value. */
  #addCounter(name: string, help: string, labelNames: readonly string[], read: () => readonly (readonly [Readonly<Record<string, string>>, number])[]): void {
    new Counter({
      name,
      help,
      labelNames: [...labelNames],
      registers: [this.#registry],
      collect() {
        this.reset();
        for (const [labels, value] of read()) this.inc(labels, value);
      },
    });
  }

  get level(): string {
    return this.log.level;
  }

  /** Sets the level of the log. Returns false for an unknown level, or if the log was silent from the start and has no stream. */
  setLevel(level: string): boolean {
    if (!this.#stream || !LOG_LEVELS.some((known) => known === level)) return false;
    const before = this.log.level;
    this.log.level = level;
    // The line is written at every level, because a level that hides it would hide its own cause.
    this.log.child({}, { level: "info" }).info({ before, level_set: level }, "the level of the log was set");
    return true;
  }

  get contentType(): string {
    return this.#registry.contentType;
  }

  metrics(): Promise<string> {
    return this.#registry.metrics();
  }

  /** The number of calls in flight. A drain waits until it is 0. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /** Counts a call as in flight until its `end` is called. */
  beginCall(): CallInFlight {
    let held = 0;
    this.#inFlight++;
    return {
      addBytes: (bytes) => {
        held += bytes;
        this.#inFlightBytes += bytes;
      },
      end: () => {
        this.#inFlight--;
        this.#inFlightBytes -= held;
      },
    };
  }

  /** Records the duration and outcome of a finished call. */
  recordCall(method: string, outcome: string, seconds: number, limit?: RefusingLimit): void {
    this.#requests.observe(seconds, method, outcome);
    const refusal = outcome === "ok" ? undefined : REFUSALS.find((reason) => reason === outcome);
    if (refusal) this.countRefusal(refusal, limit);
  }

  recordPhase(phase: Phase, seconds: number): void {
    this.#phases.observe(seconds, phase);
  }

  countBytes(direction: "in" | "out", bytes: number): void {
    this.#bytes[direction] += bytes;
  }

  /** Records a method's `total` seconds by phase: `queue` waiting for other calls' jobs, `transfer` accessing files and the cache, the rest computing. */
  recordMethod(total: number, queue: number, transfer: number): void {
    this.recordPhase("compute", total - queue - transfer);
    this.recordPhase("queue", queue);
    if (transfer > 0) this.recordPhase("transfer", transfer);
  }

  /** Counts the updated elements of a step, by dtype. */
  countElements(optimizer: string, elements: Readonly<Record<string, number>>): void {
    for (const [dtype, count] of Object.entries(elements)) {
      const key = `${optimizer} ${dtype}`;
      const series = this.#elements.get(key) ?? { optimizer, dtype, count: 0 };
      series.count += count;
      this.#elements.set(key, series);
    }
  }

  /** Counts the elements of combined updates. */
  countReduced(elements: number): void {
    this.#reduced += elements;
  }

  /** Counts a rejected connection, or a rejected request that is not a call. */
  countRefusal(reason: Refusal, limit?: RefusingLimit): void {
    this.#refusals.inc(refusalLabels({ reason }, reason, limit));
  }

  countNonFinite(): void {
    this.#nonFinite.inc();
  }

  /** Logs the listening address at every level except silent, because nothing else reveals a port that the system chose. */
  logStart(message: string, facts: Readonly<Record<string, unknown>>): void {
    if (this.#stream) this.log.child({}, { level: "info" }).info(facts, message);
  }

  /** Resolves when the log is written, or after MAX_FLUSH_MS if its reader is slow. */
  readonly flushed = async (): Promise<void> => {
    await this.#stream?.flushed(MAX_FLUSH_MS);
  };

  [Symbol.dispose](): void {
    this.#stream?.[Symbol.dispose]();
  }

  /** Exports the expiry dates of the certificates in use. Warns of certificates that have expired or are not valid yet. */
  setCertificates(list: readonly Certificate[]): void {
    for (const file of CERTIFICATE_FILES) {
      const ends = list.filter((certificate) => certificate.file === file).map(({ validTo }) => validTo.getTime() / 1000);
      if (ends.length > 0) this.#expiry.set({ file }, Math.min(...ends));
    }
    for (const { file, subject, validFrom, validTo } of list) {
      const facts = { file, subject, valid_from: validFrom.toISOString(), valid_to: validTo.toISOString() };
      if (validTo.getTime() <= Date.now()) this.log.warn(facts, "a certificate has expired");
      else if (validFrom.getTime() > Date.now()) this.log.warn(facts, "a certificate is not valid yet");
    }
  }

  /** Logs that the file of a setting was read again, or the error that prevented it. */
  logReload(setting: string, error: Error | undefined, facts: Readonly<Record<string, unknown>>): void {
    this.#reloads.set({ setting }, error ? 0 : 1);
    if (error) this.log.error({ setting, reason: error.message }, "a changed file is not taken; what was read before stays");
    else this.log.info({ setting, ...facts }, "a changed file was taken over");
  }

  /** Records that the file of a setting was read at the start. */
  logFirstRead(setting: string): void {
    this.#reloads.set({ setting }, 1);
  }

  workerLost(cause: unknown): void {
    this.#workersLost.inc();
    this.log.error(
      { err: cause instanceof Error ? cause : undefined, cause: cause instanceof Error ? undefined : cause },
      "a worker thread died; another takes its place",
    );
  }
}
