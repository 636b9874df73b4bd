/** Runs several optimizers on one surface. For each step, it sends the calls of all optimizers as one JSON-RPC batch. */
import type { RpcReply } from "../common/session.ts";
import { noiseOf, type Surface } from "./surfaces.ts";

export interface Runner {
  readonly name: string;
  /** The optimizer object for optimizer.step, including its name. */
  readonly optimizer: Readonly<Record<string, unknown>>;
}

export interface Track {
  readonly name: string;
  /** The start and the point after each step. */
  readonly points: readonly (readonly number[])[];
  readonly losses: readonly number[];
  /** The reason why the run ended early; undefined if it did not. */
  readonly end: string | undefined;
}

export interface StepResult {
  readonly params: { readonly w: { readonly values: readonly number[] } };
  readonly state: string;
}

type Batch = (calls: readonly { readonly method: string; readonly params: unknown }[]) => Promise<readonly RpcReply<StepResult>[]>;

/** A run ends as diverged if a coordinate reaches this magnitude. */
const DIVERGED = 1e6;

/** Returns the arguments of optimizer.step at a point. */
export const callOf = ({ optimizer }: Runner, surface: Surface, point: readonly number[], gradient: readonly number[], state: string | null) => ({
  optimizer,
  params: { w: { shape: surface.shape, values: point } },
  grads: { w: { shape: surface.shape, values: gradient } },
  ...(state !== null && { state }),
});

const gradientAt = (surface: Surface, point: readonly number[], step: number): readonly number[] => {
  const noise = noiseOf(surface, step);
  return surface.gradient(point).map((value, index) => value + (noise[index] as number));
};

/** Returns the arguments of a runner's first step. */
export const firstCall = (runner: Runner, surface: Surface) => callOf(runner, surface, surface.start, gradientAt(surface, surface.start, 0), null);

/** Runs all optimizers. Stops and returns undefined once `isCurrent` returns false, because the visitor has changed the settings. */
export const run = async (
  runners: readonly Runner[],
  surface: Surface,
  steps: number,
  batch: Batch,
  isCurrent: () => boolean,
): Promise<readonly Track[] | undefined> => {
  const live = runners.map((runner) => ({
    runner,
    state: null as string | null,
    points: [surface.start] as (readonly number[])[],
    losses: [surface.value(surface.start) - surface.minimum],
    end: undefined as string | undefined,
  }));
  for (let step = 0; step < steps; step++) {
    const going = live.filter(({ end }) => end === undefined);
    if (going.length === 0) break;
    const replies = await batch(
      going.map(({ runner, points, state }) => {
        const point = points.at(-1) as readonly number[];
        return { method: "optimizer.step", params: callOf(runner, surface, point, gradientAt(surface, point, step), state) };
      }),
    );
    if (!isCurrent()) return undefined;
    for (const [index, track] of going.entries()) {
      const { result, error } = replies[index] ?? {};
      if (!result) {
        track.end = error?.message ?? "the server gave no reply";
        continue;
      }
      const point = result.params.w.values;
      if (point.some((value) => !(Math.abs(value) < DIVERGED))) {
        track.end = `diverged at step ${step + 1}`;
        continue;
      }
      track.points.push(point);
      track.losses.push(surface.value(point) - surface.minimum);
      track.state = result.state;
    }
  }
  return live.map(({ runner: { name }, points, losses, end }) => ({ name, points, losses, end }));
};
