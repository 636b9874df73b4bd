/** A step over several calls, connections and replicas at once. Its result is that of one call, bit for bit. */
import { Client, type StepInput, type StepResult } from "./client.ts";
import { StepdError, TransportError } from "./errors.ts";
import { State } from "./state.ts";
import { compareUtf8, dtypeOf, type Tensor, type Tensors } from "./tensors.ts";
import { type CallOptions, type ClientOptions, pause } from "./transport.ts";
import type { NormsResult } from "./wire.gen.ts";

export interface ShardedOptions extends ClientOptions {
  /** About how many bytes of parameters go into a call; a larger tensor goes alone. */
  readonly requestBytes?: number;
  /** Calls that are under way at once. */
  readonly connections?: number;
}

/** Statistics are of single calls. */
export type ShardedInput = Omit<StepInput, "stats">;
export type ShardedResult = Omit<StepResult, "stats">;

type Shard = ReadonlySet<string>;

const DEFAULT_REQUEST_BYTES = 64 * 2 ** 20;
const DEFAULT_CONNECTIONS = 4;

/** Rounds over all replicas before a call is given up, and the pause between two rounds. */
const ROUNDS = 5;
const ROUND_PAUSE_MS = 200;

export class ShardedClient {
  readonly #clients: readonly Client[];
  readonly #requestBytes: number;
  readonly #connections: number;
  #next = 0;

  /** `urls` are replicas; any serves any call. */
  constructor(urls: readonly string[], { requestBytes = DEFAULT_REQUEST_BYTES, connections = DEFAULT_CONNECTIONS, ...options }: ShardedOptions = {}) {
    if (urls.length === 0) throw new TypeError("a ShardedClient needs at least one url");
    if (!(requestBytes > 0)) throw new TypeError(`requestBytes: expected more than 0, found ${requestBytes}`);
    if (!(connections >= 1)) throw new TypeError(`connections: expected at least 1, found ${connections}`);
    // A call that fails goes to another replica at once, so a client by itself does not send again.
    this.#clients = urls.map((url) => new Client(url, { ...options, retries: 0 }));
    this.#requestBytes = requestBytes;
    this.#connections = connections;
  }

  /** One update. Exact clipping by norm takes a round of `norms` first. Throws as Client.step does; then nothing was changed. */
  async step({ params, grads, state: given, ...settings }: ShardedInput, options: CallOptions = {}): Promise<ShardedResult> {
    const state = given instanceof Uint8Array ? new State(given) : given;
    const leader = leaderOf(params, grads, state);
    const shards = this.#pack(params, [...Object.keys(grads), ...(state?.parameters ?? [])]);
    const inputOf = (names: Shard): StepInput => ({ ...settings, params: pick(params, names), grads: pick(grads, names), state: state?.pick(names) });
    const { max_grad_norm: ownNorm } = settings.optimizer as { max_grad_norm?: number | null };
    const clipsByNorm = (settings.clip?.max_norm !== undefined || typeof ownNorm === "number") && settings.clip?.total_norm === undefined;
    let { clip } = settings;
    if (shards.length > 1 && (clipsByNorm || settings.non_finite === "skip")) {
      const norms = await this.#norms(shards, { params, grads, loss_scale: settings.loss_scale }, options);
      const broken = norms.find(([, { non_finite }]) => non_finite > 0)?.[0];
      if (broken !== undefined && settings.non_finite === "skip") {
        // The server's own reply says at which rate, and of a first step which state is left.
        const names = new Set([leader, broken]);
        const skipped = await this.#anywhere((client, call) => client.step(inputOf(names), call), options);
        return { ...skipped, params: { ...params }, ...(state && { state, step: mostSteps(state) }) };
      }
      // The shard's own call refuses, and says which tensors it is.
      if (broken !== undefined && settings.non_finite !== "propagate")
        await this.#anywhere((client, call) => client.step(inputOf(shards.find((names) => names.has(broken)) as Shard), call), options);
      if (clipsByNorm) {
        const total = Math.sqrt(norms.reduce((sum, [, { grad_squares }]) => sum + grad_squares, 0));
        // What is no number cannot be sent, so that all goes as one call.
        if (!Number.isFinite(total)) return this.#anywhere((client, call) => client.step({ ...settings, params, grads, state }, call), options);
        clip = { ...clip, total_norm: total };
      }
    }
    const results = await this.#each(shards, options, (names) => {
      const input = { ...inputOf(names), clip };
      return (client, call) => client.step(input, call);
    });
    const stepped = new Map(results.flatMap((result) => Object.entries(result.params)));
    const warnings = [...new Set(results.flatMap((result) => result.warnings ?? []))];
    const joined = State.join(results.map((result) => result.state));
    return {
      params: Object.fromEntries(Object.keys(params).map((name) => [name, stepped.get(name) as Tensor])),
      state: joined,
      step: mostSteps(joined),
      lr: (results[shards.findIndex((names) => names.has(leader))] ?? results[0])?.lr as number,
      skipped: false,
      ...(warnings.length > 0 && { warnings }),
    };
  }

  /** Sums of all tensors, in the order of the names' UTF-8 bytes, in which the server adds them too. */
  async #norms(
    shards: readonly Shard[],
    { params, grads, loss_scale }: Pick<StepInput, "params" | "grads" | "loss_scale">,
    options: CallOptions,
  ): Promise<[string, NormsResult["tensors"][string]][]> {
    const results = await this.#each(shards, options, (names) => {
      const part = pick(grads, names);
      const theirs = pick(params, new Set(Object.keys(part)));
      // The parameter's dtype decides the arithmetic, so it has to be told where it is not the gradient's.
      const differs = Object.entries(theirs).some(([name, param]) => dtypeOf(param) !== dtypeOf(part[name] as Tensor));
      return (client, call) => client.norms({ grads: part, loss_scale, params: differs ? theirs : undefined }, call);
    });
    return results.flatMap(({ tensors }) => Object.entries(tensors)).sort(([a], [b]) => compareUtf8(a, b));
  }

  /** Packs tensors in their order into sets of about the set size. A gradient or state without a parameter goes along, for the server to refuse. */
  #pack(params: Tensors, others: readonly string[]): readonly Shard[] {
    const shards = [new Set(others.filter((name) => !Object.hasOwn(params, name)))];
    let room = this.#requestBytes;
    for (const [name, tensor] of Object.entries(params)) {
      const { byteLength } = tensor.data;
      if (byteLength > room && room < this.#requestBytes) {
        shards.push(new Set());
        room = this.#requestBytes;
      }
      shards.at(-1)?.add(name);
      room -= byteLength;
    }
    return shards;
  }

  /** Runs a call for each item, some at once. Where one fails, the others end, and only then is its error thrown. */
  async #each<Result>(
    shards: readonly Shard[],
    { signal, ...options }: CallOptions,
    callOf: (shard: Shard) => (client: Client, options: CallOptions) => Promise<Result>,
  ): Promise<Result[]> {
    const results: Result[] = [];
    const failed = new AbortController();
    const stop = (): void => failed.abort(signal?.reason);
    signal?.throwIfAborted();
    signal?.addEventListener("abort", stop);
    let next = 0;
    const work = async (): Promise<void> => {
      for (let index = next++; index < shards.length && !failed.signal.aborted; index = next++)
        results[index] = await this.#anywhere(callOf(shards[index] as Shard), { ...options, signal: failed.signal });
    };
    const guarded = (): Promise<void> => work().catch((error: unknown) => failed.abort(error));
    await Promise.all(Array.from({ length: Math.min(this.#connections, shards.length) }, guarded));
    signal?.removeEventListener("abort", stop);
    failed.signal.throwIfAborted();
    return results;
  }

  /** Tries the replicas in turn until one answers; what is wrong with the call itself is thrown at once. */
  async #anywhere<Result>(call: (client: Client, options: CallOptions) => Promise<Result>, options: CallOptions): Promise<Result> {
    for (let attempt = 1; ; attempt++) {
      const client = this.#clients[this.#next++ % this.#clients.length] as Client;
      try {
        return await call(client, options);
      } catch (error) {
        // A replica that fails or talks nonsense is no reason to think that the others do.
        const isItsOwn = error instanceof TransportError || (error instanceof StepdError && (error.isPassing || error.code === "INTERNAL_ERROR"));
        if (!isItsOwn || attempt >= ROUNDS * this.#clients.length) throw error;
        if (attempt % this.#clients.length === 0) await pause(ROUND_PAUSE_MS, options.signal);
      }
    }
  }
}

const mostSteps = ({ steps }: State): number => Object.values(steps).reduce((most, step) => Math.max(most, step), 0);

/** The tensor whose rate is that of the whole call: of those with a gradient, or of all where none has one, the first with the most steps. */
const leaderOf = (params: Tensors, grads: Tensors, state: State | null | undefined): string => {
  const own = Object.keys(grads).filter((name) => Object.hasOwn(params, name));
  const taken = (name: string): number => (state && Object.hasOwn(state.steps, name) ? state.steps[name] : undefined) ?? 0;
  return (own.length > 0 ? own : Object.keys(params)).reduce((most, name) => (taken(name) > taken(most) ? name : most), own[0] ?? Object.keys(params)[0] ?? "");
};

const pick = (tensors: Tensors, names: Shard): Tensors => Object.fromEntries(Object.entries(tensors).filter(([name]) => names.has(name)));
