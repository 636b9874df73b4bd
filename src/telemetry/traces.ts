/** Sends the spans of calls to an OpenTelemetry collector, by OTLP over HTTP. The SDK is loaded only if the settings name a collector. */
import { randomUUID } from "node:crypto";
import { type Context, DiagLogLevel, defaultTextMapGetter, diag, ROOT_CONTEXT, SpanKind, SpanStatusCode, type Tracer, trace } from "@opentelemetry/api";
import { W3CTraceContextPropagator } from "@opentelemetry/core";
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-http";
import { detectResources, envDetector, resourceFromAttributes } from "@opentelemetry/resources";
import { BasicTracerProvider, BatchSpanProcessor } from "@opentelemetry/sdk-trace-base";

/** A finished call. */
export interface TracedCall {
  readonly id: string;
  readonly method: string;
  readonly outcome: string;
  /** The name of the caller's token. */
  readonly name: string | undefined;
  /** The caller's headers of W3C Trace Context. */
  readonly traceparent: string | undefined;
  readonly tracestate: string | undefined;
  /** The start by performance.now(). */
  readonly start: number;
  readonly seconds: number;
  readonly bytesIn: number;
  readonly bytesOut: number;
  /** The seconds of each phase, in the order of the phases. */
  readonly phases: Readonly<Record<string, number>>;
}

export interface TraceOptions {
  /** The base URL of the collector. It ends with a slash. */
  readonly url: string;
  readonly version: string;
  /** Called if spans cannot be sent. They are lost, and calls go on. */
  onError(message: string): void;
}

/** These outcomes are faults of the service. Other errors are the caller's, and do not make a server's span an error. */
const FAULTS = ["INTERNAL_ERROR", "WORKER_LOST"];

/** A collector that does not answer delays the end of the process by this time at most. */
const SHUTDOWN_MS = 2000;

const EXPORT_TIMEOUT_MS = 5000;

/** Failures of the collector are reported at most this often. */
const REPORT_INTERVAL_MS = 60_000;

export class Traces {
  readonly #provider: BasicTracerProvider;
  readonly #tracer: Tracer;
  readonly #propagator = new W3CTraceContextPropagator();

  constructor({ url, version, onError }: TraceOptions) {
    let lastReport = Number.NEGATIVE_INFINITY;
    const report = (message: string): void => {
      if (performance.now() - lastReport < REPORT_INTERVAL_MS) return;
      lastReport = performance.now();
      onError(message);
    };
    const ignore = (): void => {};
    diag.setLogger({ error: report, warn: ignore, info: ignore, debug: ignore, verbose: ignore }, DiagLogLevel.ERROR);
    const service = { "service.name": "stepd", "service.version": version, "service.instance.id": randomUUID() };
    this.#provider = new BasicTracerProvider({
      // OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence.
      resource: resourceFromAttributes(service).merge(detectResources({ detectors: [envDetector] })),
      spanProcessors: [new BatchSpanProcessor(new OTLPTraceExporter({ url: `${url}v1/traces`, timeoutMillis: EXPORT_TIMEOUT_MS }))],
    });
    this.#tracer = this.#provider.getTracer("stepd", version);
  }

  /** Records a span for the call, as a child of the caller's span, and a span for each of its phases. */
  record(call: TracedCall): void {
    const start = performance.timeOrigin + call.start;
    const attributes = {
      "rpc.system": "jsonrpc",
      "rpc.method": call.method,
      "stepd.outcome": call.outcome,
      "stepd.request_id": call.id,
      "http.request.body.size": call.bytesIn,
      "http.response.body.size": call.bytesOut,
      ...(call.name !== undefined && { "stepd.caller": call.name }),
      ...(call.outcome !== "ok" && { "error.type": call.outcome }),
    };
    const parent = this.#parentOf(call);
    const span = this.#tracer.startSpan(call.method, { kind: SpanKind.SERVER, startTime: start, attributes }, parent);
    if (span.isRecording()) {
      if (FAULTS.includes(call.outcome)) span.setStatus({ code: SpanStatusCode.ERROR, message: call.outcome });
      const inside = trace.setSpan(parent, span);
      let at = start;
      for (const [phase, seconds] of Object.entries(call.phases)) {
        if (seconds === 0) continue;
        const end = at + seconds * 1000;
        this.#tracer.startSpan(phase, { startTime: at }, inside).end(end);
        at = end;
      }
    }
    span.end(start + call.seconds * 1000);
  }

  #parentOf({ traceparent, tracestate }: TracedCall): Context {
    if (traceparent === undefined) return ROOT_CONTEXT;
    return this.#propagator.extract(ROOT_CONTEXT, { traceparent, ...(tracestate !== undefined && { tracestate }) }, defaultTextMapGetter);
  }

  /** Sends the spans that are left. */
  async end(): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    const limit = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, SHUTDOWN_MS);
    });
    await Promise.race([this.#provider.shutdown().catch(() => {}), limit]);
    clearTimeout(timer);
  }
}
