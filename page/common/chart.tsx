/** Draws line charts with uPlot. Charts follow the theme's colors and have a text for screen readers. */
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";

export interface Series {
  readonly label: string;
  readonly values: readonly (number | null)[];
}

/** Color-blind readers can distinguish these colors, and their contrast is sufficient in both themes. */
export const COLORS = ["#3574d4", "#c2571a", "#2a8a4a", "#a344a8", "#b8860b", "#d03a5a", "#1f8a8a", "#7a6ad8", "#8a6a4a", "#6a7a8a"] as const;

export const colorOf = (index: number): string => COLORS[index % COLORS.length] as string;

interface ChartProps {
  /** A description of the chart for screen readers. */
  readonly title: string;
  readonly x: readonly number[];
  readonly series: readonly Series[];
  readonly format?: (value: number) => string;
  readonly formatX?: (value: number) => string;
  readonly height?: number;
  readonly isLog?: boolean;
}

export const Chart = ({ title, x, series, format = String, formatX = String, height = 180, isLog = false }: ChartProps) => {
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot>(undefined);
  const data = [x, ...series.map(({ values }) => values)] as unknown as uPlot.AlignedData;
  const labels = series.map(({ label }) => label).join("\n");
  // This effect creates the plot. If only the values change, the next effect updates the plot.
  useEffect(() => {
    const host = place.current;
    if (!host) return;
    const draw = (): void => {
      plot.current?.destroy();
      const style = getComputedStyle(host);
      const [ink, line] = [style.getPropertyValue("color"), style.getPropertyValue("border-color")];
      const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
      const options: uPlot.Options = {
        width: Math.max(host.clientWidth, 200),
        height,
        scales: { x: { time: false }, y: isLog ? { distr: 3 } : {} },
        axes: [
          { ...axis, values: (_, ticks) => ticks.map(formatX) },
          {
            ...axis,
            size: 80,
            values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : format(tick))),
            // Only powers of ten have grid lines, because lines for all ticks would cover the plot.
            ...(isLog && { filter: (_: uPlot, ticks: number[]) => ticks.map((tick) => (Number.isInteger(Math.log10(tick)) ? tick : null)) }),
          },
        ],
        series: [
          { label: "x", value: (_, value) => (value === null ? "" : formatX(value)) },
          ...series.map(({ label }, index) => ({
            label,
            stroke: colorOf(index),
            width: 2,
            points: { show: false },
            value: (_: uPlot, value: number | null) => (value === null ? "–" : format(value)),
          })),
        ],
        cursor: { y: false },
      };
      plot.current = new uPlot(options, data, host);
    };
    draw();
    const resized = new ResizeObserver(() => plot.current?.setSize({ width: Math.max(host.clientWidth, 200), height }));
    resized.observe(host);
    const theme = matchMedia("(prefers-color-scheme: dark)");
    theme.addEventListener("change", draw);
    document.addEventListener("themechange", draw);
    return () => {
      resized.disconnect();
      theme.removeEventListener("change", draw);
      document.removeEventListener("themechange", draw);
      plot.current?.destroy();
      plot.current = undefined;
    };
  }, [labels, height, isLog]);
  useEffect(() => {
    plot.current?.setData(data);
  }, [x, series]);
  const last = series.map(({ label, values }) => {
    const value = values.findLast((candidate) => candidate !== null);
    return `${label}: ${value === undefined || value === null ? "no value" : format(value)}`;
  });
  return (
    <figure class="chart">
      <figcaption>{title}</figcaption>
      <div ref={place} role="img" aria-label={`${title}. Last values: ${last.join(", ")}.`} />
    </figure>
  );
};
