/** A step over several calls, connections and replicas at once. Its result is that of one call, bit for bit. */
import { Client, type ClientOptions, type StepInput, type StepResult } from "./client.ts";
import { StepdError, TransportError } from "./errors.ts";
import { State } from "./state.ts";
import { bytesOf, compareUtf8, dtypeOf, type Tensor, type Tensors } from "./tensors.ts";
import type { NormsResult } from "./wire.gen.ts";

export interface ShardedOptions extends ClientOptions {
  /** About how many bytes of parameters go into a call; a larger tensor goes alone. */
  readonly requestBytes?: number;
  /** Calls that are under way at once. */
  readonly connections?: number;
}

/** Statistics are of single calls. */
export type ShardedInput = Omit<StepInput, "stats">;
export type ShardedResult = Pick<StepResult, "params" | "state" | "step" | "lr" | "skipped">;

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
    // A call that fails goes to another replica at once, so a client by itself does not send again.
    this.#clients = urls.map((url) => new Client(url, { ...options, retries: 0 }));
    this.#requestBytes = requestBytes;
    this.#connections = connections;
  }

  /** One update. Exact clipping by norm takes a round of `norms` first. Throws as Client.step does; then nothing was changed. */
  async step({ params, grads, state = null, ...settings }: ShardedInput): Promise<ShardedResult> {
    const shards = this.#pack(params);
    const { max_grad_norm: ownNorm } = settings.optimizer as { max_grad_norm?: number | null };
    const clipsByNorm = (settings.clip?.max_norm !== undefined || typeof ownNorm === "number") && settings.clip?.total_norm === undefined;
    let clip = settings.clip;
    if (clipsByNorm || settings.non_finite === "skip") {
      const norms = await this.#norms(
        shards.map((names) => ({ grads: pick(grads, names), params: pick(params, names) })),
        settings.loss_scale,
      );
      if (settings.non_finite === "skip" && norms.some(([, { non_finite }]) => non_finite > 0)) return unchanged(params, state, settings);
      const broken = shards.find((names) => norms.some(([name, { non_finite }]) => non_finite > 0 && names.has(name)));
      // The norm over all is no number then: the shard's own call says which tensors it is.
      if (broken && settings.non_finite !== "propagate")
        await this.#anywhere((client) => client.step({ optimizer: { name: "sgd" }, params: pick(params, broken), grads: pick(grads, broken) }));
      if (clipsByNorm) clip = { ...clip, total_norm: Math.sqrt(norms.reduce((sum, [, { grad_squares }]) => sum + Number(grad_squares), 0)) };
    }
    const results = await this.#each(shards, (names) => {
      const part = state?.pick(names);
      return (client) => client.step({ ...settings, ...(clip && { clip }), params: pick(params, names), grads: pick(grads, names), state: part ?? null });
    });
    const stepped: Record<string, Tensor> = {};
    for (const { params: part } of results) Object.assign(stepped, part);
    return {
      params: Object.fromEntries(Object.keys(params).map((name) => [name, stepped[name] as Tensor])),
      state: State.join(results.map((result) => result.state)),
      step: Math.max(...results.map(({ step }) => step)),
      lr: results[0]?.lr ?? 0,
      skipped: false,
    };
  }

  /** Sums of all tensors, in the order of the names' UTF-8 bytes, in which the server adds them too. */
  async #norms(
    parts: readonly { readonly grads: Tensors; readonly params: Tensors }[],
    lossScale: number | undefined,
  ): Promise<[string, NormsResult["tensors"][string]][]> {
    const results = await this.#each(parts, ({ grads, params }) => (client) => {
      // The parameter's dtype decides the arithmetic, so it has to be told where it is not the gradient's.
      const differs = Object.entries(grads).some(([name, grad]) => dtypeOf(grad) !== dtypeOf(params[name] ?? grad));
      return client.norms({
        grads,
        ...(differs && { params: pick(params, new Set(Object.keys(grads))) }),
        ...(lossScale !== undefined && { loss_scale: lossScale }),
      });
    });
    return results.flatMap(({ tensors }) => Object.entries(tensors)).sort(([a], [b]) => compareUtf8(a, b));
  }

  /** Packs tensors in their order into sets of about the set size. */
  #pack(params: Tensors): readonly ReadonlySet<string>[] {
    const shards: Set<string>[] = [];
    let room = 0;
    for (const [name, tensor] of Object.entries(params)) {
      const { length } = bytesOf(tensor);
      if (length > room || shards.length === 0) {
        shards.push(new Set());
        room = this.#requestBytes;
      }
      shards.at(-1)?.add(name);
      room -= length;
    }
    return shards.length === 0 ? [new Set()] : shards;
  }

  /** Runs a call for each item, some at once. */
  async #each<Item, Result>(items: readonly Item[], call: (item: Item) => (client: Client) => Promise<Result>): Promise<Result[]> {
    const results: Result[] = [];
    let next = 0;
    const work = async (): Promise<void> => {
      for (let index = next++; index < items.length; index = next++) results[index] = await this.#anywhere(call(items[index] as Item));
    };
    await Promise.all(Array.from({ length: Math.min(this.#connections, items.length) }, work));
    return results;
  }

  /** Tries the replicas in turn until one answers; what is wrong with the call itself is thrown at once. */
  async #anywhere<Result>(call: (client: Client) => Promise<Result>): Promise<Result> {
    for (let attempt = 0; ; attempt++) {
      const client = this.#clients[this.#next++ % this.#clients.length] as Client;
      try {
        return await call(client);
      } catch (error) {
        const isPassing = error instanceof TransportError || (error instanceof StepdError && (error.status === 429 || error.status >= 500));
        if (!isPassing || attempt + 1 >= ROUNDS * this.#clients.length) throw error;
        if ((attempt + 1) % this.#clients.length === 0) await new Promise((resolve) => setTimeout(resolve, ROUND_PAUSE_MS));
      }
    }
  }
}

const pick = (tensors: Tensors, names: ReadonlySet<string>): Tensors => Object.fromEntries(Object.entries(tensors).filter(([name]) => names.has(name)));

const unchanged = (params: Tensors, state: State | null, { optimizer }: Pick<ShardedInput, "optimizer">): ShardedResult => {
  if (!state) throw new TypeError("the first step was to be skipped for non-finite gradients, and there is no state to go on from; see Client.init");
  return { params, state, step: Math.max(0, ...Object.values(state.steps)), lr: Number((optimizer as { lr?: number }).lr), skipped: true };
};
