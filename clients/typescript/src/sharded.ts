/** A step over several calls, connections and replicas at once. Its result is that of one call, bit for bit. */

import { found, requireOptions, requireStep } from "./checks.ts";
import { Client, type StepInput, type StepResult, withoutState } from "./client.ts";
import { StepdError } from "./errors.ts";
import { requireRetries } from "./pauses.ts";
import { type Call, Replicas } from "./replicas.ts";
import { SharedFolder } from "./shared.ts";
import { State } from "./state.ts";
import { compareUtf8, type DType, dtypeOf, type Tensor, type Tensors } from "./tensors.ts";
import { type CallOptions, CLIENT_OPTIONS, type ClientOptions, requireCallOptions } from "./transport.ts";
import { joinedWarnings } from "./warnings.ts";
import type { Cached, NormsResult } from "./wire.gen.ts";

export interface ShardedOptions extends ClientOptions {
  /** About how many bytes of parameters, gradients and state go into a call; a larger tensor goes alone. */
  readonly requestBytes?: number;
  /** Calls that are under way at once. */
  readonly connections?: number;
  /** Rounds over all replicas after the first, where each has failed. */
  readonly retries?: number | undefined;
}

const SHARDED_OPTIONS = { ...CLIENT_OPTIONS, requestBytes: true, connections: true } as const satisfies Record<keyof ShardedOptions, true>;

/** What one server keeps of the result of one call. */
export interface CachedShard {
  readonly url: string;
  readonly cached: Cached;
  /** The parameters of the call: what the client has to know where only the server has their values. */
  readonly tensors: Readonly<Record<string, Known>>;
}

interface Known {
  readonly shape: readonly number[];
  readonly dtype: DType;
  /** Steps taken. */
  readonly step: number;
}

/** Statistics are of single calls. */
export interface ShardedInput extends Omit<StepInput, "params" | "stats" | "cached"> {
  /** May be left out where `cached` names all of them. */
  readonly params?: Tensors | undefined;
  /**
   * That of an earlier result of a ShardedClient. The tensors are divided as they were then, and each call goes first to the
   * server that keeps what it names; another one is sent what is given beside it, as a Client does.
   */
  readonly cached?: readonly CachedShard[] | undefined;
}

export interface ShardedResult extends Omit<StepResult, "stats" | "cached"> {
  readonly cached?: readonly CachedShard[] | undefined;
}

/** What one call has of a step. */
interface Shard {
  readonly names: Set<string>;
  readonly kept?: CachedShard;
}

interface Stepped {
  readonly result: StepResult;
  readonly url: string;
}

type Norms = readonly (readonly [name: string, sums: NormsResult["tensors"][string]])[];
type Parameters = Readonly<Record<string, Known>>;

const DEFAULT_REQUEST_BYTES = 64 * 2 ** 20;
const DEFAULT_CONNECTIONS = 4;

/** Room for the gradients that an error names, where requestBytes is less: any server takes so much. */
const MIN_REFUSED_BYTES = 2 ** 20;

export class ShardedClient {
  readonly #clients: readonly Client[];
  readonly #replicas: Replicas;
  readonly #requestBytes: number;
  readonly #connections: number;

  /** `urls` are replicas; any serves any call. */
  constructor(urls: readonly string[], given: ShardedOptions = {}) {
    requireOptions(given, SHARDED_OPTIONS);
    const { requestBytes = DEFAULT_REQUEST_BYTES, connections = DEFAULT_CONNECTIONS, retries, ...options } = given;
    if (!Array.isArray(urls)) throw new TypeError(`urls: expected a list of the servers' roots, found ${found(urls)}`);
    if (urls.length === 0) throw new TypeError("a ShardedClient needs at least one url");
    if (!(requestBytes > 0)) throw new TypeError(`requestBytes: expected more than 0, found ${requestBytes}`);
    if (!(connections >= 1)) throw new TypeError(`connections: expected at least 1, found ${connections}`);
    const rounds = { ...options, retries };
    requireRetries(rounds);
    const folder = options.sharedDir === undefined ? undefined : new SharedFolder(options.sharedDir);
    // A call that fails goes to another replica at once, so a client by itself does not send again.
    this.#clients = urls.map((url) => new Client(url, { ...options, retries: 0 }, folder));
    this.#replicas = new Replicas(this.#clients, rounds);
    this.#requestBytes = requestBytes;
    this.#connections = connections;
  }

  /** Removes the files from `sharedDir`. Calls after that send their bytes; results stay as they are. */
  close(): void {
    for (const client of this.#clients) client.close();
  }

  /** One update. Exact clipping by norm takes a round of `norms` first. Throws as Client.step does; then nothing was changed. */
  async step(input: ShardedInput, options: CallOptions = {}): Promise<ShardedResult> {
    requireStep(input);
    requireCallOptions(options);
    const { params, grads, state: given, cached, ...settings } = input;
    if (cached) requireKept(cached, params, given);
    else if (!params) throw new TypeError("params: expected tensors, or cached with the name of some; found neither");
    const kept: Parameters | undefined = cached && Object.fromEntries(cached.flatMap(({ tensors }) => Object.entries(tensors)));
    const misfit = misfitOf(kept ?? params ?? {}, grads);
    const state = given instanceof Uint8Array ? await this.#read(given, { ...settings, params: params ?? {}, grads }, misfit, options) : given;
    const known = kept ?? knownOf(params ?? {}, state);
    const sizeOf = sizeIn(params ?? {}, grads, state);
    const shards = cached?.map((kept): Shard => ({ names: new Set(Object.keys(kept.tensors)), kept })) ?? pack(Object.keys(known), sizeOf, this.#requestBytes);
    // A gradient or state without a parameter goes along, for the server to refuse.
    for (const name of [...Object.keys(grads), ...(state?.parameters ?? [])]) if (!Object.hasOwn(known, name)) shards[0]?.names.add(name);
    let { clip, others_non_finite } = settings;
    const inputOf = ({ names, kept }: Shard): StepInput => {
      const part = {
        ...settings,
        clip,
        others_non_finite,
        params: params && pick(params, names),
        grads: pick(grads, names),
        // The state of a single shard stays whole: in a shared folder it need not be read then.
        state: shards.length > 1 ? state?.pick(names) : state,
        cached: kept?.cached,
      };
      return part as StepInput;
    };
    const norms = (): Promise<Norms> => this.#norms(shards, known, { grads, loss_scale: settings.loss_scale }, options);
    const stepEach = async (some: readonly Shard[]): Promise<Stepped[]> => {
      try {
        return await this.#each(some, options, (shard) => {
          const input = inputOf(shard);
          return async (client, call) => ({ result: await client.step(input, call), url: client.url });
        });
      } catch (error) {
        // A shard names its own tensors only.
        throw shards.length > 1 && isNonFinite(error) ? await this.#named(error, norms, { ...settings, params: {}, grads }, known, sizeOf, options) : error;
      }
    };

    if (shards.length > 1) {
      // As in one call: what does not fit is refused before any number is looked at.
      if (misfit !== undefined) await stepEach(shards.filter(({ names }) => names.has(misfit)));
      const { max_grad_norm: ownNorm } = settings.optimizer as { max_grad_norm?: number | null };
      const clipsByNorm = (clip?.max_norm !== undefined || typeof ownNorm === "number") && clip?.total_norm === undefined;
      if (clipsByNorm || settings.non_finite === "skip") {
        const sums = await norms();
        const broken = new Set(brokenIn(sums));
        if (broken.size > 0) others_non_finite = true;
        if (clipsByNorm) clip = { ...clip, total_norm: Math.sqrt(sums.reduce((sum, [, { grad_squares }]) => sum + grad_squares, 0)) };
        const isRefused = broken.size > 0 && settings.non_finite !== "skip" && settings.non_finite !== "propagate";
        // Of the calls, those with such gradients name them.
        if (isRefused) await stepEach(shards.filter(({ names }) => [...names].some((name) => broken.has(name))));
      }
    }

    const answers = await stepEach(shards);
    const results = answers.map(({ result }) => result);
    const stepped = new Map(results.flatMap((result) => Object.entries(result.params)));
    // A part without gradients is warned of by itself, which says nothing of a step that has some.
    const hasGrads = shards.map(({ names }) => [...names].some((name) => Object.hasOwn(grads, name)));
    const telling = hasGrads.includes(true) ? results.filter((_, index) => hasGrads[index]) : results;
    const skipped = results.some((result) => result.skipped);
    const warnings = skipped ? [] : joinedWarnings(telling.flatMap((result) => result.warnings ?? []));
    const leader = leaderOf(known, grads);
    const joined = {
      params: Object.fromEntries(Object.keys(params ?? known).flatMap((name) => (stepped.has(name) ? [[name, stepped.get(name) as Tensor]] : []))),
      step: results.reduce((most, { step }) => Math.max(most, step), 0),
      lr: (results[shards.findIndex(({ names }) => names.has(leader))] ?? results[0])?.lr as number,
      skipped,
      ...(warnings.length > 0 && { warnings }),
      ...(results.some((result) => result.cached) && {
        cached: answers.map(({ result, url }, index) => ({
          url,
          cached: result.cached ?? {},
          tensors: afterStep(pick(known, (shards[index] as Shard).names), skipped ? {} : grads),
        })),
      }),
    };
    if (settings.reply?.state === "none") return withoutState(joined);
    const states = results.map(({ state: next }) => next);
    return { ...joined, state: states.length > 1 ? State.join(states) : (states[0] as State) };
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
  async #named(
    refusal: StepdError,
    norms: () => Promise<Norms>,
    { grads, ...settings }: StepInput,
    known: Parameters,
    sizeOf: (name: string) => number,
    options: CallOptions,
  ): Promise<unknown> {
    try {
      const [{ names }] = pack(brokenIn(await norms()), sizeOf, Math.max(this.#requestBytes, MIN_REFUSED_BYTES));
      const input = { ...settings, params: zerosOf(pick(known, names)), grads: pick(grads, names), reply: undefined };
      await this.#replicas.call((client, call) => client.step(input, call), options);
    } catch (error) {
      if (isNonFinite(error)) return error;
    }
    return refusal;
  }

  /** Sums of all tensors, in the order of the names' UTF-8 bytes, in which the server adds them too. */
  async #norms(
    shards: readonly Shard[],
    known: Parameters,
    { grads, loss_scale }: Pick<StepInput, "grads" | "loss_scale">,
    options: CallOptions,
  ): Promise<Norms> {
    const results = await this.#each(shards, options, ({ names }) => {
      const part = pick(grads, names);
      const theirs = pick(known, new Set(Object.keys(part)));
      // The parameter's dtype decides the arithmetic, so it has to be told where the gradient's would be another: one of the two is F64.
      const differs = Object.entries(theirs).some(([name, { dtype }]) => (dtype === "F64") !== (dtypeOf(part[name] as Tensor) === "F64"));
      return (client, call) => client.norms({ grads: part, loss_scale, params: differs ? zerosOf(theirs) : undefined }, call);
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
      for (let index = next++; index < shards.length && !failed.signal.aborted; index = next++) {
        const shard = shards[index] as Shard;
        results[index] = await this.#replicas.call(callOf(shard), { ...options, signal: failed.signal }, shard.kept?.url);
      }
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
const misfitOf = (params: Readonly<Record<string, Pick<Tensor, "shape">>>, grads: Tensors): string | undefined =>
  Object.keys(grads).find((name) => !Object.hasOwn(params, name) || String(params[name]?.shape) !== String(grads[name]?.shape));

/** How many bytes go out for a parameter. */
const sizeIn = (params: Tensors, grads: Tensors, state: State | null | undefined): ((name: string) => number) => {
  const ofState = state?.sizes;
  const sizeOf = (tensors: Tensors, name: string): number => (Object.hasOwn(tensors, name) ? (tensors[name] as Tensor).data.byteLength : 0);
  return (name) => sizeOf(params, name) + sizeOf(grads, name) + (ofState?.get(name) ?? 0);
};

/** Packs names in their order into at least one shard, each of about the given size. */
const pack = (names: readonly string[], sizeOf: (name: string) => number, setSize: number): [Shard, ...Shard[]] => {
  const sets: [Shard, ...Shard[]] = [{ names: new Set() }];
  let room = setSize;
  for (const name of names) {
    const size = sizeOf(name);
    if (size > room && room < setSize) {
      sets.push({ names: new Set() });
      room = setSize;
    }
    sets.at(-1)?.names.add(name);
    room -= size;
  }
  return sets;
};

/** The tensor whose rate is that of the whole call: of those with a gradient, or of all where none has one, the first with the most steps. */
const leaderOf = (known: Parameters, grads: Tensors): string => {
  const own = Object.keys(grads).filter((name) => Object.hasOwn(known, name));
  const taken = (name: string): number => known[name]?.step ?? 0;
  return (own.length > 0 ? own : Object.keys(known)).reduce((most, name) => (taken(name) > taken(most) ? name : most), own[0] ?? Object.keys(known)[0] ?? "");
};

/** What `cached` is where it is not that of a ShardedClient's result, in words. */
const strangeIn = (cached: unknown): string | undefined => {
  if (typeof cached !== "object" || cached === null) return found(cached);
  if (Object.keys(cached as object).length === 0) return "an empty one";
  if (!Array.isArray(cached)) return "a Client's, which names all tensors together";
  for (const [index, part] of (cached as readonly (Partial<CachedShard> | null)[]).entries()) {
    const missing = (["tensors", "cached"] as const).find((field) => typeof part?.[field] !== "object" || part[field] === null);
    if (missing) return `no ${missing} in its call ${index}`;
  }
  return undefined;
};

/** Throws TypeError for what is not that of a ShardedClient, and where something is neither named nor given. */
const requireKept = (cached: readonly CachedShard[], params: Tensors | undefined, state: ShardedInput["state"]): void => {
  const found = strangeIn(cached);
  if (found !== undefined) throw new TypeError(`cached: expected that of a ShardedClient's result, found ${found}`);
  const names = cached.flatMap(({ tensors }) => Object.keys(tensors));
  if (params && String(Object.keys(params).sort()) !== String(names.sort())) throw new TypeError("params: expected those of the result that cached is of");
  for (const { cached: named } of cached) {
    if (!params && !named.params) throw new TypeError("params: expected tensors, or cached that names all of them");
    if (!state && !named.state) throw new TypeError("state: expected one, or cached that names all of it");
  }
};

const knownOf = (params: Tensors, state: State | null | undefined): Parameters => {
  const steps = state?.steps ?? {};
  const stepOf = (name: string): number => (Object.hasOwn(steps, name) ? (steps[name] as number) : 0);
  return mapped(params, (tensor, name) => ({ shape: tensor.shape, dtype: dtypeOf(tensor), step: stepOf(name) }));
};

const afterStep = (known: Parameters, grads: Tensors): Parameters =>
  mapped(known, (tensor, name) => ({ ...tensor, step: tensor.step + Number(Object.hasOwn(grads, name)) }));

/** What stands for parameters where their values do not matter. */
const zerosOf = (known: Parameters): Tensors =>
  mapped(known, ({ shape, dtype }) => {
    const count = shape.reduce((product, size) => product * size, 1);
    if (dtype === "F64") return { shape, data: new Float64Array(count) };
    return dtype === "F32" ? { shape, data: new Float32Array(count) } : { shape, data: new Uint16Array(count), dtype };
  });

const mapped = <In, Out>(record: Readonly<Record<string, In>>, change: (value: In, name: string) => Out): Record<string, Out> =>
  Object.fromEntries(Object.entries(record).map(([name, value]) => [name, change(value, name)]));

const pick = <Value>(record: Readonly<Record<string, Value>>, names: ReadonlySet<string>): Record<string, Value> =>
  Object.fromEntries(Object.entries(record).filter(([name]) => names.has(name)));
