/**
 * Draws an SVG plot that grows during a run, with the number of steps on the horizontal axis. Earlier runs stay for comparison.
 */

export interface Curve {
  add(step: number, value: number): void;
}

interface Drawn {
  readonly line: SVGPolylineElement;
  readonly points: (readonly [step: number, value: number])[];
}

export interface Axis {
  readonly title: string;
  /** Returns the height of a value, from 0 (bottom) to 1 (top). */
  readonly place: (value: number) => number;
  readonly ticks: readonly (readonly [value: number, label: string])[];
}

const WIDTH = 640;
const HEIGHT = 230;
const MARGIN = { left: 56, right: 12, top: 26, bottom: 28 };
const INNER_WIDTH = WIDTH - MARGIN.left - MARGIN.right;
const INNER_HEIGHT = HEIGHT - MARGIN.top - MARGIN.bottom;
const STEP_TICKS = 4;

const draw = <Name extends keyof SVGElementTagNameMap>(
  parent: Element,
  name: Name,
  attributes: Readonly<Record<string, string | number>>,
  text = "",
): SVGElementTagNameMap[Name] => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  element.textContent = text;
  parent.append(element);
  return element;
};

export class Plot {
  readonly #svg: SVGSVGElement;
  readonly #axis: Axis;
  readonly #curves: SVGGElement;
  readonly #steps: SVGGElement;
  readonly #drawn: Drawn[] = [];
  #lastStep = 0;

  constructor(parent: Element, axis: Axis) {
    this.#axis = axis;
    this.#svg = draw(parent, "svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": axis.title });
    draw(this.#svg, "text", { x: MARGIN.left, y: 16, class: "title" }, axis.title);
    for (const [value, label] of axis.ticks) {
      const y = this.#y(value);
      draw(this.#svg, "line", { x1: MARGIN.left, x2: WIDTH - MARGIN.right, y1: y, y2: y, class: "grid" });
      draw(this.#svg, "text", { x: MARGIN.left - 8, y: y + 4, class: "tick", "text-anchor": "end" }, label);
    }
    this.#steps = draw(this.#svg, "g", {});
    this.#curves = draw(this.#svg, "g", {});
  }

  #y(value: number): number {
    const place = Math.min(1, Math.max(0, this.#axis.place(value)));
    return MARGIN.top + INNER_HEIGHT * (1 - (Number.isNaN(place) ? 1 : place));
  }

  /** Adds the curve of a run with the given number of steps. */
  curve(color: string, steps: number): Curve {
    if (steps > this.#lastStep) this.#stretch(steps);
    const curve: Drawn = { line: draw(this.#curves, "polyline", { class: "curve", stroke: color }), points: [] };
    this.#drawn.push(curve);
    return {
      add: (step, value) => {
        curve.points.push([step, value]);
        this.#show(curve);
      },
    };
  }

  /** Extends the horizontal axis for a longer run. */
  #stretch(steps: number): void {
    this.#lastStep = steps;
    this.#steps.replaceChildren();
    for (let tick = 0; tick <= STEP_TICKS; tick++) {
      const step = Math.round((steps * tick) / STEP_TICKS);
      const x = MARGIN.left + (INNER_WIDTH * step) / steps;
      draw(
        this.#steps,
        "text",
        { x, y: HEIGHT - 8, class: "tick", "text-anchor": tick === STEP_TICKS ? "end" : "middle" },
        tick === STEP_TICKS ? `${step} steps` : `${step}`,
      );
    }
    for (const curve of this.#drawn) this.#show(curve);
  }

  #show({ line, points }: Drawn): void {
    const places = points.map(([step, value]) => `${(MARGIN.left + (INNER_WIDTH * step) / this.#lastStep).toFixed(1)},${this.#y(value).toFixed(1)}`);
    line.setAttribute("points", places.join(" "));
  }
}
