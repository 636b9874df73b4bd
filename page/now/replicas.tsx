/** Shows a line for each replica that the operator named (STEPD_PAGE_REPLICAS). */
import { Chart } from "../common/chart.tsx";
import { bytesText, countText, durationText, numberText } from "../common/format.ts";
import { Card, Scroll } from "../common/panel.tsx";
import { labelValues, quantile, rate, total } from "./metrics.ts";
import { betweenReadings, CALLS, healthText, overWindow, runningText, STEPS, useReplicas } from "./watch.ts";

const hostOf = (url: string): string => url.replace(/^\w+:\/\/|\/$/g, "");

export const Replicas = ({ urls }: { readonly urls: readonly string[] }) => {
  const watches = useReplicas(urls);
  const rows = watches.map((watch, index) => ({
    ...watch,
    name: hostOf(urls[index] ?? ""),
    rates: betweenReadings(watch.readings, (before, after) => rate(before, after, `${CALLS}_count`, STEPS)),
    latencies: overWindow(watch.readings, (before, after) => quantile(before, after, CALLS, STEPS, 0.99)),
  }));
  const readings = watches[0]?.readings.length ?? 0;
  const x = Array.from({ length: Math.max(0, readings - 1) }, (_, index) => index + 2 - readings);
  const seriesOf = (values: (row: (typeof rows)[number]) => readonly (number | null)[]) => rows.map((row) => ({ label: row.name, values: values(row) }));
  return (
    <Card title="Replicas">
      <Scroll label="Replicas">
        <table>
          <thead>
            <tr>
              {["Replica", "Health", "Version", "Running for", "Steps per second", "p99 of a step", "Arena in use", "Refusals"].map((title) => (
                <th key={title} scope="col">
                  {title}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {rows.map(({ name, readings, isReady, error, rates, latencies }) => {
              const last = error === undefined ? readings.at(-1) : undefined;
              return (
                <tr key={name}>
                  <th scope="row">{name}</th>
                  <td class={error === undefined ? undefined : "error"}>{healthText(isReady, error)}</td>
                  {last ? (
                    <>
                      <td>{labelValues(last, "stepd_build_info", "version").join()}</td>
                      <td>{runningText(total(last, "process_start_time_seconds"))}</td>
                      <td>{numberText(rates.at(-1) ?? 0)}</td>
                      <td>{durationText(latencies.at(-1) ?? Number.NaN)}</td>
                      <td>{bytesText(total(last, "stepd_arena_used_bytes"))}</td>
                      <td>{countText(total(last, "stepd_refusals_total"))}</td>
                    </>
                  ) : (
                    <td colSpan={6}>{error}</td>
                  )}
                </tr>
              );
            })}
          </tbody>
        </table>
      </Scroll>
      {x.length > 0 && (
        <div class="grid">
          <Chart
            title="Steps per second, by replica"
            x={x}
            formatX={(value) => `${numberText(value)}`}
            format={numberText}
            series={seriesOf(({ rates }) => rates)}
          />
          <Chart
            title="p99 of a step, by replica"
            x={x}
            formatX={(value) => `${numberText(value)}`}
            format={durationText}
            series={seriesOf(({ latencies }) => latencies)}
          />
        </div>
      )}
    </Card>
  );
};
