/**
 * Builds the Grafana dashboard: `node deploy/grafana/dashboard.ts` writes stepd.json beside this file. A test compares the file
 * with this code, runs every query on a real Prometheus, and validates the result with Grafana's schema.
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import {
  BigValueColorMode,
  BigValueGraphMode,
  GraphGradientMode,
  LegendDisplayMode,
  LegendPlacement,
  StackingConfigBuilder,
  StackingMode,
  TooltipDisplayMode,
  VisibilityMode,
  VizLegendOptionsBuilder,
  VizTooltipOptionsBuilder,
} from "@grafana/grafana-foundation-sdk/common";
import {
  AnnotationQueryBuilder,
  type Dashboard,
  DashboardBuilder,
  DashboardCursorSync,
  DatasourceVariableBuilder,
  QueryVariableBuilder,
  RowBuilder,
  ThresholdsConfigBuilder,
  ThresholdsMode,
  VariableRefresh,
  VariableSort,
} from "@grafana/grafana-foundation-sdk/dashboard";
import { DataqueryBuilder } from "@grafana/grafana-foundation-sdk/prometheus";
import { PanelBuilder as StatBuilder } from "@grafana/grafana-foundation-sdk/stat";
import { PanelBuilder as TimeseriesBuilder } from "@grafana/grafana-foundation-sdk/timeseries";
import { BytesIEC, BytesPerSecondIEC, CountsPerSecond, PercentUnit, RequestsPerSecond, Seconds, Short } from "@grafana/grafana-foundation-sdk/units";

const FILE = join(import.meta.dirname, "stepd.json");

/** Grafana's grid has 24 columns. */
const COLUMNS = 24;
const PANELS_IN_ROW = 3;
const PANEL_HEIGHT = 8;
const STAT_HEIGHT = 4;

const SOURCE = { type: "prometheus", uid: "$datasource" };

interface Query {
  readonly expr: string;
  readonly legend: string;
}

interface Panel {
  readonly title: string;
  readonly description: string;
  readonly unit: string;
  readonly queries: readonly Query[];
  /** True if the panel stacks the series. The sum of their values must have a meaning. */
  readonly isStacked?: boolean;
}

interface Stat extends Omit<Panel, "isStacked"> {
  /** The value turns red at this limit and above it, or below it with `isLow`. */
  readonly limit?: number;
  readonly isLow?: boolean;
}

/** Selects the chosen job and instances. Every selector begins with this text. */
const SELECTOR = 'job="$job", instance=~"$instance"';

/** Returns the series of a metric for the chosen instances. */
const series = (name: string, labels = ""): string => `${name}{${SELECTOR}${labels === "" ? "" : `, ${labels}`}}`;

/** Returns the growth per second of a counter. Grafana chooses the window by the scrape interval. */
const rate = (name: string, labels = ""): string => `rate(${series(name, labels)}[$__rate_interval])`;

const sum = (expr: string, ...by: readonly string[]): string => (by.length === 0 ? `sum(${expr})` : `sum by (${by.join(", ")}) (${expr})`);

const quantile = (share: number, name: string, ...by: readonly string[]): string => `histogram_quantile(${share}, ${sum(rate(`${name}_bucket`), ...by, "le")})`;

const requests = sum(rate("stepd_request_seconds_count"));

/** Returns a share of all calls. The share is 0 while the counted calls have no series yet. */
const shareOf = (counted: string): string => `(${sum(counted)} or vector(0)) / ${requests}`;

const singleQuery = (expr: string, legend = ""): readonly Query[] => [{ expr, legend }];

const stats: readonly Stat[] = [
  { title: "Ready", description: "Instances that accept calls", unit: Short, queries: singleQuery(sum(series("stepd_ready"))), limit: 1, isLow: true },
  { title: "Calls", description: "Calls a second", unit: RequestsPerSecond, queries: singleQuery(requests) },
  {
    title: "Failures",
    description: "Calls that end with INTERNAL_ERROR",
    unit: PercentUnit,
    queries: singleQuery(shareOf(rate("stepd_request_seconds_count", 'outcome="INTERNAL_ERROR"'))),
    limit: 0.01,
  },
  {
    title: "Refused for lack of room",
    description: "Refused calls and connections: OVERLOADED, CONNECTIONS",
    unit: PercentUnit,
    queries: singleQuery(shareOf(rate("stepd_refusals_total", 'reason=~"OVERLOADED|CONNECTIONS", limit!="caller"'))),
    limit: 0.05,
  },
  {
    title: "Step, 99th percentile",
    description: "Duration of optimizer.step, from its headers to its last byte out. The rules define the objective",
    unit: Seconds,
    queries: singleQuery(`histogram_quantile(0.99, ${sum(rate("stepd_request_seconds_bucket", 'method="optimizer.step"'), "le")})`),
    limit: 2.5,
  },
  {
    title: "Arena in use",
    description: "Use of the fullest arena. Calls that do not fit are refused",
    unit: PercentUnit,
    queries: singleQuery(`max(${series("stepd_arena_used_bytes")} / ${series("stepd_arena_capacity_bytes")})`),
    limit: 0.85,
  },
];

const rows: Readonly<Record<string, readonly Panel[]>> = {
  Traffic: [
    {
      title: "Calls by method",
      description: "unknown: refused or broken before their method was known; batch: several calls in one body",
      unit: RequestsPerSecond,
      queries: singleQuery(sum(rate("stepd_request_seconds_count"), "method"), "{{method}}"),
      isStacked: true,
    },
    {
      title: "Calls by outcome",
      description: "ok, or the name of the error",
      unit: RequestsPerSecond,
      queries: singleQuery(sum(rate("stepd_request_seconds_count"), "outcome"), "{{outcome}}"),
      isStacked: true,
    },
    {
      title: "Bytes of bodies",
      description: "Bytes of calls received and of replies sent",
      unit: BytesPerSecondIEC,
      queries: singleQuery(sum(rate("stepd_bytes_total"), "direction"), "{{direction}}"),
    },
  ],
  Latency: [
    {
      title: "Calls: median, 99th percentile",
      description: "Duration from the headers to the last byte out, by method",
      unit: Seconds,
      queries: [
        { expr: quantile(0.5, "stepd_request_seconds", "method"), legend: "{{method}} p50" },
        { expr: quantile(0.99, "stepd_request_seconds", "method"), legend: "{{method}} p99" },
      ],
    },
    {
      title: "Phases: 99th percentile",
      description: "receive and send depend on callers and network; queue is the wait for the workers behind other calls",
      unit: Seconds,
      queries: singleQuery(quantile(0.99, "stepd_phase_seconds", "phase"), "{{phase}}"),
    },
    {
      title: "Phases: mean",
      description: "Mean time of a call in each phase",
      unit: Seconds,
      queries: singleQuery(`${sum(rate("stepd_phase_seconds_sum"), "phase")} / ${sum(rate("stepd_phase_seconds_count"), "phase")}`, "{{phase}}"),
      isStacked: true,
    },
  ],
  Now: [
    {
      title: "Calls in each phase",
      description: "Calls in flight by the phase that they are in now. The panels above count a phase only at its end",
      unit: Short,
      queries: singleQuery(sum(series("stepd_phase_calls"), "phase"), "{{phase}}"),
      isStacked: true,
    },
    {
      title: "Oldest call in each phase",
      description: "Age of the oldest call in flight, by the phase that it is in now",
      unit: Seconds,
      queries: singleQuery(`max by (phase) (${series("stepd_phase_oldest_call_seconds")})`, "{{phase}}"),
    },
    {
      title: "Connections",
      description: "Open connections",
      unit: Short,
      queries: singleQuery(series("stepd_connections"), "{{instance}}"),
      isStacked: true,
    },
  ],
  Callers: [
    {
      title: "Calls by caller",
      description: "Callers are the names of tokens. Without tokens these panels are empty",
      unit: RequestsPerSecond,
      queries: singleQuery(sum(rate("stepd_caller_calls_total"), "caller"), "{{caller}}"),
      isStacked: true,
    },
    {
      title: "Calls that fail, by caller and outcome",
      description: "Refusals and errors: OVERLOADED, NON_FINITE_GRADIENT and others",
      unit: RequestsPerSecond,
      queries: singleQuery(sum(rate("stepd_caller_calls_total", 'outcome!="ok"'), "caller", "outcome", "limit"), "{{caller}} {{outcome}} {{limit}}"),
      isStacked: true,
    },
    {
      title: "Arena by caller",
      description: "Bytes of the arena that a caller's calls hold",
      unit: BytesIEC,
      queries: singleQuery(sum(series("stepd_caller_arena_bytes"), "caller"), "{{caller}}"),
      isStacked: true,
    },
  ],
  Refusals: [
    {
      title: "Refusals by reason",
      description: "Calls refused before they ran, and connections cut off",
      unit: RequestsPerSecond,
      queries: singleQuery(sum(rate("stepd_refusals_total"), "reason", "limit"), "{{reason}} {{limit}}"),
      isStacked: true,
    },
    {
      title: "Steps with non-finite gradients",
      description: "Steps refused or skipped because of NaN or infinity",
      unit: CountsPerSecond,
      queries: singleQuery(sum(rate("stepd_non_finite_gradients_total"), "instance"), "{{instance}}"),
    },
    {
      title: "Drains and restarts",
      description: "1 while ready, 0 while draining; and the age of the process",
      unit: Short,
      queries: [
        { expr: series("stepd_ready"), legend: "{{instance}} ready" },
        { expr: `changes(${series("process_start_time_seconds")}[1h])`, legend: "{{instance}} restarts in an hour" },
      ],
    },
  ],
  Memory: [
    {
      title: "Arena",
      description: "Bytes held by calls, their maximum so far, and the capacity",
      unit: BytesIEC,
      queries: [
        { expr: series("stepd_arena_used_bytes"), legend: "{{instance}} used" },
        { expr: series("stepd_arena_high_water_bytes"), legend: "{{instance}} high water" },
        { expr: series("stepd_arena_capacity_bytes"), legend: "{{instance}} capacity" },
      ],
    },
    {
      title: "Bodies in flight",
      description: "Body bytes of calls being received, computed or sent. The Helm chart scales by this metric",
      unit: BytesIEC,
      queries: singleQuery(series("stepd_in_flight_bytes"), "{{instance}}"),
      isStacked: true,
    },
    {
      title: "Calls in flight",
      description: "Calls being received, computed or sent",
      unit: Short,
      queries: singleQuery(series("stepd_in_flight_requests"), "{{instance}}"),
      isStacked: true,
    },
  ],
  Cache: [
    {
      title: "Kept results",
      description: "Bytes of the arena that keep results for the next call, and the limit",
      unit: BytesIEC,
      queries: [
        { expr: series("stepd_cache_used_bytes"), legend: "{{instance}} kept" },
        { expr: series("stepd_cache_capacity_bytes"), legend: "{{instance}} limit" },
      ],
    },
    {
      title: "Handles looked up",
      description: "Handles in calls. The caller of a missing result sends the bytes again",
      unit: CountsPerSecond,
      queries: singleQuery(sum(rate("stepd_cache_lookups_total"), "result"), "{{result}}"),
    },
    {
      title: "Results evicted",
      description: "Kept results that were dropped because calls or newer results needed their memory",
      unit: CountsPerSecond,
      queries: singleQuery(rate("stepd_cache_evictions_total"), "{{instance}}"),
    },
  ],
  Work: [
    {
      title: "Workers busy",
      description: "Share of the worker threads' time spent in kernels",
      unit: PercentUnit,
      queries: singleQuery(`${rate("stepd_worker_busy_seconds_total")} / ${series("stepd_workers")}`, "{{instance}}"),
    },
    {
      title: "Elements a second by optimizer",
      description: "Parameters stepped per second",
      unit: CountsPerSecond,
      queries: singleQuery(sum(rate("stepd_elements_total"), "optimizer", "dtype"), "{{optimizer}} {{dtype}}"),
      isStacked: true,
    },
    {
      title: "Jobs waiting, workers lost",
      description: "Jobs for the workers, including the running one; threads that died in the last hour",
      unit: Short,
      queries: [
        { expr: series("stepd_queued_jobs"), legend: "{{instance}} jobs" },
        { expr: `increase(${series("stepd_workers_lost_total")}[1h])`, legend: "{{instance}} lost" },
      ],
    },
  ],
  Process: [
    {
      title: "Resident memory",
      description: "Memory of the whole process: the used part of the arena, the heap, and buffers",
      unit: BytesIEC,
      queries: singleQuery(series("process_resident_memory_bytes"), "{{instance}}"),
    },
    {
      title: "Event loop lag",
      description: "Delay of the main thread, which receives, decodes, encodes and sends",
      unit: Seconds,
      queries: [
        { expr: series("nodejs_eventloop_lag_p50_seconds"), legend: "{{instance}} p50" },
        { expr: series("nodejs_eventloop_lag_p99_seconds"), legend: "{{instance}} p99" },
      ],
    },
    {
      title: "Processor and garbage collection",
      description: "Processors in use, and the share of one processor spent in garbage collection",
      unit: Short,
      queries: [
        { expr: rate("process_cpu_seconds_total"), legend: "{{instance}} processors" },
        { expr: sum(rate("nodejs_gc_duration_seconds_sum"), "instance"), legend: "{{instance}} garbage collection" },
      ],
    },
  ],
};

const target = ({ expr, legend }: Query, index: number): DataqueryBuilder =>
  new DataqueryBuilder()
    .datasource(SOURCE)
    .expr(expr)
    .legendFormat(legend)
    .range()
    .refId(String.fromCharCode("A".charCodeAt(0) + index));

const statPanel = ({ title, description, unit, queries, limit, isLow = false }: Stat): StatBuilder => {
  const [low, high] = isLow ? ["red", "green"] : ["green", "red"];
  const steps = [{ value: null, color: limit === undefined ? "blue" : low }, ...(limit === undefined ? [] : [{ value: limit, color: high }])];
  return new StatBuilder()
    .title(title)
    .description(description)
    .datasource(SOURCE)
    .unit(unit)
    .thresholds(new ThresholdsConfigBuilder().mode(ThresholdsMode.Absolute).steps(steps))
    .colorMode(BigValueColorMode.Value)
    .graphMode(BigValueGraphMode.Area)
    .targets(queries.map(target))
    .span(COLUMNS / stats.length)
    .height(STAT_HEIGHT);
};

const timePanel = ({ title, description, unit, queries, isStacked = false }: Panel): TimeseriesBuilder =>
  new TimeseriesBuilder()
    .title(title)
    .description(description)
    .datasource(SOURCE)
    .unit(unit)
    .min(0)
    .lineWidth(1)
    .fillOpacity(isStacked ? 30 : 5)
    .gradientMode(GraphGradientMode.None)
    .showPoints(VisibilityMode.Never)
    .stacking(new StackingConfigBuilder().mode(isStacked ? StackingMode.Normal : StackingMode.None))
    .legend(new VizLegendOptionsBuilder().displayMode(LegendDisplayMode.List).placement(LegendPlacement.Bottom).showLegend(true))
    .tooltip(new VizTooltipOptionsBuilder().mode(TooltipDisplayMode.Multi))
    .targets(queries.map(target))
    .span(COLUMNS / PANELS_IN_ROW)
    .height(PANEL_HEIGHT);

/** Builds the dashboard that is committed as stepd.json. */
export const dashboard = (): Dashboard => {
  const builder = new DashboardBuilder("stepd")
    .uid("stepd")
    .description("A stateless optimizer service: traffic, latency by phase, refusals, memory, work. Made by deploy/grafana/dashboard.ts")
    .tags(["stepd"])
    .readonly()
    .tooltip(DashboardCursorSync.Crosshair)
    .time({ from: "now-1h", to: "now" })
    .refresh("30s")
    .timezone("browser")
    .withVariable(new DatasourceVariableBuilder("datasource").label("Data source").type("prometheus"))
    .withVariable(
      new QueryVariableBuilder("job")
        .label("Job")
        .datasource(SOURCE)
        .query("label_values(stepd_build_info, job)")
        .refresh(VariableRefresh.OnDashboardLoad)
        .sort(VariableSort.AlphabeticalAsc),
    )
    .withVariable(
      new QueryVariableBuilder("instance")
        .label("Instance")
        .datasource(SOURCE)
        .query('label_values(stepd_build_info{job="$job"}, instance)')
        .refresh(VariableRefresh.OnTimeRangeChanged)
        .sort(VariableSort.AlphabeticalAsc)
        .multi(true)
        .includeAll(true)
        .allValue(".*"),
    )
    .annotation(
      new AnnotationQueryBuilder()
        .name("Alerts")
        .datasource(SOURCE)
        .enable(true)
        .iconColor("red")
        .expr('ALERTS{alertname=~"Stepd.+", alertstate="firing"}')
        .titleFormat("{{alertname}}")
        .textFormat("{{instance}} {{reason}}"),
    );
  let id = 1;
  for (const stat of stats) builder.withPanel(statPanel(stat).id(id++));
  for (const [title, panels] of Object.entries(rows)) {
    builder.withRow(new RowBuilder(title).id(id++));
    for (const panel of panels) builder.withPanel(timePanel(panel).id(id++));
  }
  return builder.build();
};

export const dashboardJson = (): string => `${JSON.stringify(dashboard(), null, 2)}\n`;

if (import.meta.main) writeFileSync(FILE, dashboardJson());
