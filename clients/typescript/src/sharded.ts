/** A step over several calls, connections and replicas at once. Its result is that of one call, bit for bit. */
import { Client, type StepInput, type StepResult } from "./client.ts";
import { StepdError } from "./errors.ts";
import { type Call, Replicas } from "./replicas.ts";
import { SharedFolder } from "./shared.ts";
import { State } from "./state.ts";
import { compareUtf8, dtypeOf, type Tensor, type Tensors } from "./tensors.ts";
import { type CallOptions, type ClientOptions, DEFAULT_RETRIES, requireRetries } from "./transport.ts";
import type { NormsResult } from "./wire.gen.ts";

export interface ShardedOptions extends ClientOptions {
  /** About how many bytes of parameters, gradients and state go into a call; a larger tensor goes alone. */
  readonly requestBytes?: number;
  /** Calls that are under way at once. */
  readonly connections?: number;
  /** Rounds over all replicas after the first, where each has failed. */
  readonly retries?: number | undefined;
}

/** Statistics, and what the server keeps, are of single calls. */
export type ShardedInput = Omit<StepInput, "stats" | "reply" | "cached">;
export type ShardedResult = Omit<StepResult, "stats" | "cached">;

type WholeInput = Omit<ShardedInput, "state"> & { readonly state: State | null | undefined };
type Shard = ReadonlySet<string>;
type Norms = readonly (readonly [name: string, sums: NormsResult["tensors"][string]])[];

const DEFAULT_REQUEST_BYTES = 64 * 2 ** 20;
const DEFAULT_CONNECTIONS = 4;

/** Room for the gradients that an error names, where requestBytes is less: any server takes so much. */
const MIN_REFUSED_BYTES = 2 ** 20;

/** A parameter that goes into a call whose own gradients would not make it skip, or not give the norm over all. None of a caller's has this name. */
const POISON = "\0stepd.poison";

/** Its square is infinite. */
const HUGE = 1e200;

export class ShardedClient {
  readonly #clients: readonly Client[];
  readonly #replicas: Replicas;
  readonly #requestBytes: number;
  readonly #connections: number;

  /** `urls` are replicas; any serves any call. */
  constructor(
    urls: readonly string[],
    { requestBytes = DEFAULT_REQUEST_BYTES, connections = DEFAULT_CONNECTIONS, retries = DEFAULT_RETRIES, ...options }: ShardedOptions = {},
  ) {
    if (urls.length === 0) throw new TypeError("a ShardedClient needs at least one url");
    if (!(requestBytes > 0)) throw new TypeError(`requestBytes: expected more than 0, found ${requestBytes}`);
    if (!(connections >= 1)) throw new TypeError(`connections: expected at least 1, found ${connections}`);
    requireRetries(retries);
    const folder = options.sharedDir === undefined ? undefined : new SharedFolder(options.sharedDir);
    // A call that fails goes to another replica at once, so a client by itself does not send again.
    this.#clients = urls.map((url) => new Client(url, { ...options, retries: 0 }, folder));
    this.#replicas = new Replicas(this.#clients, retries);
    this.#requestBytes = requestBytes;
    this.#connections = connections;
  }

  /** Removes the files from `sharedDir`. Calls after that send their bytes; results stay as they are. */
  close(): void {
    for (const client of this.#clients) client.close();
  }

  /** One update. Exact clipping by norm takes a round of `norms` first. Throws as Client.step does; then nothing was changed. */
  async step({ params, grads, state: given, ...settings }: ShardedInput, options: CallOptions = {}): Promise<ShardedResult> {
    const misfit = misfitOf(params, grads);
    const state = given instanceof Uint8Array ? await this.#read(given, { ...settings, params, grads }, misfit, options) : given;
    const shards = pack(Object.keys(params), sizeIn(params, grads, state), this.#requestBytes);
    // A gradient or state without a parameter goes along, for the server to refuse.
    for (const name of [...Object.keys(grads), ...(state?.parameters ?? [])]) if (!Object.hasOwn(params, name)) shards[0].add(name);
    let { clip } = settings;
    let poison: number | undefined;
    const inputOf = (names: Shard): StepInput => {
      // The state of a single shard stays whole: in a shared folder it need not be read then.
      const part = { ...settings, clip, params: pick(params, names), grads: pick(grads, names), state: shards.length > 1 ? state?.pick(names) : state };
      if (poison === undefined) return part;
      return {
        ...part,
        params: { ...part.params, [POISON]: { shape: [1], data: new Float64Array(1) } },
        grads: { ...part.grads, [POISON]: { shape: [1], data: Float64Array.of(poison) } },
      };
    };
    const norms = (): Promise<Norms> => this.#norms(shards, { params, grads, loss_scale: settings.loss_scale }, options);
    const stepEach = async (some: readonly Shard[]): Promise<StepResult[]> => {
      try {
        return await this.#each(some, options, (names) => {
          const input = inputOf(names);
          return (client, call) => client.step(input, call);
        });
      } catch (error) {
        // A shard names its own tensors only.
        throw shards.length > 1 && isNonFinite(error) ? await this.#named(error, norms, { ...settings, params, grads, state }, options) : error;
      }
    };

    if (shards.length > 1) {
      // As in one call: what does not fit is refused before any number is looked at.
      if (misfit !== undefined) await stepEach(shards.filter((names) => names.has(misfit)));
      const { max_grad_norm: ownNorm } = settings.optimizer as { max_grad_norm?: number | null };
      const clipsByNorm = (clip?.max_norm !== undefined || typeof ownNorm === "number") && clip?.total_norm === undefined;
      if (clipsByNorm || settings.non_finite === "skip") {
        const sums = await norms();
        const broken = new Set(brokenIn(sums));
        const total = Math.sqrt(sums.reduce((sum, [, { grad_squares }]) => sum + grad_squares, 0));
        if (broken.size > 0 && settings.non_finite === "skip") poison = Number.NaN;
        else if (broken.size > 0 && settings.non_finite !== "propagate") await stepEach(shards.filter((names) => [...names].some((name) => broken.has(name))));
        // What is no number cannot be sent as total_norm. Divided by the loss scale the poison is to be HUGE still.
        else if (clipsByNorm && !Number.isFinite(total)) poison = Number.isNaN(total) ? total : Math.min(HUGE * (settings.loss_scale ?? 1), Number.MAX_VALUE);
        else if (clipsByNorm) clip = { ...clip, total_norm: total };
      }
    }

    const results = await stepEach(shards);
    const stepped = new Map(results.flatMap((result) => Object.entries(result.params)));
    const warnings = [...new Set(results.flatMap((result) => result.warnings ?? []))];
    const states = results.map((result, index) => (poison === undefined ? result.state : result.state.pick(shards[index] as Shard)));
    const joined = states.length > 1 ? State.join(states) : (states[0] as State);
    const leader = leaderOf(params, grads, state);
    return {
      params: Object.fromEntries(Object.keys(params).map((name) => [name, stepped.get(name) as Tensor])),
      state: joined,
      step: mostSteps(joined),
      lr: (results[shards.findIndex((names) => names.has(leader))] ?? results[0])?.lr as number,
      skipped: results.some(({ skipped }) => skipped),
      ...(warnings.length > 0 && { warnings }),
    };
  }

  /** A stored state. Of one that is none the server says so, after what it says of settings and tensors. */
  async #read(bytes: Uint8Array, { params, grads, ...settings }: StepInput, misfit: string | undefined, options: CallOptions): Promise<State> {
    try {
      return new State(bytes);
    } catch (error) {
      const names = new Set(misfit === undefined ? [] : [misfit]);
      await this.#replicas.call(
        (client, call) => client.step({ ...settings, params: pick(params, names), grads: pick(grads, names), state: bytes }, call),
        options,
      );
      throw error;
    }
  }

  /** The error of one call with the gradients that are not finite, as many as go into it, in place of a single shard's. */
  async #named(refusal: StepdError, norms: () => Promise<Norms>, { params, grads, state, ...settings }: WholeInput, options: CallOptions): Promise<unknown> {
    try {
      const broken = brokenIn(await norms());
      const [names = new Set()] = pack(broken, sizeIn(params, grads, state), Math.max(this.#requestBytes, MIN_REFUSED_BYTES));
      const input = { ...settings, params: pick(params, names), grads: pick(grads, names), state: state?.pick(names) };
      await this.#replicas.call((client, call) => client.step(input, call), options);
    } catch (error) {
      if (isNonFinite(error)) return error;
    }
    return refusal;
  }

  /** Sums of all tensors, in the order of the names' UTF-8 bytes, in which the server adds them too. */
  async #norms(
    shards: readonly Shard[],
    { params, grads, loss_scale }: Pick<StepInput, "params" | "grads" | "loss_scale">,
    options: CallOptions,
  ): Promise<Norms> {
    const results = await this.#each(shards, options, (names) => {
      const part = pick(grads, names);
      const theirs = pick(params, new Set(Object.keys(part)));
      // The parameter's dtype decides the arithmetic, so it has to be told where it is not the gradient's.
      const differs = Object.entries(theirs).some(([name, param]) => dtypeOf(param) !== dtypeOf(part[name] as Tensor));
      return (client, call) => client.norms({ grads: part, loss_scale, params: differs ? theirs : undefined }, call);
    });
    return results.flatMap(({ tensors }) => Object.entries(tensors)).sort(([a], [b]) => compareUtf8(a, b));
  }

  /** Runs a call for each item, some at once. Where one fails, the others end, and only then is its error thrown. */
  async #each<Result>(shards: readonly Shard[], { signal, ...options }: CallOptions, callOf: (shard: Shard) => Call<Result>): Promise<Result[]> {
    const results: Result[] = [];
    const failed = new AbortController();
    const stop = (): void => failed.abort(signal?.reason);
    signal?.throwIfAborted();
    signal?.addEventListener("abort", stop);
    let next = 0;
    const work = async (): Promise<void> => {
      for (let index = next++; index < shards.length && !failed.signal.aborted; index = next++)
        results[index] = await this.#replicas.call(callOf(shards[index] as Shard), { ...options, signal: failed.signal });
    };
    const guarded = (): Promise<void> => work().catch((error: unknown) => failed.abort(error));
    await Promise.all(Array.from({ length: Math.min(this.#connections, shards.length) }, guarded));
    signal?.removeEventListener("abort", stop);
    failed.signal.throwIfAborted();
    return results;
  }
}

const isNonFinite = (error: unknown): error is StepdError => error instanceof StepdError && error.code === "NON_FINITE_GRADIENT";

const brokenIn = (norms: Norms): readonly string[] => norms.filter(([, { non_finite }]) => non_finite > 0).map(([name]) => name);

/** The first gradient that no parameter has the name and shape of, which is the one that the server names. */
const misfitOf = (params: Tensors, grads: Tensors): string | undefined =>
  Object.keys(grads).find((name) => !Object.hasOwn(params, name) || String(params[name]?.shape) !== String(grads[name]?.shape));

/** How many bytes go out for a parameter. */
const sizeIn = (params: Tensors, grads: Tensors, state: State | null | undefined): ((name: string) => number) => {
  const ofState = state?.sizes;
  const sizeOf = (tensors: Tensors, name: string): number => (Object.hasOwn(tensors, name) ? (tensors[name] as Tensor).data.byteLength : 0);
  return (name) => sizeOf(params, name) + sizeOf(grads, name) + (ofState?.get(name) ?? 0);
};

/** Packs names in their order into at least one set, each of about the given size. */
const pack = (names: readonly string[], sizeOf: (name: string) => number, setSize: number): [Set<string>, ...Set<string>[]] => {
  const sets: [Set<string>, ...Set<string>[]] = [new Set()];
  let room = setSize;
  for (const name of names) {
    const size = sizeOf(name);
    if (size > room && room < setSize) {
      sets.push(new Set());
      room = setSize;
    }
    sets.at(-1)?.add(name);
    room -= size;
  }
  return sets;
};

const mostSteps = ({ steps }: State): number => Object.values(steps).reduce((most, step) => Math.max(most, step), 0);

/** The tensor whose rate is that of the whole call: of those with a gradient, or of all where none has one, the first with the most steps. */
const leaderOf = (params: Tensors, grads: Tensors, state: State | null | undefined): string => {
  const own = Object.keys(grads).filter((name) => Object.hasOwn(params, name));
  const taken = (name: string): number => (state && Object.hasOwn(state.steps, name) ? state.steps[name] : undefined) ?? 0;
  return (own.length > 0 ? own : Object.keys(params)).reduce((most, name) => (taken(name) > taken(most) ? name : most), own[0] ?? Object.keys(params)[0] ?? "");
};

const pick = (tensors: Tensors, names: Shard): Tensors => Object.fromEntries(Object.entries(tensors).filter(([name]) => names.has(name)));
