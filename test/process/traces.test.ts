/** Tests traces with a small collector that receives OTLP over HTTP. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import http from "node:http";
import type { AddressInfo } from "node:net";
import os from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { after, test } from "node:test";
import { pathToFileURL } from "node:url";
import { JSON_TYPE, TestService } from "../support/service.ts";

const folder = mkdtempSync(join(os.tmpdir(), "stepd-traces-"));
after(() => rmSync(folder, { recursive: true }));

interface Attribute {
  readonly key: string;
  readonly value: { readonly stringValue?: string; readonly intValue?: number | string };
}

interface Span {
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId?: string;
  readonly traceState?: string;
  readonly name: string;
  readonly kind: number;
  readonly startTimeUnixNano: string;
  readonly endTimeUnixNano: string;
  readonly attributes: readonly Attribute[];
  readonly status: { readonly code?: number };
}

interface Export {
  readonly resourceSpans: readonly {
    readonly resource: { readonly attributes: readonly Attribute[] };
    readonly scopeSpans: readonly { readonly spans: readonly Span[] }[];
  }[];
}

/** A server that keeps the spans that it is sent. */
class Collector implements AsyncDisposable {
  readonly #server: http.Server;
  readonly exports: Export[] = [];
  #onExport = (): void => {};

  private constructor() {
    this.#server = http.createServer(async (req, res) => {
      assert.deepEqual([req.method, req.url, req.headers["content-type"]], ["POST", "/v1/traces", "application/json"]);
      this.exports.push(JSON.parse(await text(req)));
      res.setHeader("Content-Type", "application/json").end("{}");
      this.#onExport();
    });
  }

  static async start(): Promise<Collector> {
    const collector = new Collector();
    collector.#server.listen(0, "127.0.0.1");
    await once(collector.#server, "listening");
    return collector;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  get spans(): readonly Span[] {
    return this.exports.flatMap(({ resourceSpans }) => resourceSpans.flatMap(({ scopeSpans }) => scopeSpans.flatMap(({ spans }) => spans)));
  }

  /** Waits for the span of a call. */
  async span(name: string): Promise<Span> {
    for (;;) {
      const found = this.spans.find((span) => span.name === name);
      if (found) return found;
      await new Promise<void>((resolve) => {
        this.#onExport = resolve;
      });
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

/** The SDK sends batches after this delay, which is 5 s by default. */
const SOON = { OTEL_BSP_SCHEDULE_DELAY: "20" };

const attributesOf = ({ attributes }: { readonly attributes: readonly Attribute[] }): Readonly<Record<string, unknown>> =>
  Object.fromEntries(attributes.map(({ key, value }) => [key, value.stringValue ?? Number(value.intValue)]));

const tensor = (value: number | string) => ({ w: { shape: [1], values: [value] } });
const step = (service: TestService, headers: Readonly<Record<string, string>> = {}, grad: number | string = 1): Promise<Response> =>
  service.post("/v1/step", JSON.stringify({ optimizer: { name: "sgd" }, params: tensor(1), grads: tensor(grad) }), JSON_TYPE, headers);

const TRACE = "0af7651916cd43dd8448eb211c80319c";
const PARENT = "b7ad6b7169203331";

test("a call is a span under the caller's, with a span for each phase", async () => {
  await using collector = await Collector.start();
  await using service = await TestService.start({ ...SOON, STEPD_OTLP_URL: collector.url });
  const headers = { traceparent: `00-${TRACE}-${PARENT}-01`, tracestate: "vendor=1", "X-Request-Id": "call-1" };
  const before = Date.now();
  assert.equal((await step(service, headers)).status, 200);
  const span = await collector.span("optimizer.step");
  assert.deepEqual([span.traceId, span.parentSpanId, span.traceState, span.kind], [TRACE, PARENT, "vendor=1", 2]);
  const attributes = attributesOf(span);
  assert.deepEqual([attributes["rpc.method"], attributes["stepd.outcome"], attributes["stepd.request_id"]], ["optimizer.step", "ok", "call-1"]);
  assert.ok(Number(attributes["http.request.body.size"]) > 50 && Number(attributes["http.response.body.size"]) > 20);
  assert.ok(Math.abs(Number(span.startTimeUnixNano) / 1e6 - before) < 60_000, "the time is that of the clock");
  const phases = collector.spans.filter(({ parentSpanId }) => parentSpanId === span.spanId);
  assert.deepEqual(new Set(phases.map(({ name }) => name)), new Set(["receive", "queue", "compute", "send"]));
  for (const { traceId, startTimeUnixNano, endTimeUnixNano } of phases) {
    assert.equal(traceId, TRACE);
    assert.ok(BigInt(startTimeUnixNano) >= BigInt(span.startTimeUnixNano) && BigInt(endTimeUnixNano) >= BigInt(startTimeUnixNano));
  }
  const resource = attributesOf(collector.exports[0]?.resourceSpans[0]?.resource ?? { attributes: [] });
  assert.equal(resource["service.name"], "stepd");
  assert.match(String(resource["service.version"]), /^\d+\.\d+\.\d+/);
});

test("a caller's error is no error of the server's span, and a call without a parent starts a trace", async () => {
  await using collector = await Collector.start();
  await using service = await TestService.start({ ...SOON, STEPD_OTLP_URL: `${collector.url}/`, OTEL_SERVICE_NAME: "optimizer" });
  assert.equal((await step(service, { traceparent: "no traceparent" }, "NaN")).status, 422);
  const span = await collector.span("optimizer.step");
  assert.deepEqual([span.parentSpanId ?? "", span.status.code ?? 0], ["", 0]);
  assert.notEqual(span.traceId, TRACE);
  assert.deepEqual([attributesOf(span)["error.type"], attributesOf(span)["stepd.outcome"]], ["NON_FINITE_GRADIENT", "NON_FINITE_GRADIENT"]);
  assert.equal(attributesOf(collector.exports[0]?.resourceSpans[0]?.resource ?? { attributes: [] })["service.name"], "optimizer");
});

test("a caller that does not sample its trace gets none, and the end of the process sends what is left", async () => {
  await using collector = await Collector.start();
  // The delay is that of the SDK, so that only the end of the process sends the spans.
  await using service = await TestService.start({ STEPD_OTLP_URL: collector.url, OTEL_BSP_SCHEDULE_DELAY: "60000" });
  assert.equal((await step(service, { traceparent: `00-${TRACE}-${PARENT}-00` })).status, 200);
  assert.equal(
    (await service.post("/v1/plan", JSON.stringify({ optimizer: { name: "sgd" }, tensors: { w: { shape: [1], dtype: "F32" } } }), JSON_TYPE)).status,
    200,
  );
  assert.equal(collector.spans.length, 0);
  assert.equal(await service.stop(), 0);
  assert.ok(collector.spans.some(({ name }) => name === "optimizer.plan"));
  assert.ok(!collector.spans.some(({ name, traceId }) => name === "optimizer.step" || traceId === TRACE));
});

test("a collector that is gone costs traces, and no call and no drain", async () => {
  const collector = await Collector.start();
  const { url } = collector;
  await collector[Symbol.asyncDispose]();
  await using service = await TestService.start({ ...SOON, STEPD_OTLP_URL: url });
  for (let call = 0; call < 3; call++) assert.equal((await step(service)).status, 200);
  assert.equal(await service.stop(), 0);
});

test("the SDK is loaded only if the settings name a collector", async () => {
  const [hook, list] = [join(folder, "hook.mjs"), join(folder, "loaded")];
  const lines = [
    'import { appendFileSync } from "node:fs";',
    'import { registerHooks } from "node:module";',
    "const resolve = (name, context, next) => {",
    `  if (name === "@opentelemetry/sdk-trace-base") appendFileSync(${JSON.stringify(list)}, name);`,
    "  return next(name, context);",
    "};",
    "registerHooks({ resolve });",
  ];
  writeFileSync(hook, lines.join("\n"));
  await using collector = await Collector.start();
  const loads = async (env: Readonly<Record<string, string>>): Promise<boolean> => {
    await using service = await TestService.start(env, ["--import", pathToFileURL(hook).href]);
    assert.equal((await step(service)).status, 200);
    return existsSync(list);
  };
  assert.deepEqual([await loads({}), await loads({ STEPD_OTLP_URL: collector.url })], [false, true]);
});
