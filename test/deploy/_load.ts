/** Trainers that step through a load balancer, each with its own client. They compare every result with a recorded run. */
import assert from "node:assert/strict";
import { Client, State, type StepResult, type Tensors } from "../../clients/typescript/src/index.ts";
import type { Shapes } from "../support/run.ts";
import { randomTensors } from "../support/tensors.ts";

export interface Run {
  readonly start: Tensors;
  readonly grads: readonly Tensors[];
  /** The results of a replica that nothing disturbs. */
  readonly results: readonly StepResult[];
}

const OPTIMIZER = { name: "adamw", lr: 0.01 } as const;

/** Records a run on one server, as the reference for other runs. */
export const record = async (url: string, shapes: Shapes, steps: number): Promise<Run> => {
  const client = new Client(url);
  const start = randomTensors(shapes, 1);
  const grads = Array.from({ length: steps }, (_, step) => randomTensors(shapes, 1000 + step));
  const results: StepResult[] = [];
  for (const gradient of grads) {
    const last = results.at(-1);
    results.push(await client.step({ optimizer: OPTIMIZER, params: last?.params ?? start, grads: gradient, state: last?.state ?? null }));
  }
  return { start, grads, results };
};

const bytesOf = ({ data }: { readonly data: Tensors[string]["data"] }): Buffer => Buffer.from(data.buffer, data.byteOffset, data.byteLength);

const requireEqual = (found: StepResult, expected: StepResult): void => {
  assert.deepEqual(Object.keys(found.params), Object.keys(expected.params));
  for (const [name, tensor] of Object.entries(found.params)) assert.ok(bytesOf(tensor).equals(bytesOf(expected.params[name] as Tensors[string])), name);
  assert.ok(Buffer.from(found.state.bytes).equals(expected.state.bytes), "the state differs");
};

/** Counts of a load: the steps of all trainers, and failed HTTP calls. */
export interface LoadCounts {
  steps: number;
  /** Failures of single HTTP calls by kind, before any retry. A caller without retries would see these failures. */
  readonly failures: Map<string, number>;
}

export const failuresOf = ({ failures }: LoadCounts): number => failures.values().reduce((sum, count) => sum + count, 0);

const failureKind = (error: unknown): string => {
  const { code, message, cause } = error as { code?: string; message: string; cause?: unknown };
  return cause === undefined ? (code ?? message) : failureKind(cause);
};

/** Returns a fetch that counts failures. */
const countingFetch = ({ failures }: LoadCounts): typeof fetch => {
  const note = (kind: string): void => void failures.set(kind, (failures.get(kind) ?? 0) + 1);
  return async (...call) => {
    try {
      const response = await fetch(...call);
      if (!response.ok) note(`HTTP ${response.status}`);
      const bytes = await response.arrayBuffer();
      return new Response(bytes, response);
    } catch (error) {
      note(failureKind(error));
      throw error;
    }
  };
};

/**
 * Repeats the steps of a run until `stop` aborts, with the client's own retries. Throws if a step fails or its result differs.
 */
export const train = async (url: string, { start, grads, results }: Run, tally: LoadCounts, stop: AbortSignal): Promise<void> => {
  const client = new Client(url, { fetch: countingFetch(tally) });
  for (let step = 0; !stop.aborted; step = (step + 1) % grads.length) {
    const last = step === 0 ? undefined : (results[step - 1] as StepResult);
    const state = last && new State(last.state.bytes);
    const found = await client.step({ optimizer: OPTIMIZER, params: last?.params ?? start, grads: grads[step] as Tensors, state: state ?? null });
    requireEqual(found, results[step] as StepResult);
    tally.steps++;
  }
};
