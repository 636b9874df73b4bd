/** Takes several steps on a service, for the tests of all optimizers. */
import type { TestService } from "./service.ts";
import { randomTensors, type TestTensor, writeTensors } from "./tensors.ts";

/** Shapes of tensors too large for the main thread, with odd sizes, a scalar and an empty tensor. */
export const LARGE = { "encoder.weight": [300, 700], "encoder/bias": [70_001], scale: [], empty: [0], ünï: [3] } as const;
export const SMALL = { w: [3, 11], b: [7], scale: [], empty: [0], big: [1000] } as const;

/** Matrices for the worker pool: wide, tall, with one row, square, and empty. Sums over `wide` have several blocks. */
export const MATRICES = { wide: [40, 1100], tall: [150, 67], row: [1, 7], square: [8, 8], empty: [0, 4] } as const;

export type Shapes = Readonly<Record<string, readonly number[]>>;

export interface StepReply {
  readonly params: Uint8Array;
  readonly state: Uint8Array;
  readonly step: number;
}

export interface RunOptions {
  readonly optimizer: unknown;
  readonly shapes: Shapes;
  readonly steps: number;
  /** The number of steps already taken. The gradients continue with the next step. */
  readonly from?: number;
  readonly params?: Uint8Array;
  readonly state?: Uint8Array | null;
}

export const startParams = (shapes: Shapes): Record<string, TestTensor> => randomTensors(shapes, 1);

/** Returns the gradients of a step: different in every step, equal in every run. */
export const gradsAt = (shapes: Shapes, step: number): Record<string, TestTensor> => randomTensors(shapes, 1000 + step);

/** Takes steps over MessagePack and returns the last reply. */
export const run = async (service: TestService, { optimizer, shapes, steps, from = 0, params, state = null }: RunOptions): Promise<StepReply> => {
  let reply: StepReply = { params: params ?? writeTensors(startParams(shapes)), state: state ?? new Uint8Array(), step: from };
  let carried = state;
  for (let step = from; step < from + steps; step++) {
    reply = await service.call<StepReply>("optimizer.step", { optimizer, params: reply.params, grads: writeTensors(gradsAt(shapes, step)), state: carried });
    carried = reply.state;
  }
  return reply;
};
