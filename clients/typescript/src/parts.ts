/**
 * Sends a step as several calls, its parts. The result has the bits of one call. A part has some of the tensors, or slices of large
 * ones. Parts let a connection carry both directions at once: while one part is received, the next is sent.
 */
import { sizeOf } from "./blobs.ts";
import type { CachedShard, Call, NormsInput, StepInput, StepResult, TensorInfo, TensorInfos } from "./calls.ts";
import { describeValue } from "./checks.ts";
import { StepdError } from "./errors.ts";
import { ALL_TENSORS, WHOLE_TENSORS } from "./optimizers.gen.ts";
import { isElementwise, joinedState, partOfState, type Range, type Slices, State } from "./state.ts";
import { checkTensors, compareUtf8, dtypeOf, elementsOf, type Tensor, type Tensors } from "./tensors.ts";
import type { CallOptions } from "./transport.ts";
import { joinedWarnings, MAX_NAMED_TENSORS } from "./warnings.ts";
import type { Cached, CachedBlob, NormsResult, Receipt } from "./wire.gen.ts";

const MIB = 2 ** 20;

/** A slice begins at a multiple of this many elements. */
const SHARD_ELEMENTS = 65_536;

/** The size of a part, before a connection has shown that it needs larger ones. */
const FIRST_PART_BYTES = 2 * MIB;
export const LARGEST_PART_BYTES = 64 * MIB;

/** A smaller step is one call, because its parts would cost more than they save. */
const SMALLEST_SPLIT_BYTES = 4 * MIB;

/** A part takes this many round trips to send, so that waiting costs little. */
const ROUND_TRIPS_PER_PART = 4;

/** A part takes at least this long, because each call costs processor time. */
const MS_PER_PART = 12;

/** With members other than these, a step of a Client is one call. */
const SPLIT_MEMBERS: readonly string[] = [
  ...["optimizer", "params", "grads", "state", "groups", "schedule", "clip", "loss_scale", "non_finite", "reply"],
  ...["others_non_finite", "master_weights", "stochastic_rounding"],
];

/** A step in parts has no `stats`, because the server computes statistics per call. */
export interface PartedInput extends Omit<StepInput, "params" | "stats" | "cached"> {
  readonly params?: Tensors | undefined;
  readonly cached?: readonly CachedShard[] | undefined;
}

export interface PartedResult extends Omit<StepResult, "stats" | "cached" | "receipt"> {
  /** The receipt of each call, for a Ledger. */
  readonly receipts?: readonly Receipt[] | undefined;
  readonly receipt?: undefined;
  readonly cached?: readonly CachedShard[] | undefined;
}

/** One of the calls that make up a step. */
interface Part {
  /** The parameters of this call, in the order of the call. */
  readonly tensors: Record<string, TensorInfo>;
  readonly slices: Record<string, Range>;
  /** Gradients and entries of the state that belong to no parameter. */
  readonly unmatched: Set<string>;
  readonly cached?: Cached | undefined;
  /** The server that the call goes to first. */
  url?: string | undefined;
  /** The handle of the gradients that this server has kept. */
  keptGrads?: CachedBlob | undefined;
}

interface Answer {
  readonly result: StepResult;
  readonly url: string;
}

type Norms = readonly (readonly [name: string, sums: NormsResult["tensors"][string]])[];

/** Makes a call, first with the server `home` if there are several. */
export type Send = <Result>(call: Call<Result>, options: CallOptions, home?: string) => Promise<Result>;

/** Returns whether a Client sends a step in parts. */
export const isSplit = (input: object, url: string): boolean => {
  const { optimizer, groups, params, grads, state, cached, ...rest } = input as Partial<StepInput>;
  if (isShards(cached)) return cached.length > 0 && cached.every((shard) => (shard as Partial<CachedShard> | null)?.url === url);
  if (cached !== undefined || !params || !optimizer || !grads) return false;
  if (Object.entries(rest).some(([name, value]) => value !== undefined && !SPLIT_MEMBERS.includes(name))) return false;
  const sent = [...Object.values(params), ...Object.values(grads)].reduce((sum, { data }) => sum + data?.byteLength, sizeOf(state));
  return sent >= SMALLEST_SPLIT_BYTES && namesOf({ optimizer, groups }).every((name) => Object.hasOwn(WHOLE_TENSORS, name) && !ALL_TENSORS.includes(name));
};

export const isShards = (cached: unknown): cached is readonly CachedShard[] => Array.isArray(cached);

type Optimizers = Pick<StepInput, "optimizer" | "groups">;

/** Returns the names of all optimizers of a step. A group without a name has the hyperparameters of the step's optimizer. */
const namesOf = ({ optimizer, groups = [] }: Optimizers): readonly string[] => {
  const own = groups.map((group) => (group.optimizer as { name?: string } | undefined)?.name);
  return [optimizer.name, ...own.filter((name) => name !== undefined)];
};

/** Throws TypeError if an optimizer of the step needs all tensors in one call. */
export const requireSplittable = (step: Optimizers): void => {
  const shared = namesOf(step).find((name) => ALL_TENSORS.includes(name));
  if (shared !== undefined)
    throw new TypeError(`optimizer: a ShardedClient sends a step as several calls, but ${shared} needs all tensors in one; a Client sends one`);
};

/** Returns whether calls may have slices of tensors. */
const canSlice = ({ optimizer, groups = [] }: Optimizers): boolean => {
  const given = [optimizer, ...groups.map((group) => group.optimizer)] as readonly Readonly<Record<string, unknown>>[];
  return namesOf({ optimizer, groups }).every((name) => {
    const whole = Object.hasOwn(WHOLE_TENSORS, name) ? WHOLE_TENSORS[name] : true;
    return whole === false || (typeof whole === "string" && !given.some((one) => one?.[whole]));
  });
};

export class Splitter {
  readonly #send: Send;
  readonly #connections: number;
  readonly #requestBytes: number | undefined;
  readonly #roundTrip: () => Promise<number>;
  #partBytes = FIRST_PART_BYTES;

  /**
   * `requestBytes` is the approximate size of a part; undefined chooses it. `roundTrip` returns the milliseconds of a round trip; 0
   * if unknown.
   */
  constructor(send: Send, connections: number, requestBytes: number | undefined, roundTrip: () => Promise<number>) {
    this.#send = send;
    this.#connections = connections;
    this.#requestBytes = requestBytes;
    this.#roundTrip = roundTrip;
  }

  async step(input: PartedInput, options: CallOptions): Promise<PartedResult> {
    const { cached, slices: given, reply, ...settings } = input;
    if (cached) requireCached(cached, input.params, input.state);
    else if (!input.params) throw new TypeError("params: expected tensors, or cached with the name of some; found neither");
    checkTensors(input.params ?? {});
    checkTensors(input.grads);
    // The caller may change the arrays during the call, except for those of a cached result.
    const grads = copied(input.grads);
    const params = cached ? input.params : copied(input.params ?? {});
    const stored = input.state instanceof Uint8Array && !cached ? input.state.slice() : input.state;
    const known: TensorInfos | undefined = cached && Object.fromEntries(cached.flatMap(({ tensors }) => Object.entries(tensors)));
    const mismatch = mismatchOf(known ?? params ?? {}, grads);
    const state = stored instanceof Uint8Array ? await this.#read(stored, { ...settings, params: params ?? {}, grads }, mismatch, options) : stored;
    const infos = known ?? infosOf(params ?? {}, state);
    const parts: readonly Part[] = cached
      ? cached.map(({ url, cached, tensors, slices }) => ({ url, cached, tensors: { ...tensors }, slices: { ...slices }, unmatched: new Set<string>() }))
      : this.#pack(infos, { params: params ?? {}, grads, state }, !given && canSlice(settings), reply?.cache === true);
    // The first call takes every gradient and state without a parameter, so that the server refuses the call.
    for (const name of [...Object.keys(grads), ...Object.keys(given ?? {}), ...(state?.parameters ?? [])])
      if (!Object.hasOwn(infos, name)) parts[0]?.unmatched.add(name);
    let { clip, others_non_finite } = settings;
    const inputOf = (part: Part): StepInput => {
      const names = namesIn(part);
      const place = { index: parts.indexOf(part), count: parts.length };
      const own = {
        ...settings,
        reply,
        slices: slicesOnWire(part, names, given),
        receipt: settings.receipt && (parts.length > 1 ? place : true),
        clip,
        others_non_finite,
        params: params && cut(params, part),
        grads: cut(grads, part),
        // The state of a single part stays whole, because splitting would read a state in a shared folder.
        state: state && parts.length > 1 ? partOfState(state, names, part.slices) : state,
        cached: part.keptGrads ? { ...part.cached, grads: part.keptGrads } : part.cached,
      };
      return own as StepInput;
    };
    const stepEach = (some: readonly Part[]): Promise<Answer[]> =>
      this.each(some, options, (part) => {
        const own = inputOf(part);
        return async (client, call) => ({ result: (await client.step(own, call)) as StepResult, url: client.url });
      });

    if (parts.length > 1) {
      // The server refuses a wrong shape or name before it checks values, so the calls with a mismatch go first.
      if (mismatch !== undefined) await stepEach(parts.filter((part) => namesIn(part).has(mismatch)));
      const { max_grad_norm: ownNorm } = settings.optimizer as { max_grad_norm?: number | null };
      const clipsByNorm = (clip?.max_norm !== undefined || typeof ownNorm === "number") && clip?.total_norm === undefined;
      if (clipsByNorm || settings.non_finite === "skip") {
        const sums = await this.#norms(parts, { grads, loss_scale: settings.loss_scale }, given, options);
        const nonFinite = sums.flatMap(([name, { non_finite }]) => (non_finite > 0 ? [name] : []));
        if (nonFinite.length > 0) others_non_finite = true;
        if (clipsByNorm) clip = { ...clip, total_norm: Math.sqrt(sums.reduce((sum, [, { grad_squares }]) => sum + grad_squares, 0)) };
        const isRefused = nonFinite.length > 0 && settings.non_finite !== "skip" && settings.non_finite !== "propagate";
        // Only calls with non-finite gradients are sent again, because the server's error names those gradients.
        if (isRefused) await stepEach(parts.filter((part) => nonFinite.some((name) => namesIn(part).has(name))));
      }
    }

    const start = performance.now();
    const answers = await stepEach(parts);
    if (parts.length > 1) await this.#observe(bytesIn(params ?? {}) + bytesIn(grads) + sizeOf(state), performance.now() - start);
    const results = answers.map(({ result }) => result);
    const stepped = joinedParams(parts, results);
    // A part without gradients warns that there are none. The warning is wrong if other parts have gradients.
    const hasGrads = parts.map((part) => Object.keys(part.tensors).some((name) => Object.hasOwn(grads, name)));
    const relevant = hasGrads.includes(true) ? results.filter((_, index) => hasGrads[index]) : results;
    const skipped = results.some((result) => result.skipped);
    const warnings = skipped ? [] : joinedWarnings(relevant.flatMap((result) => result.warnings ?? []));
    const lrTensor = lrTensorOf(infos, grads);
    const joined = {
      params: Object.fromEntries(Object.keys(params ?? infos).flatMap((name) => (stepped.has(name) ? [[name, stepped.get(name) as Tensor]] : []))),
      step: results.reduce((most, { step }) => Math.max(most, step), 0),
      lr: (results[parts.findIndex(({ tensors }) => Object.hasOwn(tensors, lrTensor))] ?? results[0])?.lr as number,
      skipped,
      ...(warnings.length > 0 && { warnings }),
      ...(settings.receipt && { receipts: results.flatMap(({ receipt }) => receipt ?? []) }),
      ...(results.some((result) => result.cached) && {
        cached: answers.map(({ result, url }, index): CachedShard => {
          const { tensors, slices } = parts[index] as Part;
          return { url, cached: (result.cached ?? {}) as Cached, tensors: afterStep(tensors, skipped ? {} : grads), slices };
        }),
      }),
    };
    if (reply?.state === "none") return withoutState(joined);
    if (parts.length === 1) return { ...joined, state: results[0]?.state as State };
    const shapes = Object.fromEntries(Object.entries(infos).map(([name, { shape }]) => [name, shape]));
    return {
      ...joined,
      state: joinedState(
        results.map(({ state: next }, index) => ({ state: next, slices: (parts[index] as Part).slices })),
        shapes,
      ),
    };
  }

  /**
   * Runs one call per part, several at once. After a failure, the running calls end before the error is thrown. A call with
   * non-finite gradients does not end the others, because one error names the gradients of all calls.
   */
  async each<Each extends object, Result>(
    parts: readonly Each[],
    { signal, ...options }: CallOptions,
    callOf: (part: Each) => Call<Result>,
  ): Promise<Result[]> {
    const results: Result[] = [];
    const refusals: StepdError[] = [];
    const failed = new AbortController();
    const stop = (): void => failed.abort(signal?.reason);
    signal?.throwIfAborted();
    signal?.addEventListener("abort", stop);
    let next = 0;
    const work = async (): Promise<void> => {
      for (let index = next++; index < parts.length && !failed.signal.aborted; index = next++) {
        const part = parts[index] as Each & Partial<Part>;
        try {
          results[index] = await this.#send(callOf(part), { ...options, signal: failed.signal }, part.url);
        } catch (error) {
          if (!(error instanceof StepdError && error.code === "NON_FINITE_GRADIENT")) throw error;
          refusals.push(error);
        }
      }
    };
    const guarded = (): Promise<void> => work().catch((error: unknown) => failed.abort(error));
    await Promise.all(Array.from({ length: Math.min(this.#connections, parts.length) }, guarded));
    signal?.removeEventListener("abort", stop);
    failed.signal.throwIfAborted();
    if (refusals.length > 0) throw joinedRefusal(refusals);
    return results;
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
      await this.#send((client, call) => client.step({ ...settings, params: pick(params, names), grads: pick(grads, names), state: bytes }, call), options);
      throw error;
    }
  }

  /**
   * Returns the sums of squares of all tensors, in UTF-8 order of their names. The server adds the sums in that order. A server
   * may keep the gradients of its call.
   */
  async #norms(
    parts: readonly Part[],
    { grads, loss_scale }: Pick<StepInput, "grads" | "loss_scale">,
    given: StepInput["slices"],
    options: CallOptions,
  ): Promise<Norms> {
    const results = await this.each(parts, options, (part) => {
      const own = cut(grads, part);
      const names = new Set(Object.keys(own));
      const infos = pick(part.tensors, names);
      // The call sends parameters if a parameter is F64 and its gradient is not, or the reverse, because then the parameter's
      // dtype changes the arithmetic.
      const differs = Object.entries(infos).some(([name, { dtype }]) => (dtype === "F64") !== (dtypeOf(own[name] as Tensor) === "F64"));
      const input: NormsInput = {
        grads: own,
        loss_scale,
        slices: slicesOnWire(part, names, given),
        params: differs ? zerosOf(infos, part.slices) : undefined,
        reply: { cache: true },
      };
      return async (client, call) => {
        const result = await client.norms(input, call);
        // The handles of one part belong to one server.
        if (result.cached?.grads && (part.url === undefined || part.url === client.url)) {
          part.url = client.url;
          part.keptGrads = result.cached.grads;
        }
        return result;
      };
    });
    return joinedNorms(parts, results).sort(([a], [b]) => compareUtf8(a, b));
  }

  /** Splits the tensors, in their order, into at least one call. */
  #pack(infos: TensorInfos, { params, grads, state }: Values, slicing: boolean, isResident: boolean): readonly Part[] {
    const ofState = state?.sizes;
    const sizeOf = (name: string): number => {
      const own = [params, grads].reduce((sum, tensors) => sum + (Object.hasOwn(tensors, name) ? (tensors[name] as Tensor).data.byteLength : 0), 0);
      // Of a result that stays on the server, later steps send only the gradients and receive only the parameters, in the same
      // parts.
      return isResident ? own : own + (ofState?.get(name) ?? 0);
    };
    const sizes = Object.keys(infos).map((name) => [name, sizeOf(name)] as const);
    const limit = this.#limit(sizes.reduce((sum, [, size]) => sum + size, 0));
    const parts: [Part, ...Part[]] = [newPart()];
    // The first part is short, so that connections do not send at the same time and then receive at the same time.
    let room = this.#requestBytes === undefined ? limit / 2 : limit;
    for (const [name, size] of sizes) {
      const info = infos[name] as TensorInfo;
      const isSliced = slicing && size > limit && hasShards(name, info, grads, state);
      for (const [range, own] of isSliced ? rangesOf(info, size) : [[undefined, size] as const]) {
        let last = parts.at(-1) as Part;
        if (own > room && Object.keys(last.tensors).length > 0) {
          last = newPart();
          parts.push(last);
          room = limit;
        }
        last.tensors[name] = info;
        if (range) last.slices[name] = [(last.slices[name] ?? range)[0], range[1]];
        room -= own;
      }
    }
    return parts;
  }

  #limit(total: number): number {
    if (this.#requestBytes !== undefined) return this.#requestBytes;
    // Each connection needs a few parts, for the two directions to overlap.
    return Math.min(this.#partBytes, Math.max(FIRST_PART_BYTES, Math.floor(total / (2 * this.#connections))));
  }

  /** Chooses the size of the next step's parts. */
  async #observe(sent: number, ms: number): Promise<void> {
    if (this.#requestBytes !== undefined || ms <= 0) return;
    this.#partBytes = partBytesFor(sent, ms, await this.#roundTrip());
  }
}

/** Returns the size of a part, which takes a few round trips to send. A step has sent `sent` bytes in `ms`. */
export const partBytesFor = (sent: number, ms: number, roundTripMs: number): number => {
  const wanted = Math.floor((sent / ms) * (ROUND_TRIPS_PER_PART * roundTripMs + MS_PER_PART));
  return Math.max(FIRST_PART_BYTES, Math.min(wanted, LARGEST_PART_BYTES));
};

/** The tensors of a step. */
interface Values {
  readonly params: Tensors;
  readonly grads: Tensors;
  readonly state: State | null | undefined;
}

const newPart = (): Part => ({ tensors: {}, slices: {}, unmatched: new Set() });

const namesIn = ({ tensors, unmatched }: Part): ReadonlySet<string> => new Set([...Object.keys(tensors), ...unmatched]);

/** Returns whether all that belongs to a parameter has its shape, and the parameter has several shards. */
const hasShards = (name: string, { shape }: TensorInfo, grads: Tensors, state: State | null | undefined): boolean => {
  if (elementsOf(shape) <= SHARD_ELEMENTS || !Object.hasOwn(grads, name) || String(grads[name]?.shape) !== String(shape)) return false;
  return !state || isElementwise(state, name, shape);
};

/** Returns the shards of a tensor with their bytes. */
const rangesOf = ({ shape }: TensorInfo, size: number): readonly (readonly [Range, number])[] => {
  const count = elementsOf(shape);
  return Array.from({ length: Math.ceil(count / SHARD_ELEMENTS) }, (_, index) => {
    const [begin, end] = [index * SHARD_ELEMENTS, Math.min((index + 1) * SHARD_ELEMENTS, count)];
    return [[begin, end], Math.floor(((end - begin) * size) / count)] as const;
  });
};

/** Returns the tensors of a part. A slice is a view of its tensor. */
const cut = (tensors: Tensors, part: Part): Record<string, Tensor> =>
  mapped(pick(tensors, namesIn(part)), (tensor, name) => {
    const range = Object.hasOwn(part.slices, name) ? part.slices[name] : undefined;
    return range ? { ...tensor, shape: [range[1] - range[0]], data: tensor.data.subarray(...range) } : tensor;
  });

/** Returns the member `slices` of a call with these tensors. `given` are the caller's own slices. */
const slicesOnWire = ({ slices }: Part, names: ReadonlySet<string>, given: StepInput["slices"] = {}): StepInput["slices"] => {
  const own = { ...mapped(slices, ([offset]) => ({ offset })), ...(given as Readonly<Record<string, { offset: number }>>) };
  const some = pick(own, names);
  return Object.keys(some).length > 0 ? some : undefined;
};

/** Returns the parameters of all results. Slices of a tensor are copied into one array. */
const joinedParams = (parts: readonly Part[], results: readonly StepResult[]): ReadonlyMap<string, Tensor> => {
  const joined = new Map<string, Tensor>();
  for (const [index, { tensors, slices }] of parts.entries()) {
    for (const [name, tensor] of Object.entries(results[index]?.params ?? {})) {
      const range = Object.hasOwn(slices, name) ? slices[name] : undefined;
      if (!range) {
        joined.set(name, tensor);
        continue;
      }
      const { shape = [] } = tensors[name] ?? {};
      const whole = joined.get(name) ?? { ...tensor, shape, data: arrayLike(tensor.data, elementsOf(shape)) };
      if (whole.data.constructor !== tensor.data.constructor || tensor.data.length !== range[1] - range[0])
        throw new RangeError(`${name}: expected a slice of ${range[1] - range[0]} elements, found ${tensor.data.length} in a ${tensor.data.constructor.name}`);
      whole.data.set(tensor.data, range[0]);
      joined.set(name, whole);
    }
  }
  return joined;
};

const arrayLike = <Data extends Tensor["data"]>(data: Data, length: number): Data => new (data.constructor as new (length: number) => Data)(length);

/** Returns the sums of whole tensors. */
const joinedNorms = (parts: readonly Part[], results: readonly NormsResult[]): [name: string, sums: NormsResult["tensors"][string]][] => {
  const joined = new Map<string, NormsResult["tensors"][string]>();
  // The parts have the slices of a tensor in order. The server adds the sums of all shards one after the other.
  for (const [index, { slices }] of parts.entries()) {
    for (const [name, own] of Object.entries(results[index]?.tensors ?? {})) {
      const { grad_squares: before, ...earlier } = joined.get(name) ?? { grad_squares: 0, zeros: 0, non_finite: 0 };
      if (!Object.hasOwn(slices, name)) joined.set(name, own);
      else
        joined.set(name, {
          grad_squares: (own.grad_shard_squares ?? []).reduce((sum, squares) => sum + squares, before),
          zeros: earlier.zeros + own.zeros,
          non_finite: earlier.non_finite + own.non_finite,
        });
    }
  }
  return [...joined];
};

/** Returns one error that names the tensors of all refused calls. */
const joinedRefusal = (refusals: readonly StepdError[]): StepdError => {
  // A call may be refused because of another call's gradients. Its error names no tensors.
  const naming = refusals.filter(({ tensors }) => tensors.length > 0);
  const [first] = naming.length > 0 ? naming : refusals;
  if (naming.length < 2) return first as StepdError;
  const { rpcCode, status, code, field, expected, requestId } = first as StepdError;
  const tensors = [...new Set(naming.flatMap((error) => error.tensors))].sort(compareUtf8).slice(0, MAX_NAMED_TENSORS);
  // The server truncates a long text in each call, so the first call's text is used.
  const [message = ""] = joinedWarnings(naming.map((error) => error.message));
  const [found] = joinedWarnings(naming.map((error) => error.found ?? ""));
  return new StepdError(message, rpcCode, status, { name: code, field, expected, found, tensors, request_id: requestId } as never);
};

/** Returns the first gradient with no parameter of the same name and shape. The server's error names the same gradient. */
const mismatchOf = (params: Readonly<Record<string, Pick<Tensor, "shape">>>, grads: Tensors): string | undefined =>
  Object.keys(grads).find((name) => !Object.hasOwn(params, name) || String(params[name]?.shape) !== String(grads[name]?.shape));

/**
 * Returns the tensor whose learning rate is the step's: the first with the most steps, among tensors with a gradient if there
 * are any.
 */
const lrTensorOf = (infos: TensorInfos, grads: Tensors): string => {
  const own = Object.keys(grads).filter((name) => Object.hasOwn(infos, name));
  const taken = (name: string): number => infos[name]?.step ?? 0;
  return (own.length > 0 ? own : Object.keys(infos)).reduce((most, name) => (taken(name) > taken(most) ? name : most), own[0] ?? Object.keys(infos)[0] ?? "");
};

/** Returns why `cached` does not come from a step in parts; undefined if it does. */
const cachedProblem = (cached: unknown): string | undefined => {
  if (typeof cached !== "object" || cached === null) return describeValue(cached);
  if (Object.keys(cached as object).length === 0) return "an empty one";
  if (!isShards(cached)) return "a Client's, which names all tensors together";
  for (const [index, part] of (cached as readonly (Partial<CachedShard> | null)[]).entries()) {
    const missing = (["tensors", "cached"] as const).find((field) => typeof part?.[field] !== "object" || part[field] === null);
    if (missing) return `no ${missing} in its call ${index}`;
  }
  return undefined;
};

/** Throws TypeError if `cached` does not come from a step in parts, or if a blob is neither named nor passed. */
const requireCached = (cached: readonly CachedShard[], params: Tensors | undefined, state: PartedInput["state"]): void => {
  const problem = cachedProblem(cached);
  if (problem !== undefined) throw new TypeError(`cached: expected that of a ShardedClient's result, found ${problem}`);
  const names = [...new Set(cached.flatMap(({ tensors }) => Object.keys(tensors)))];
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
const zerosOf = (infos: TensorInfos, slices: Slices): Tensors =>
  mapped(infos, ({ shape: whole, dtype }, name) => {
    const range = Object.hasOwn(slices, name) ? slices[name] : undefined;
    const shape = range ? [range[1] - range[0]] : whole;
    const count = elementsOf(shape);
    if (dtype === "F64") return { shape, data: new Float64Array(count) };
    return dtype === "F32" ? { shape, data: new Float32Array(count) } : { shape, data: new Uint16Array(count), dtype };
  });

export const copied = (tensors: Tensors): Tensors => mapped(tensors, (tensor) => ({ ...tensor, data: tensor.data.slice() }));

const bytesIn = (tensors: Tensors): number => Object.values(tensors).reduce((sum, { data }) => sum + data.byteLength, 0);

const mapped = <In, Out>(record: Readonly<Record<string, In>>, change: (value: In, name: string) => Out): Record<string, Out> =>
  Object.fromEntries(Object.entries(record).map(([name, value]) => [name, change(value, name)]));

const pick = <Value>(record: Readonly<Record<string, Value>>, names: ReadonlySet<string>): Record<string, Value> =>
  Object.fromEntries(Object.entries(record).filter(([name]) => names.has(name)));

/**
 * Adds a `state` whose getter throws. The property is not enumerable, so that copying or printing the result does not throw.
 */
export const withoutState = <Result extends object>(result: Result): Result & Pick<StepResult, "state"> =>
  Object.defineProperty(result, "state", {
    get: () => {
      throw new RangeError("state: it stayed on the server (reply.state is none), where cached names it");
    },
  }) as Result & Pick<StepResult, "state">;
