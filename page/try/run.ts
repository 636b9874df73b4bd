/** Runs several optimizers on one surface, each step of all of them as one JSON-RPC batch to the server. */
import type { RpcReply } from "../common/session.ts";
import { noiseOf, type Surface } from "./surfaces.ts";

export interface Runner {
  readonly name: string;
  /** The optimizer as optimizer.step takes it, with its name. */
  readonly optimizer: Readonly<Record<string, unknown>>;
}

export interface Track {
  readonly name: string;
  /** The points, from the start on. */
  readonly points: readonly (readonly number[])[];
  readonly losses: readonly number[];
  /** Why the run ended early. */
  readonly end: string | undefined;
}

export interface StepResult {
  readonly params: { readonly w: { readonly values: readonly number[] } };
  readonly state: string;
}

type Batch = (calls: readonly { readonly method: string; readonly params: unknown }[]) => Promise<readonly RpcReply<StepResult>[]>;

/** Runs beyond this are of no interest. */
const FAR = 1e6;

/** The parameters of a call at a point. */
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

/** The call of a runner's first step. */
export const firstCall = (runner: Runner, surface: Surface) => callOf(runner, surface, surface.start, gradientAt(surface, surface.start, 0), null);

/** Runs all optimizers. `isCurrent` stops a run whose settings have changed; the result is then undefined. */
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
      if (point.some((value) => !(Math.abs(value) < FAR))) {
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
