/** Splits a step or a reduction over several calls, connections and replicas. The result has the same bits as one call. */

import type { ReducedStepInput } from "./calls.ts";
import { describeValue, requireOptions, requireStep } from "./checks.ts";
import { Client, roundTripOf } from "./client.ts";
import { LARGEST_PART_BYTES, type PartedInput, type PartedResult, requireSplittable, Splitter } from "./parts.ts";
import {
  type DistancesInput,
  joinReduced,
  type ReduceInput,
  type ReduceResult,
  requireDistances,
  requireReduce,
  splitByName,
  splitReduction,
} from "./reduce.ts";
import { Replicas } from "./replicas.ts";
import { requireRetries } from "./retries.ts";
import { SharedFolder } from "./shared.ts";
import { type CallOptions, CLIENT_OPTIONS, type ClientOptions, requireCallOptions, requireConnections } from "./transport.ts";

export interface ShardedOptions extends ClientOptions {
  /**
   * Approximate bytes of parameters, gradients and state per call. By default the client chooses them: 2 MiB, and more where round
   * trips are long or the link is fast; 64 MiB in a shared folder. A larger tensor goes in slices, or in a call of its own if its
   * optimizer needs whole tensors, as LAMB does.
   */
  readonly requestBytes?: number;
  /** The largest number of calls in progress at once; 4 by default. */
  readonly connections?: number | undefined;
  /** Further rounds over all replicas after every replica has failed. */
  readonly retries?: number | undefined;
}

const SHARDED_OPTIONS = { ...CLIENT_OPTIONS, requestBytes: true } as const satisfies Record<keyof ShardedOptions, true>;

/**
 * A sharded step has no `stats`, because the server computes statistics per call. `params` may be absent if `cached` names all
 * parameters. `cached` is that of an earlier result: the tensors are split as for that result, and each call goes first to the
 * server that cached its blobs. Any other server receives `params` and `state`.
 */
export type ShardedInput = PartedInput;

/** A sharded step by the pseudo-gradient of several updates. */
export type ShardedReducedInput = Omit<ShardedInput, "grads"> & Pick<ReducedStepInput, "grads" | "reduce">;

export type ShardedResult = PartedResult;

const DEFAULT_CONNECTIONS = 4;

export class ShardedClient {
  readonly #clients: readonly Client[];
  readonly #parts: Splitter;
  readonly #reducedBytes: number;

  /** `urls` are interchangeable replicas. Throws TypeError for invalid options. */
  constructor(urls: readonly string[], given: ShardedOptions = {}) {
    requireOptions(given, SHARDED_OPTIONS);
    const { requestBytes, connections = DEFAULT_CONNECTIONS, retries, ...options } = given;
    if (!Array.isArray(urls)) throw new TypeError(`urls: expected a list of the servers' roots, found ${describeValue(urls)}`);
    if (urls.length === 0) throw new TypeError("a ShardedClient needs at least one url");
    if (requestBytes !== undefined && !(requestBytes > 0)) throw new TypeError(`requestBytes: expected more than 0, found ${requestBytes}`);
    requireConnections(connections);
    const rounds = { ...options, retries };
    requireRetries(rounds);
    const folder = options.sharedDir === undefined ? undefined : new SharedFolder(options.sharedDir);
    // The clients do not retry, so that a failed call goes to another replica at once.
    this.#clients = urls.map((url) => new Client(url, { ...options, retries: 0, connections: 1 }, folder));
    const replicas = new Replicas(this.#clients, rounds);
    this.#reducedBytes = requestBytes ?? LARGEST_PART_BYTES;
    // Files need no overlap of directions, so that large calls cost the least.
    const partBytes = requestBytes ?? (folder ? LARGEST_PART_BYTES : undefined);
    const roundTrip = async (): Promise<number> => Math.max(...(await Promise.all(this.#clients.map(roundTripOf))));
    this.#parts = new Splitter((call, options, home) => replicas.call(call, options, home), connections, partBytes, roundTrip);
  }

  /** Removes the files from `sharedDir`. Later calls send their bytes in the request. Earlier results stay valid. */
  close(): void {
    for (const client of this.#clients) client.close();
  }

  /**
   * Runs one step. Exact clipping by norm takes a round of `norms` calls first. Throws as Client.step does, and then changes
   * nothing. `reduce` in place of `grads` takes a round of `reduce` calls first.
   */
  async step(input: ShardedInput | ShardedReducedInput, options: CallOptions = {}): Promise<ShardedResult> {
    requireStep(input);
    requireCallOptions(options);
    requireSplittable(input);
    if (!("reduce" in input) || input.reduce === undefined) return this.#parts.step(input as ShardedInput, options);
    const { reduce, ...settings } = input;
    const { grads, count, weight, dropped, skipped } = await this.reduce({ ...reduce, params: settings.params }, options);
    const result = await this.#parts.step({ ...settings, grads }, options);
    // The step warns of missing gradients, but a skipped reduction has none.
    if (skipped) Reflect.deleteProperty(result, "warnings");
    // A spread would read the state, which throws if the reply has none.
    return Object.assign(result, { reduce: { count, weight, dropped, skipped } }, skipped && { skipped });
  }

  /**
   * Does the same as Client.reduce, with the tensors split over several calls. If one call drops an update, the calls that kept
   * the update run again without it.
   */
  async reduce(input: ReduceInput, options: CallOptions = {}): Promise<ReduceResult> {
    requireReduce(input);
    requireCallOptions(options);
    const parts = splitReduction(input, this.#reducedBytes);
    const run = (some: readonly ReduceInput[]): Promise<ReduceResult[]> =>
      this.#parts.each(some, options, (part) => (client, call) => client.reduce(part, call));
    const results = await run(parts);
    const dropped = [...new Set(results.flatMap((result) => result.dropped))].sort((a, b) => a - b);
    const isStale = ({ dropped: own }: ReduceResult): boolean => own.length < dropped.length;
    const again = parts.filter((_, index) => isStale(results[index] as ReduceResult));
    const whole = await run(again.map((part) => ({ ...part, updates: part.updates.filter((_, index) => !dropped.includes(index)) })));
    return joinReduced(
      results.map((result) => (isStale(result) ? (whole.shift() as ReduceResult) : result)),
      dropped,
      input.params,
    );
  }

  /**
   * Does the same as Client.distances, with the tensors split over several calls. Each call adds to the result of the call before
   * it, so the calls run one after the other.
   */
  async distances(input: DistancesInput, options: CallOptions = {}): Promise<number[][]> {
    requireDistances(input);
    requireCallOptions(options);
    let distances: number[][] = [];
    for (const [index, updates] of splitByName(input.updates, this.#reducedBytes).entries()) {
      const part = { updates, distances: index === 0 ? input.distances : distances };
      [distances = []] = await this.#parts.each([part], options, (own) => (client, call) => client.distances(own, call));
    }
    return distances;
  }
}
