/** Splits a step or a reduction over several calls, connections and replicas. The result has the same bits as one call. */

import { describeValue, requireOptions, requireStep } from "./checks.ts";
import { Client, type StepInput, type StepResult, withoutState } from "./client.ts";
import { StepdError } from "./errors.ts";
import { joinReduced, type ReduceInput, type ReduceResult, requireReduce, splitReduction } from "./reduce.ts";
import { type Call, Replicas } from "./replicas.ts";
import { requireRetries } from "./retries.ts";
import { SharedFolder } from "./shared.ts";
import { State } from "./state.ts";
import { compareUtf8, type DType, dtypeOf, type Tensor, type Tensors } from "./tensors.ts";
import { type CallOptions, CLIENT_OPTIONS, type ClientOptions, requireCallOptions } from "./transport.ts";
import { joinedWarnings } from "./warnings.ts";
import type { Cached, NormsResult, Receipt } from "./wire.gen.ts";

export interface ShardedOptions extends ClientOptions {
  /** Approximate bytes of parameters, gradients and state per call. A larger tensor gets a call of its own. */
  readonly requestBytes?: number;
  /** The largest number of calls in progress at once. */
  readonly connections?: number;
  /** Further rounds over all replicas after every replica has failed. */
  readonly retries?: number | undefined;
}

const SHARDED_OPTIONS = { ...CLIENT_OPTIONS, requestBytes: true, connections: true } as const satisfies Record<keyof ShardedOptions, true>;

/** One server's cached result of one call. */
export interface CachedShard {
  readonly url: string;
  readonly cached: Cached;
  /** The call's parameters. Their shapes, dtypes and step counts suffice when only the server has the values. */
  readonly tensors: Readonly<Record<string, TensorInfo>>;
}

interface TensorInfo {
  readonly shape: readonly number[];
  readonly dtype: DType;
  /** The number of steps taken. */
  readonly step: number;
}

/** A sharded step has no `stats`, because the server computes statistics per call. */
export interface ShardedInput extends Omit<StepInput, "params" | "stats" | "cached"> {
  /** May be absent if `cached` names all parameters. */
  readonly params?: Tensors | undefined;
  /**
   * The `cached` member of an earlier result of a ShardedClient. The tensors are split as for that result. The call for
   * each shard goes first to the server that cached the shard's blobs. Any other server receives `params` and `state`, as with a Client.
   */
  readonly cached?: readonly CachedShard[] | undefined;
}

export interface ShardedResult extends Omit<StepResult, "stats" | "cached" | "receipt"> {
  /** The receipt of each call, for a Ledger. */
  readonly receipts?: readonly Receipt[] | undefined;
  readonly receipt?: undefined;
  readonly cached?: readonly CachedShard[] | undefined;
}

/** The parameters of one call. */
interface Shard {
  readonly names: Set<string>;
  readonly cachedShard?: CachedShard;
}

interface Answer {
  readonly result: StepResult;
  readonly url: string;
}

type Norms = readonly (readonly [name: string, sums: NormsResult["tensors"][string]])[];
type TensorInfos = Readonly<Record<string, TensorInfo>>;

const DEFAULT_REQUEST_BYTES = 64 * 2 ** 20;
const DEFAULT_CONNECTIONS = 4;

/** To name non-finite gradients in an error, the client sends calls of at least this size. Any server accepts such a call. */
const MIN_REFUSED_BYTES = 2 ** 20;

export class ShardedClient {
  readonly #clients: readonly Client[];
  readonly #replicas: Replicas;
  readonly #requestBytes: number;
  readonly #connections: number;

  /** `urls` are interchangeable replicas. Throws TypeError for invalid options. */
  constructor(urls: readonly string[], given: ShardedOptions = {}) {
    requireOptions(given, SHARDED_OPTIONS);
    const { requestBytes = DEFAULT_REQUEST_BYTES, connections = DEFAULT_CONNECTIONS, retries, ...options } = given;
    if (!Array.isArray(urls)) throw new TypeError(`urls: expected a list of the servers' roots, found ${describeValue(urls)}`);
    if (urls.length === 0) throw new TypeError("a ShardedClient needs at least one url");
    if (!(requestBytes > 0)) throw new TypeError(`requestBytes: expected more than 0, found ${requestBytes}`);
    if (!(connections >= 1)) throw new TypeError(`connections: expected at least 1, found ${connections}`);
    const rounds = { ...options, retries };
    requireRetries(rounds);
    const folder = options.sharedDir === undefined ? undefined : new SharedFolder(options.sharedDir);
    // The clients do not retry, so that a failed call goes to another replica at once.
    this.#clients = urls.map((url) => new Client(url, { ...options, retries: 0 }, folder));
    this.#replicas = new Replicas(this.#clients, rounds);
    this.#requestBytes = requestBytes;
    this.#connections = connections;
  }

  /** Removes the files from `sharedDir`. Later calls send their bytes in the request. Earlier results stay valid. */
  close(): void {
    for (const client of this.#clients) client.close();
  }

  /**
   * Runs one step. Exact clipping by norm takes a round of `norms` calls first. Throws as Client.step does, and then changes
   * nothing.
   */
  async step(input: ShardedInput, options: CallOptions = {}): Promise<ShardedResult> {
    requireStep(input);
    requireCallOptions(options);
    const { params, grads, state: given, cached, ...settings } = input;
    if (cached) requireCached(cached, params, given);
    else if (!params) throw new TypeError("params: expected tensors, or cached with the name of some; found neither");
    const cachedInfos: TensorInfos | undefined = cached && Object.fromEntries(cached.flatMap(({ tensors }) => Object.entries(tensors)));
    const mismatch = mismatchOf(cachedInfos ?? params ?? {}, grads);
    const state = given instanceof Uint8Array ? await this.#read(given, { ...settings, params: params ?? {}, grads }, mismatch, options) : given;
    const infos = cachedInfos ?? infosOf(params ?? {}, state);
    const sizeOf = sizeIn(params ?? {}, grads, state);
    const shards =
      cached?.map((cachedShard): Shard => ({ names: new Set(Object.keys(cachedShard.tensors)), cachedShard })) ??
      pack(Object.keys(infos), sizeOf, this.#requestBytes);
    // The first call takes every gradient and state without a parameter, so that the server refuses the call.
    for (const name of [...Object.keys(grads), ...(state?.parameters ?? [])]) if (!Object.hasOwn(infos, name)) shards[0]?.names.add(name);
    let { clip, others_non_finite } = settings;
    const inputOf = (shard: Shard): StepInput => {
      const { names, cachedShard } = shard;
      const place = { index: shards.indexOf(shard), count: shards.length };
      const part = {
        ...settings,
        receipt: settings.receipt && (shards.length > 1 ? place : true),
        clip,
        others_non_finite,
        params: params && pick(params, names),
        grads: pick(grads, names),
        // The state of a single shard stays whole, because splitting would read a state in a shared folder.
        state: shards.length > 1 ? state?.pick(names) : state,
        cached: cachedShard?.cached,
      };
      return part as StepInput;
    };
    const norms = (): Promise<Norms> => this.#norms(shards, infos, { grads, loss_scale: settings.loss_scale }, options);
    const stepEach = async (some: readonly Shard[]): Promise<Answer[]> => {
      try {
        return await this.#each(some, options, (shard) => {
          const input = inputOf(shard);
          return async (client, call) => ({ result: await client.step(input, call), url: client.url });
        });
      } catch (error) {
        // The error of one shard names only that shard's tensors.
        throw shards.length > 1 && isNonFiniteError(error)
          ? await this.#nonFiniteError(error, norms, { ...settings, params: {}, grads }, infos, sizeOf, options)
          : error;
      }
    };

    if (shards.length > 1) {
      // The server refuses a wrong shape or name before it checks values, so the calls with a mismatch go first.
      if (mismatch !== undefined) await stepEach(shards.filter(({ names }) => names.has(mismatch)));
      const { max_grad_norm: ownNorm } = settings.optimizer as { max_grad_norm?: number | null };
      const clipsByNorm = (clip?.max_norm !== undefined || typeof ownNorm === "number") && clip?.total_norm === undefined;
      if (clipsByNorm || settings.non_finite === "skip") {
        const sums = await norms();
        const nonFinite = new Set(nonFiniteIn(sums));
        if (nonFinite.size > 0) others_non_finite = true;
        if (clipsByNorm) clip = { ...clip, total_norm: Math.sqrt(sums.reduce((sum, [, { grad_squares }]) => sum + grad_squares, 0)) };
        const isRefused = nonFinite.size > 0 && settings.non_finite !== "skip" && settings.non_finite !== "propagate";
        // Only calls with non-finite gradients are sent again, because the server's error names those gradients.
        if (isRefused) await stepEach(shards.filter(({ names }) => [...names].some((name) => nonFinite.has(name))));
      }
    }

    const answers = await stepEach(shards);
    const results = answers.map(({ result }) => result);
    const stepped = new Map(results.flatMap((result) => Object.entries(result.params)));
    // A shard without gradients warns that there are none. The warning is wrong if other shards have gradients.
    const hasGrads = shards.map(({ names }) => [...names].some((name) => Object.hasOwn(grads, name)));
    const relevant = hasGrads.includes(true) ? results.filter((_, index) => hasGrads[index]) : results;
    const skipped = results.some((result) => result.skipped);
    const warnings = skipped ? [] : joinedWarnings(relevant.flatMap((result) => result.warnings ?? []));
    const lrTensor = lrTensorOf(infos, grads);
    const joined = {
      params: Object.fromEntries(Object.keys(params ?? infos).flatMap((name) => (stepped.has(name) ? [[name, stepped.get(name) as Tensor]] : []))),
      step: results.reduce((most, { step }) => Math.max(most, step), 0),
      lr: (results[shards.findIndex(({ names }) => names.has(lrTensor))] ?? results[0])?.lr as number,
      skipped,
      ...(warnings.length > 0 && { warnings }),
      ...(settings.receipt && { receipts: results.flatMap(({ receipt }) => receipt ?? []) }),
      ...(results.some((result) => result.cached) && {
        cached: answers.map(({ result, url }, index) => ({
          url,
          cached: result.cached ?? {},
          tensors: afterStep(pick(infos, (shards[index] as Shard).names), skipped ? {} : grads),
        })),
      }),
    };
    if (settings.reply?.state === "none") return withoutState(joined);
    const states = results.map(({ state: next }) => next);
    return { ...joined, state: states.length > 1 ? State.join(states) : (states[0] as State) };
  }

  /**
   * Does the same as Client.reduce, with the tensors split over several calls. If one call drops an update, the calls that kept
   * the update run again without it.
   */
  async reduce(input: ReduceInput, options: CallOptions = {}): Promise<ReduceResult> {
    requireReduce(input);
    requireCallOptions(options);
    const parts = splitReduction(input, this.#requestBytes);
    const run = (some: readonly ReduceInput[]): Promise<ReduceResult[]> => this.#each(some, options, (part) => (client, call) => client.reduce(part, call));
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
   * Parses a stored state. If the state is invalid, sends it to the server and throws the server's error, because the server
   * checks settings and tensors first.
   */
  async #read(bytes: Uint8Array, { params, grads, ...settings }: StepInput, mismatch: string | undefined, options: CallOptions): Promise<State> {
    try {
      return new State(bytes);
    } catch (error) {
      const names = new Set(mismatch === undefined ? [] : [mismatch]);
      await this.#replicas.call(
        (client, call) => client.step({ ...settings, params: pick(params, names), grads: pick(grads, names), state: bytes }, call),
        options,
      );
      throw error;
    }
  }

  /** Returns the server's error for one call that holds the non-finite gradients of all shards, as far as they fit. */
  async #nonFiniteError(
    refusal: StepdError,
    norms: () => Promise<Norms>,
    { grads, ...settings }: StepInput,
    infos: TensorInfos,
    sizeOf: (name: string) => number,
    options: CallOptions,
  ): Promise<unknown> {
    try {
      const [{ names }] = pack(nonFiniteIn(await norms()), sizeOf, Math.max(this.#requestBytes, MIN_REFUSED_BYTES));
      const input = { ...settings, params: zerosOf(pick(infos, names)), grads: pick(grads, names), reply: undefined };
      await this.#replicas.call((client, call) => client.step(input, call), options);
    } catch (error) {
      if (isNonFiniteError(error)) return error;
    }
    return refusal;
  }

  /** Returns the sums of squares of all tensors, in UTF-8 order of their names. The server adds the sums in that order. */
  async #norms(
    shards: readonly Shard[],
    infos: TensorInfos,
    { grads, loss_scale }: Pick<StepInput, "grads" | "loss_scale">,
    options: CallOptions,
  ): Promise<Norms> {
    const results = await this.#each(shards, options, ({ names }) => {
      const part = pick(grads, names);
      const gradParams = pick(infos, new Set(Object.keys(part)));
      // The call sends parameters if a parameter is F64 and its gradient is not, or the reverse, because then the parameter's
      // dtype changes the arithmetic.
      const differs = Object.entries(gradParams).some(([name, { dtype }]) => (dtype === "F64") !== (dtypeOf(part[name] as Tensor) === "F64"));
      return (client, call) => client.norms({ grads: part, loss_scale, params: differs ? zerosOf(gradParams) : undefined }, call);
    });
    return results.flatMap(({ tensors }) => Object.entries(tensors)).sort(([a], [b]) => compareUtf8(a, b));
  }

  /** Runs one call per shard, several at once. After a failure, the running calls end before the error is thrown. */
  async #each<Part extends object, Result>(
    shards: readonly Part[],
    { signal, ...options }: CallOptions,
    callOf: (shard: Part) => Call<Result>,
  ): Promise<Result[]> {
    const results: Result[] = [];
    const failed = new AbortController();
    const stop = (): void => failed.abort(signal?.reason);
    signal?.throwIfAborted();
    signal?.addEventListener("abort", stop);
    let next = 0;
    const work = async (): Promise<void> => {
      for (let index = next++; index < shards.length && !failed.signal.aborted; index = next++) {
        const shard = shards[index] as Part & Partial<Shard>;
        results[index] = await this.#replicas.call(callOf(shard), { ...options, signal: failed.signal }, shard.cachedShard?.url);
      }
    };
    const guarded = (): Promise<void> => work().catch((error: unknown) => failed.abort(error));
    await Promise.all(Array.from({ length: Math.min(this.#connections, shards.length) }, guarded));
    signal?.removeEventListener("abort", stop);
    failed.signal.throwIfAborted();
    return results;
  }
}

const isNonFiniteError = (error: unknown): error is StepdError => error instanceof StepdError && error.code === "NON_FINITE_GRADIENT";

const nonFiniteIn = (norms: Norms): readonly string[] => norms.filter(([, { non_finite }]) => non_finite > 0).map(([name]) => name);

/** Returns the first gradient with no parameter of the same name and shape. The server's error names the same gradient. */
const mismatchOf = (params: Readonly<Record<string, Pick<Tensor, "shape">>>, grads: Tensors): string | undefined =>
  Object.keys(grads).find((name) => !Object.hasOwn(params, name) || String(params[name]?.shape) !== String(grads[name]?.shape));

/** Returns the bytes that a parameter adds to a request: its values, its gradient and its state. */
const sizeIn = (params: Tensors, grads: Tensors, state: State | null | undefined): ((name: string) => number) => {
  const ofState = state?.sizes;
  const sizeOf = (tensors: Tensors, name: string): number => (Object.hasOwn(tensors, name) ? (tensors[name] as Tensor).data.byteLength : 0);
  return (name) => sizeOf(params, name) + sizeOf(grads, name) + (ofState?.get(name) ?? 0);
};

/** Packs names in their order into one or more shards of about the given size. */
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

/**
 * Returns the tensor whose learning rate is the step's: the first with the most steps, among tensors with a gradient if there
 * are any.
 */
const lrTensorOf = (infos: TensorInfos, grads: Tensors): string => {
  const own = Object.keys(grads).filter((name) => Object.hasOwn(infos, name));
  const taken = (name: string): number => infos[name]?.step ?? 0;
  return (own.length > 0 ? own : Object.keys(infos)).reduce((most, name) => (taken(name) > taken(most) ? name : most), own[0] ?? Object.keys(infos)[0] ?? "");
};

/** Returns why `cached` does not come from a ShardedClient; undefined if it does. */
const cachedProblem = (cached: unknown): string | undefined => {
  if (typeof cached !== "object" || cached === null) return describeValue(cached);
  if (Object.keys(cached as object).length === 0) return "an empty one";
  if (!Array.isArray(cached)) return "a Client's, which names all tensors together";
  for (const [index, part] of (cached as readonly (Partial<CachedShard> | null)[]).entries()) {
    const missing = (["tensors", "cached"] as const).find((field) => typeof part?.[field] !== "object" || part[field] === null);
    if (missing) return `no ${missing} in its call ${index}`;
  }
  return undefined;
};

/** Throws TypeError if `cached` does not come from a ShardedClient, or if a blob is neither named nor passed. */
const requireCached = (cached: readonly CachedShard[], params: Tensors | undefined, state: ShardedInput["state"]): void => {
  const problem = cachedProblem(cached);
  if (problem !== undefined) throw new TypeError(`cached: expected that of a ShardedClient's result, found ${problem}`);
  const names = cached.flatMap(({ tensors }) => Object.keys(tensors));
  if (params && String(Object.keys(params).sort()) !== String(names.sort())) throw new TypeError("params: expected those of the result that cached is of");
  for (const { cached: named } of cached) {
    if (!params && !named.params) throw new TypeError("params: expected tensors, or cached that names all of them");
    if (!state && !named.state) throw new TypeError("state: expected one, or cached that names all of it");
  }
};

const infosOf = (params: Tensors, state: State | null | undefined): TensorInfos => {
  const steps = state?.steps ?? {};
  const stepOf = (name: string): number => (Object.hasOwn(steps, name) ? (steps[name] as number) : 0);
  return mapped(params, (tensor, name) => ({ shape: tensor.shape, dtype: dtypeOf(tensor), step: stepOf(name) }));
};

const afterStep = (infos: TensorInfos, grads: Tensors): TensorInfos =>
  mapped(infos, (tensor, name) => ({ ...tensor, step: tensor.step + Number(Object.hasOwn(grads, name)) }));

/** Returns zeros for parameters whose values do not matter. */
const zerosOf = (infos: TensorInfos): Tensors =>
  mapped(infos, ({ shape, dtype }) => {
    const count = shape.reduce((product, size) => product * size, 1);
    if (dtype === "F64") return { shape, data: new Float64Array(count) };
    return dtype === "F32" ? { shape, data: new Float32Array(count) } : { shape, data: new Uint16Array(count), dtype };
  });

const mapped = <In, Out>(record: Readonly<Record<string, In>>, change: (value: In, name: string) => Out): Record<string, Out> =>
  Object.fromEntries(Object.entries(record).map(([name, value]) => [name, change(value, name)]));

const pick = <Value>(record: Readonly<Record<string, Value>>, names: ReadonlySet<string>): Record<string, Value> =>
  Object.fromEntries(Object.entries(record).filter(([name]) => names.has(name)));
