/** The training loop: the page computes gradients, and stepd does every optimizer step. */
import type { Client, Optimizer, Schedule, State } from "@stepd/client";
import type { Digits } from "./digits.ts";
import { lossAndGradients, type Network, random, start } from "./model.ts";

const BATCH = 64;
const SEED = 7;

export interface Settings {
  readonly optimizer: Optimizer;
  readonly epochs: number;
  /** Anneals the learning rate to 0 along a cosine over the run. */
  readonly anneal: boolean;
}

export interface Progress {
  readonly step: number;
  readonly steps: number;
  readonly epoch: number;
  readonly loss: number;
  readonly network: Network;
  readonly state: State;
}

/** Trains from the start, and yields the progress after each step. */
export async function* train(client: Client, digits: Digits, { optimizer, epochs, anneal }: Settings, signal: AbortSignal): AsyncGenerator<Progress> {
  const batches = Math.floor(digits.count / BATCH);
  const steps = epochs * batches;
  const schedule: Schedule | undefined = anneal ? { name: "cosine", T_max: steps } : undefined;
  const next = random(SEED);
  let network = start(SEED);
  let state: State | null = null;
  for (let step = 0, order: readonly number[] = []; step < steps; step++) {
    const batch = step % batches;
    if (batch === 0) order = shuffled(digits.count, next);
    const { loss, gradients } = lossAndGradients(network, digits, order.slice(batch * BATCH, (batch + 1) * BATCH));
    const result = await client.step({ optimizer, schedule, params: network, grads: gradients, state }, { signal });
    network = result.params as Network;
    state = result.state;
    yield { step: step + 1, steps, epoch: Math.floor(step / batches) + 1, loss, network, state };
  }
}

/** Returns the numbers below `count` in a random order (Fisher and Yates). */
const shuffled = (count: number, next: () => number): readonly number[] => {
  const order = Array.from({ length: count }, (_, index) => index);
  for (let i = count - 1; i > 0; i--) {
    const j = Math.floor(next() * (i + 1));
    [order[i], order[j]] = [order[j] as number, order[i] as number];
  }
  return order;
};
