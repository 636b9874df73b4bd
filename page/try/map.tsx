/** Draws a map of a surface, with the optimizers' paths. */
import { useEffect, useRef } from "preact/hooks";
import { colorOf } from "../common/chart.tsx";
import type { Track } from "./run.ts";
import type { Surface } from "./surfaces.ts";

const [WIDTH, HEIGHT] = [520, 420];
/** The number of contour lines. Their distances are equal on a logarithmic scale. */
const LEVELS = 14;

const draw = (canvas: HTMLCanvasElement, surface: Surface, view: NonNullable<Surface["view"]>, tracks: readonly Track[]): void => {
  const context = canvas.getContext("2d");
  if (!context) return;
  const [left, right, bottom, top] = view;
  const toX = (x: number): number => ((x - left) / (right - left)) * WIDTH;
  const toY = (y: number): number => ((top - y) / (top - bottom)) * HEIGHT;
  const isDark =
    getComputedStyle(canvas).colorScheme === "dark" || (getComputedStyle(canvas).colorScheme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  const image = context.createImageData(WIDTH, HEIGHT);
  const depth = (row: number, column: number): number =>
    Math.log10(surface.value([left + ((column + 0.5) / WIDTH) * (right - left), top - ((row + 0.5) / HEIGHT) * (top - bottom)]) - surface.minimum + 1e-3);
  const depths = new Float64Array(WIDTH * HEIGHT);
  for (let row = 0; row < HEIGHT; row++) for (let column = 0; column < WIDTH; column++) depths[row * WIDTH + column] = depth(row, column);
  const [least, most] = depths.reduce(
    ([low, high], value) => [Math.min(low, value), Math.max(high, value)],
    [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY],
  );
  const levelOf = (index: number): number => Math.floor((LEVELS * ((depths[index] as number) - least)) / (most - least));
  for (let index = 0; index < depths.length; index++) {
    const level = levelOf(index);
    const isLine = (index % WIDTH < WIDTH - 1 && levelOf(index + 1) !== level) || (index + WIDTH < depths.length && levelOf(index + WIDTH) !== level);
    const shade = isDark ? 28 + (level * 40) / LEVELS : 250 - (level * 45) / LEVELS;
    const value = isLine ? shade + (isDark ? 30 : -35) : shade;
    image.data.set([value, value, value + (isDark ? 8 : 4), 255], index * 4);
  }
  context.putImageData(image, 0, 0);
  context.lineJoin = "round";
  for (const [index, { points }] of tracks.entries()) {
    context.strokeStyle = colorOf(index);
    context.fillStyle = colorOf(index);
    context.lineWidth = 2;
    context.beginPath();
    for (const [x = 0, y = 0] of points) context.lineTo(toX(x), toY(y));
    context.stroke();
    const [x = 0, y = 0] = points.at(-1) ?? [];
    context.beginPath();
    context.arc(toX(x), toY(y), 5, 0, 2 * Math.PI);
    context.fill();
  }
  if (surface.best) {
    const [x, y] = surface.best;
    context.strokeStyle = isDark ? "#fff" : "#000";
    context.lineWidth = 1.5;
    context.strokeRect(toX(x) - 5, toY(y) - 5, 10, 10);
  }
};

export const SurfaceMap = ({ surface, tracks }: { readonly surface: Surface; readonly tracks: readonly Track[] }) => {
  const canvas = useRef<HTMLCanvasElement>(null);
  const { view } = surface;
  useEffect(() => {
    const element = canvas.current;
    if (!element || !view) return;
    const redraw = (): void => draw(element, surface, view, tracks);
    redraw();
    const theme = matchMedia("(prefers-color-scheme: dark)");
    theme.addEventListener("change", redraw);
    document.addEventListener("themechange", redraw);
    return () => {
      theme.removeEventListener("change", redraw);
      document.removeEventListener("themechange", redraw);
    };
  }, [surface, view, tracks]);
  if (!view) return null;
  const label = `The paths of ${tracks.map(({ name }) => name).join(", ")} on the surface ${surface.title}. The table below has their results.`;
  return (
    <figure class="chart">
      <figcaption>Paths from the start; a square marks the minimum</figcaption>
      <canvas ref={canvas} width={WIDTH} height={HEIGHT} role="img" aria-label={label} />
    </figure>
  );
};
