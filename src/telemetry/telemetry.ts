/** Metrics for Prometheus and the log. Labels are names of ours only, never a caller's text. */
import pino, { type Logger } from "pino";
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";

export type Phase = "receive" | "decode" | "queue" | "compute" | "encode" | "send";

/** What the gauges read when they are scraped. */
export interface Sources {
  readonly arena: { readonly used: number; readonly capacity: number; readonly highWater: number };
  readonly pool: { readonly busySeconds: number; readonly workers: number; readonly queued: number };
  /** Whether calls are taken: false from the start of a drain on. */
  isReady(): boolean;
}

/** Why calls are refused before they run: names of errors, then what ends a connection without a reply. */
const REFUSALS = [
  "OVERLOADED",
  "PAYLOAD_TOO_LARGE",
  "DRAINING",
  "UNSUPPORTED_MEDIA_TYPE",
  "NOT_ACCEPTABLE",
  "UNAUTHENTICATED",
  "CONNECTIONS",
  "SLOW_BODY",
  "SLOW_REPLY",
] as const;

export type Refusal = (typeof REFUSALS)[number];

/** Of prom-client's own: gauges by names that end like a counter's, which it also has by type, and one that has no series most of the time. */
const DROPPED = ["nodejs_active_handles_total", "nodejs_active_requests_total", "nodejs_active_resources_total", "nodejs_active_requests"];

/** Seconds, from 50 us to over a minute. */
const REQUEST_BUCKETS = [0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60];

/** A call between its headers and its last byte out. */
export interface Flight {
  /** So many more bytes of its body were admitted. */
  hold(bytes: number): void;
  /** Its last byte is out, or its connection gone. */
  end(): void;
}

export class Telemetry {
  readonly log: Logger;
  readonly #registry = new Registry();
  readonly #requests: Histogram<"method" | "outcome">;
  readonly #phases: Histogram<"phase">;
  readonly #bytes: Counter<"direction">;
  readonly #elements: Counter<"optimizer" | "dtype">;
  readonly #inFlight: Gauge;
  readonly #inFlightBytes: Gauge;
  readonly #refusals: Counter<"reason">;
  readonly #nonFinite: Counter;
  readonly #workersLost: Counter;
  #inFlightCount = 0;

  constructor({ level, version, node }: { readonly level: string; readonly version: string; readonly node: string }) {
    this.log = pino({ level, base: null, timestamp: pino.stdTimeFunctions.isoTime }, pino.destination({ fd: 2, sync: true }));
    const registers = [this.#registry];
    collectDefaultMetrics({ register: this.#registry });
    for (const name of DROPPED) this.#registry.removeSingleMetric(name);
    this.#requests = new Histogram({
      name: "stepd_request_seconds",
      help: "Time from a call's headers to its last byte out",
      labelNames: ["method", "outcome"],
      buckets: REQUEST_BUCKETS,
      registers,
    });
    this.#phases = new Histogram({
      name: "stepd_phase_seconds",
      help: "Time that calls spend in each phase",
      labelNames: ["phase"],
      buckets: REQUEST_BUCKETS,
      registers,
    });
    this.#bytes = new Counter({
      name: "stepd_bytes_total",
      help: "Bytes of calls' bodies that came whole, after inflation, and of replies that went out whole",
      labelNames: ["direction"],
      registers,
    });
    this.#elements = new Counter({ name: "stepd_elements_total", help: "Parameters stepped", labelNames: ["optimizer", "dtype"], registers });
    this.#inFlight = new Gauge({ name: "stepd_in_flight_requests", help: "Calls that are being received, computed or sent", registers });
    this.#inFlightBytes = new Gauge({ name: "stepd_in_flight_bytes", help: "Bytes of the admitted bodies of calls in flight", registers });
    this.#refusals = new Counter({
      name: "stepd_refusals_total",
      help: "Calls refused for their form, their caller or want of room, and connections cut",
      labelNames: ["reason"],
      registers,
    });
    // At 0 from the start: of a counter that appears with 1, Prometheus sees no increase.
    for (const reason of REFUSALS) this.#refusals.inc({ reason }, 0);
    for (const direction of ["in", "out"]) this.#bytes.inc({ direction }, 0);
    this.#nonFinite = new Counter({ name: "stepd_non_finite_gradients_total", help: "Steps refused or skipped for NaN or infinity in a gradient", registers });
    this.#workersLost = new Counter({ name: "stepd_workers_lost_total", help: "Worker threads that died and were replaced", registers });
    new Gauge({ name: "stepd_build_info", help: "1, with the versions of stepd and Node.js as labels", labelNames: ["version", "node"], registers }).set(
      { version, node },
      1,
    );
  }

  /** Connects the gauges that read the arena and the pool. */
  observe({ arena, pool, isReady }: Sources): void {
    const registers = [this.#registry];
    const gauge = (name: string, help: string, read: () => number): void => {
      new Gauge({
        name,
        help,
        registers,
        collect() {
          this.set(read());
        },
      });
    };
    gauge("stepd_arena_used_bytes", "Bytes of the arena that leases hold", () => arena.used);
    gauge("stepd_arena_capacity_bytes", "Bytes of the arena", () => arena.capacity);
    gauge("stepd_arena_high_water_bytes", "The most bytes that leases ever held", () => arena.highWater);
    gauge("stepd_ready", "1 while calls are taken, 0 from the start of a drain on", () => Number(isReady()));
    gauge("stepd_workers", "Worker threads", () => pool.workers);
    gauge("stepd_queued_jobs", "Jobs that wait for the workers, with the one that runs", () => pool.queued);
    new Counter({
      name: "stepd_worker_busy_seconds_total",
      help: "Time that all worker threads together spent in kernels",
      registers,
      collect() {
        this.reset();
        this.inc(pool.busySeconds);
      },
    });
  }

  get contentType(): string {
    return this.#registry.contentType;
  }

  metrics(): Promise<string> {
    return this.#registry.metrics();
  }

  /** Calls in flight; a drain waits until there are none. */
  get inFlight(): number {
    return this.#inFlightCount;
  }

  /** A call began. */
  begin(): Flight {
    let held = 0;
    this.#inFlightCount++;
    this.#inFlight.inc();
    return {
      hold: (bytes) => {
        held += bytes;
        this.#inFlightBytes.inc(bytes);
      },
      end: () => {
        this.#inFlightCount--;
        this.#inFlight.dec();
        this.#inFlightBytes.dec(held);
      },
    };
  }

  /** A call ended. */
  requested(method: string, outcome: string, seconds: number): void {
    this.#requests.observe({ method, outcome }, seconds);
    const refusal = REFUSALS.find((reason) => reason === outcome);
    if (refusal) this.refused(refusal);
  }

  phase(phase: Phase, seconds: number): void {
    this.#phases.observe({ phase }, seconds);
  }

  moved(direction: "in" | "out", bytes: number): void {
    this.#bytes.inc({ direction }, bytes);
  }

  /** A method ran, to whatever end, for so many seconds beside those that it waited for other calls' jobs. */
  ran(compute: number, queue: number): void {
    this.phase("compute", compute);
    this.phase("queue", queue);
  }

  /** A step was taken, with so many elements by dtype. */
  stepped(optimizer: string, elements: Readonly<Record<string, number>>): void {
    for (const [dtype, count] of Object.entries(elements)) this.#elements.inc({ optimizer, dtype }, count);
  }

  /** A connection or a request was refused that does not count as a call. */
  refused(reason: Refusal): void {
    this.#refusals.inc({ reason });
  }

  nonFinite(): void {
    this.#nonFinite.inc();
  }

  /** A file of a setting changed, and was taken over or not. */
  reloaded(setting: string, error: Error | undefined, facts: Readonly<Record<string, unknown>>): void {
    if (error) this.log.error({ setting, reason: error.message }, "a changed file is not taken; what was read before stays");
    else this.log.info({ setting, ...facts }, "a changed file was taken over");
  }

  workerLost(cause: unknown): void {
    this.#workersLost.inc();
    this.log.error(
      { err: cause instanceof Error ? cause : undefined, cause: cause instanceof Error ? undefined : cause },
      "a worker thread died; another takes its place",
    );
  }
}
