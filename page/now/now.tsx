/** The panel "Now": shows the server's version, charts of its metrics, and code for a first step. */
import { useState } from "preact/hooks";
import { Chart, type Series } from "../common/chart.tsx";
import { Copyable } from "../common/copy.tsx";
import { bytesText, countText, durationText, numberText } from "../common/format.ts";
import { Card, Failure, type PanelProps, useLoaded } from "../common/panel.tsx";
import { requestJson, root } from "../common/session.ts";
import { labelValues, quantile, type Reading, rate, total } from "./metrics.ts";
import { Replicas } from "./replicas.tsx";
import { snippets } from "./snippets.ts";
import { betweenReadings, CALLS, healthText, overWindow, QUANTILE_WINDOW, runningText, STEPS, useServer } from "./watch.ts";

interface Info {
  readonly version: string;
  readonly node: string;
  readonly workers: number;
  readonly shared_memory: boolean;
  readonly limits: Readonly<Record<string, number>>;
}

const PHASES = "stepd_phase_seconds";

const secondsText = (value: number): string => `${numberText(value)} s`;

const Live = ({ readings }: { readonly readings: readonly Reading[] }) => {
  const last = readings.at(-1);
  if (!last || readings.length < 2) return <p role="status">The charts begin with the second reading …</p>;
  const x = readings.slice(1).map(({ time }) => Math.round((time - last.time) * 10) / 10);
  const rates = (label: string, name: string, labels?: Readonly<Record<string, string>>): Series => ({
    label,
    values: betweenReadings(readings, (before, after) => rate(before, after, name, labels)),
  });
  const latency = [0.5, 0.99].map((q) => ({
    label: `p${q * 100}`,
    values: overWindow(readings, (before, after) => quantile(before, after, CALLS, STEPS, q)),
  }));
  const phases = labelValues(last, `${PHASES}_count`, "phase").map((phase) => ({
    label: phase,
    values: overWindow(readings, (before, after) => {
      const calls = rate(before, after, `${PHASES}_count`, { phase });
      return calls === 0 ? null : rate(before, after, `${PHASES}_sum`, { phase }) / calls;
    }),
  }));
  const arena = [{ label: "used", values: readings.slice(1).map((reading) => total(reading, "stepd_arena_used_bytes")) }];
  const refusals = labelValues(last, "stepd_refusals_total", "reason")
    .map((reason) => [reason, total(last, "stepd_refusals_total", { reason })] as const)
    .filter(([, value]) => value > 0);
  return (
    <>
      <div class="grid">
        <Chart
          title="Calls per second"
          x={x}
          formatX={secondsText}
          format={numberText}
          series={[rates("steps", `${CALLS}_count`, { method: "optimizer.step" }), rates("all calls", `${CALLS}_count`)]}
        />
        <Chart
          title="Bytes per second"
          x={x}
          formatX={secondsText}
          format={bytesText}
          series={[rates("in", "stepd_bytes_total", { direction: "in" }), rates("out", "stepd_bytes_total", { direction: "out" })]}
        />
        <Chart title={`Time of a step, over ${QUANTILE_WINDOW} s`} x={x} formatX={secondsText} format={durationText} series={latency} />
        {phases.length > 0 && (
          <Chart title={`Mean time in each phase, over ${QUANTILE_WINDOW} s`} x={x} formatX={secondsText} format={durationText} series={phases} />
        )}
        {refusals.length > 0 && (
          <Chart
            title="Refusals per second"
            x={x}
            formatX={secondsText}
            format={numberText}
            series={refusals.map(([reason]) => rates(reason, "stepd_refusals_total", { reason }))}
          />
        )}
        <Chart title="Arena" x={x} formatX={secondsText} format={bytesText} series={arena} />
      </div>
      <h3>Refusals since the start</h3>
      {refusals.length === 0 ? (
        <p>None.</p>
      ) : (
        <table>
          <thead>
            <tr>
              <th scope="col">Reason</th>
              <th scope="col">Calls</th>
            </tr>
          </thead>
          <tbody>
            {refusals.map(([reason, value]) => (
              <tr key={reason}>
                <th scope="row">{reason}</th>
                <td>{countText(value)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
    </>
  );
};

const FirstStep = ({ needsToken }: { readonly needsToken: boolean }) => {
  const texts = snippets(root, needsToken);
  const [language, setLanguage] = useState("curl");
  return (
    <Card title="A first step on this server">
      <fieldset class="choices">
        <legend>Language</legend>
        {Object.keys(texts).map((name) => (
          <label key={name}>
            <input type="radio" name="language" checked={name === language} onChange={() => setLanguage(name)} /> {name}
          </label>
        ))}
      </fieldset>
      <Copyable label={`A step with ${language}`} text={texts[language] ?? ""} />
      <p class="hint">
        {language === "curl"
          ? "The next step sends the new parameters, new gradients, and the state of the reply."
          : "The package is in the folder clients of the repository; its README says how to install it."}
      </p>
    </Card>
  );
};

export const Now = ({ summary }: PanelProps) => {
  const hasMetrics = summary.links["metrics"] !== undefined;
  const { readings, isReady, error } = useServer(hasMetrics);
  const last = readings.at(-1);
  const started = last && total(last, "process_start_time_seconds");
  const [knownStart, setKnownStart] = useState<number>();
  if (started !== undefined && started !== knownStart) setKnownStart(started);
  // A server that was started again may have another version and other limits.
  const info = useLoaded(() => requestJson<Info>("v1"), [knownStart]);
  const facts: readonly (readonly [string, string])[] = [
    ["Version", `${info.value?.version ?? summary.version}${info.value ? `, on Node ${info.value.node}` : ""}`],
    ["Health", healthText(isReady, error)],
    ...(started ? [["Running for", runningText(started)] as const] : []),
    ...(info.value
      ? ([
          ["Workers", String(info.value.workers)],
          ["Memory for calls (arena)", bytesText(info.value.limits["arena_bytes"] ?? 0)],
          ["Memory for JSON", bytesText(info.value.limits["max_json_bytes"] ?? 0)],
          ["Cache for results", info.value.limits["cache_bytes"] ? bytesText(info.value.limits["cache_bytes"]) : "off"],
          ["Shared memory", info.value.shared_memory ? "on" : "off"],
          ["Calls at once", countText(info.value.limits["max_calls"] ?? 0)],
          ["Connections at once", countText(info.value.limits["max_connections"] ?? 0)],
          ["Tokens", summary.authentication === "bearer" ? "every call needs one" : "not needed"],
        ] as const)
      : []),
  ];
  return (
    <>
      <p>
        This service does one optimizer step per call: parameters, gradients and optimizer state go in, new parameters and new state come out. It keeps nothing
        between calls.
      </p>
      <Failure error={error ?? info.error} />
      <Card title="This server">
        <dl class="facts">
          {facts.map(([name, value]) => (
            <div key={name}>
              <dt>{name}</dt>
              <dd>{value}</dd>
            </div>
          ))}
        </dl>
      </Card>
      <Card title="Live">
        {!hasMetrics ? (
          <p>This server has its metrics on a port of their own (STEPD_ADMIN_PORT), which browsers cannot read from here.</p>
        ) : (
          <Live readings={readings.filter((reading) => reading !== undefined)} />
        )}
        <p class="hint">
          The charts show the server that answers this page. For longer times, alerts and many replicas use Prometheus and the Grafana dashboard: deploy/grafana
          in the repository, explained in docs/metrics.md.
        </p>
      </Card>
      {summary.replicas && <Replicas urls={summary.replicas} />}
      <FirstStep needsToken={summary.authentication === "bearer"} />
      <Card title="What to read next">
        <ul>
          <li>
            On this page: the <a href="#api">API</a> with calls to try, the <a href="#try">optimizers side by side</a>, and the{" "}
            <a href="#doctor">state doctor</a>
          </li>
          <li>docs/wire-format.md: methods, tensors and errors; docs/state-format.md: the state</li>
          <li>docs/hyperparameters.md and docs/schedules.md: every setting</li>
          <li>docs/operations.md: sizing, limits and a runbook</li>
          <li>docs/page.md: this page, and how it shows several replicas</li>
          <li>examples/browser: a page that trains a network in the tab, with steps on a server</li>
        </ul>
      </Card>
    </>
  );
};
