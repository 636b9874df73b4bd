/** Draws a histogram of magnitudes as an SVG. Each bin spans a power of two. */
import { countText, numberText } from "../common/format.ts";
import { powerOf, type Statistics } from "./values.ts";

const [WIDTH, HEIGHT] = [150, 30];

const powerText = (power: number): string => numberText(2 ** power);

export const Histogram = ({ statistics, label }: { readonly statistics: Statistics; readonly label: string }) => {
  const used = [...statistics.histogram.entries()].filter(([, values]) => values > 0);
  if (used.length === 0) return <span>no value other than 0</span>;
  const [[first] = [0], [last] = [0]] = [used[0], used.at(-1)];
  const most = Math.max(...used.map(([, values]) => values));
  const width = WIDTH / (last - first + 1);
  const [peak = 0] = used.find(([, values]) => values === most) ?? [];
  const text = `Magnitudes of ${label} from ${powerText(powerOf(first))} to ${powerText(powerOf(last) + 1)}, most of them near ${powerText(powerOf(peak))}`;
  return (
    <span class="histogram">
      <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} width={WIDTH} height={HEIGHT} role="img" aria-label={text}>
        {used.map(([bin, values]) => {
          const height = Math.max(1, (HEIGHT * values) / most);
          return (
            <rect key={bin} x={(bin - first) * width} y={HEIGHT - height} width={Math.max(width - 0.5, 0.5)} height={height}>
              <title>{`2^${powerOf(bin)}: ${countText(values)}`}</title>
            </rect>
          );
        })}
      </svg>
      <small aria-hidden="true">
        {powerText(powerOf(first))} … {powerText(powerOf(last) + 1)}
      </small>
    </span>
  );
};
