/** Client of one stepd server: MessagePack over `fetch`, in Node and in browsers. */
import { type BodyBlob, bytesIn, CallBlobs, sizeOf } from "./blobs.ts";
import type { CachedStepInput, NormsInput, ReducedStepInput, Reduction, StepInput, StepResult, StepSettings } from "./calls.ts";
import { describeValue, isObject, requireName, requireObject, requireOptions, requireSettings, requireState, requireStep, requireTensors } from "./checks.ts";
import { StepdError } from "./errors.ts";
import { isShards, isSplit, type PartedInput, Splitter, withoutState } from "./parts.ts";
import {
  type DistancesInput,
  distancesOf,
  distancesOnWire,
  type ReduceInput,
  type ReduceResult,
  reduceResultOf,
  requireDistances,
  requireReduce,
} from "./reduce.ts";
import { SharedFolder } from "./shared.ts";
import { State } from "./state.ts";
import { fileParts, type Tensor, toTensorsLike, toTensorsNamed } from "./tensors.ts";
import { type CallOptions, CLIENT_OPTIONS, type ClientOptions, type Read, requireCallOptions, requireConnections, Transport } from "./transport.ts";
import type {
  ConvertParams,
  DescribeResult,
  EvaluateParams,
  EvaluateResult,
  InspectResult,
  ListResult,
  NormsResult,
  PlanParams,
  PlanResult,
  StepResult as WireResult,
} from "./wire.gen.ts";

export interface AverageInput extends Pick<StepInput, "optimizer" | "groups" | "params"> {
  readonly state: State;
}

export interface ConvertInput extends Omit<ConvertParams, "state"> {
  /** A state, or a safetensors file in the convention `from`. */
  readonly state: State | Uint8Array;
}

/** A converted state. */
export interface Conversion {
  /** A safetensors file in the convention `to`. `new State(file)` reads a file in stepd's convention. */
  readonly file: Uint8Array<ArrayBuffer>;
  /** One sentence for each part of the given state that `file` cannot hold. */
  readonly lost: readonly string[];
}

/** Version, kernels, workers and limits of a server. */
export interface ServerInfo {
  readonly name: string;
  readonly version: string;
  readonly node: string;
  readonly kernels: readonly string[];
  readonly workers: number;
  /** The limits in bytes, by name. */
  readonly limits: Readonly<Record<string, number>>;
}

/** Returns the milliseconds of a round trip to a client's server; 0 if unknown. */
export let roundTripOf: (client: Client) => Promise<number>;

const CONNECTIONS = 2;

export class Client {
  readonly #transport: Transport;
  readonly #parts: Splitter;
  readonly #connections: number;
  #folder: SharedFolder | undefined;

  static {
    roundTripOf = (client) => client.#transport.roundTrip();
  }

  /**
   * `url` is the server's root, such as http://127.0.0.1:8080. Several clients may share one `folder`. Throws TypeError for
   * invalid options, and for a `sharedDir` that is not a writable folder.
   */
  constructor(url: string, options: ClientOptions = {}, folder?: SharedFolder) {
    requireOptions(options, CLIENT_OPTIONS);
    const { connections, ...rest } = options;
    this.#transport = new Transport(url, rest);
    const count = connections ?? (this.#transport.isLocal ? 1 : CONNECTIONS);
    requireConnections(count);
    const once = {
      url: this.url,
      step: (input: StepInput | CachedStepInput, options?: CallOptions) => this.#step(input, options),
      norms: (input: NormsInput, options?: CallOptions) => this.norms(input, options),
      reduce: (input: ReduceInput, options?: CallOptions) => this.reduce(input, options),
      distances: (input: DistancesInput, options?: CallOptions) => this.distances(input, options),
    };
    this.#parts = new Splitter(
      (call, options) => call(once, options),
      count,
      undefined,
      () => this.#transport.roundTrip(),
    );
    this.#connections = count;
    this.#folder = folder ?? (options.sharedDir === undefined ? undefined : new SharedFolder(options.sharedDir));
  }

  get url(): string {
    return this.#transport.url;
  }

  /** Removes the client's files from `sharedDir`. Later calls send their bytes in the request. Earlier results stay valid. */
  close(): void {
    this.#folder?.close();
    this.#folder = undefined;
  }

  /**
   * Runs one optimizer step. Throws StepdError or TransportError, and then changes nothing. The error code BLOB_MISSING means
   * that the server has dropped a blob that `cached` names and that the caller did not pass. `reduce` in place of `grads` steps by
   * the pseudo-gradient of updates.
   */
  async step(input: StepInput | CachedStepInput | ReducedStepInput, options?: CallOptions): Promise<StepResult> {
    requireStep(input);
    if ("reduce" in input && input.reduce !== undefined) return this.#step(input, options);
    if (isShards(input.cached) || (this.#connections > 1 && !this.#folder)) {
      requireCallOptions(options ?? {});
      if (isSplit(input, this.url)) return this.#parts.step(input as PartedInput, options ?? {});
    }
    return this.#step(input, options);
  }

  /** Runs a step as one call. */
  async #step(input: StepInput | CachedStepInput | ReducedStepInput, options?: CallOptions): Promise<StepResult> {
    const { params, grads, reduce, state, cached, clip, reply = {}, ...settings } = { reduce: undefined, ...input };
    if (reduce !== undefined) requireReduce(reduce);
    if (cached !== undefined && typeof cached !== "object") throw new TypeError(`cached: expected that of a result, found ${describeValue(cached)}`);
    if (isShards(cached)) throw new TypeError("cached: expected that of a Client's result, found a ShardedClient's, which names parts of the tensors");
    const { params: cachedParams, state: cachedState, grads: cachedGrads } = cached ?? {};
    if (!params && !cachedParams) throw new TypeError("params: expected tensors, or cached with the name of some; found neither");
    const files = { params: params && fileParts(params), grads: grads && fileParts(grads), updates: reduce?.updates.map(({ tensors }) => fileParts(tensors)) };
    return this.#withBlobs([files.params, files.grads, ...(files.updates ?? [])], state, async (blobs) => {
      const reduction = reduce && files.updates && reductionOnWire(reduce, files.updates, blobs);
      const values = {
        params: () => files.params && blobs.put(files.params),
        grads: () => files.grads && blobs.put(files.grads),
        state: () => (state ? blobs.putState(state) : undefined),
      };
      const sources = { params: cachedParams ?? values.params(), grads: cachedGrads ?? values.grads(), state: cachedState ?? values.state() ?? null };
      const into = {
        params: files.params && reply.params !== "none" ? blobs.room(sizeIn(files.params)) : undefined,
        state: state && reply.state !== "none" ? blobs.room(sizeOf(state)) : undefined,
      };
      const read = async (answer: unknown): Promise<StepResult> => {
        const { params: stepped, state: next, ...rest } = answer as WireResult;
        const tensorsIn = (file: Uint8Array): Record<string, Tensor> =>
          params && files.params && !cachedParams && reply.params !== "bf16" ? toTensorsLike(params, files.params, file) : toTensorsNamed(params, file);
        const result = { ...rest, params: reply.params === "none" ? {} : tensorsIn(await blobs.take("params", stepped)) };
        return reply.state === "none" ? withoutState(result) : { ...result, state: blobs.takeState(next) };
      };
      for (;;) {
        const hasPlaces = into.params !== undefined || into.state !== undefined;
        const body = {
          ...settings,
          ...(clip && { clip: clipOnWire(clip) }),
          ...sources,
          reduce: reduction,
          reply: input.reply || hasPlaces ? { ...reply, into: hasPlaces ? into : undefined } : undefined,
        };
        try {
          return await this.#transport.call("/v1/step", body, read, options, blobs.lost);
        } catch (error) {
          const missing = missingBlobOf(error);
          const value = missing && sources[missing] === cached?.[missing] ? values[missing]() : undefined;
          if (missing && value) sources[missing] = value;
          else if (into.state && isTooSmall(error)) {
            into.state = undefined;
            // A state that lies in the folder goes into the request body, because a server without a place for the result would
            // overwrite it.
            if (state && sources.state !== cachedState) sources.state = await blobs.inBody(sources.state as BodyBlob);
          } else throw error;
        }
      }
    });
  }

  /** Returns the state before the first step. */
  async init(input: Pick<StepInput, "optimizer" | "groups" | "params" | "master_weights" | "slices">, options?: CallOptions): Promise<State> {
    requireObject("init", input, "an object with optimizer and params");
    const { params, ...settings } = input;
    requireSettings(settings);
    requireTensors("params", params);
    const file = fileParts(params);
    const read = (reply: unknown): State => new State(bytesIn("state", (reply as { state: unknown }).state));
    return this.#withBlobs([file], null, (blobs) => this.#transport.call("/v1/init", { ...settings, params: blobs.put(file) }, read, options, blobs.lost));
  }

  /** Returns the averaged parameters, with which a model is evaluated. Training goes on with the parameters of the step. */
  async average(input: AverageInput, options?: CallOptions): Promise<Record<string, Tensor>> {
    requireObject("average", input, "an object with optimizer, params and state");
    const { params, state, ...settings } = input;
    requireSettings(settings);
    requireTensors("params", params);
    requireState(state);
    const file = fileParts(params);
    return this.#withBlobs([file], state, (blobs) => {
      const body = { ...settings, params: blobs.put(file), state: blobs.putState(state) };
      const read = (reply: unknown): Record<string, Tensor> => toTensorsLike(params, file, bytesIn("params", (reply as { params: unknown }).params));
      return this.#transport.call("/v1/average", body, read, options, blobs.lost);
    });
  }

  /** Returns the sums of squares of each tensor, for exact clipping over several calls. */
  async norms(input: NormsInput, options?: CallOptions): Promise<NormsResult> {
    requireObject("norms", input, "an object with grads");
    const { grads, params, ...settings } = input;
    requireTensors("grads", grads);
    if (params !== undefined) requireTensors("params", params);
    const files = { grads: fileParts(grads), params: params && fileParts(params) };
    return this.#withBlobs([files.grads, files.params], null, (blobs) => {
      const body = { ...settings, grads: blobs.put(files.grads), params: files.params && blobs.put(files.params) };
      return this.#transport.call("/v1/norms", body, readWith<NormsResult>("tensors"), options, blobs.lost);
    });
  }

  /** Combines the updates of several workers into one pseudo-gradient, for a step. */
  async reduce(input: ReduceInput, options?: CallOptions): Promise<ReduceResult> {
    requireReduce(input);
    const { params, ...reduction } = input;
    const files = input.updates.map(({ tensors }) => fileParts(tensors));
    const paramFile = params && fileParts(params);
    return this.#withBlobs([...files, paramFile], input.accumulator, (blobs) => {
      const body = { ...reductionOnWire(reduction, files, blobs), params: paramFile && blobs.put(paramFile) };
      return this.#transport.call("/v1/reduce", body, (reply) => reduceResultOf(reply, params), options, blobs.lost);
    });
  }

  /**
   * Returns the sum of squared differences between each two updates, in float64. Krum and similar rules select updates by it.
   * Send deltas or gradients: between whole parameters, the rounding of large values hides small differences.
   */
  async distances(input: DistancesInput, options?: CallOptions): Promise<number[][]> {
    requireDistances(input);
    const { updates, distances } = input;
    const files = updates.map(({ tensors }) => fileParts(tensors));
    return this.#withBlobs(files, null, (blobs) => {
      const body = { updates: files.map((file) => ({ tensors: blobs.put(file) })), distances: distances && distancesOnWire(distances) };
      return this.#transport.call("/v1/distances", body, (reply) => distancesOf(reply, updates.length), options, blobs.lost);
    });
  }

  /** Returns the cost of a step in bytes and calls, from shapes and dtypes alone. */
  async plan(params: PlanParams, options?: CallOptions): Promise<PlanResult> {
    requireObject("plan", params, "an object with optimizer and tensors");
    requireSettings(params);
    requireObject("tensors", params.tensors, "shapes by name, such as { w: { shape: [2, 3] } }");
    return this.#transport.call("/v1/plan", params, readWith<PlanResult>("fits"), options);
  }

  /** Returns the contents of a state, as the server reads it. */
  async inspect(state: State | Uint8Array, options?: CallOptions): Promise<InspectResult> {
    requireState(state);
    return this.#withState("/v1/state/inspect", { state }, readWith<InspectResult>("tensors"), options);
  }

  /** Converts a state to or from torch, qhoptim and optax, to another optimizer of its family, or adds slots. */
  async convert(input: ConvertInput, options?: CallOptions): Promise<Conversion> {
    requireObject("convert", input, "an object with state");
    requireState(input.state);
    for (const name of ["from", "to"] as const)
      if (input[name] !== undefined && !isObject(input[name]))
        throw new TypeError(`${name}: expected a convention such as { format: "torch" }, found ${describeValue(input[name])}`);
    const read = (reply: unknown): Conversion => {
      const { state: file, lost } = readWith<{ state: unknown; lost: string[] }>("lost")(reply);
      return { file: bytesIn("state", file), lost };
    };
    return this.#withState("/v1/state/convert", input, read, options);
  }

  /** Returns the learning rates of `count` steps from step `from` on, and the momentums if the schedule cycles them. */
  async evaluateSchedule(params: EvaluateParams, options?: CallOptions): Promise<EvaluateResult> {
    requireObject("evaluateSchedule", params, "an object with schedule");
    requireObject("schedule", params.schedule, 'a schedule such as { name: "cosine", T_max: 1000 }');
    return this.#transport.call("/v1/schedule", params, readWith<EvaluateResult>("lrs"), options);
  }

  /** Returns the name, title and formula of each optimizer of the server. */
  async optimizers(options?: CallOptions): Promise<ListResult["optimizers"]> {
    return (await this.#transport.call("/v1/optimizers", undefined, readWith<ListResult>("optimizers"), options)).optimizers;
  }

  /** Returns one optimizer's formula, references, hyperparameters, slots and cost. */
  async describe(name: string, options?: CallOptions): Promise<DescribeResult> {
    requireName("name", name);
    return this.#transport.call(`/v1/optimizers/${encodeURIComponent(name)}`, undefined, readWith<DescribeResult>("formula"), options);
  }

  /** Returns the server's version, kernels, workers and limits. */
  async info(options?: CallOptions): Promise<ServerInfo> {
    return this.#transport.call("/v1", undefined, readWith<ServerInfo>("limits"), options);
  }

  /** Returns whether the server accepts calls; false if it is unreachable. Asks once, without retries. */
  async isReady(options: CallOptions = {}): Promise<boolean> {
    return this.#transport.isOk("/health/ready", options);
  }

  /** Runs a call with the blobs of `files` and `state`, and releases the blobs afterwards. */
  async #withBlobs<Result>(
    files: readonly (ReturnType<typeof fileParts> | undefined)[],
    state: State | Uint8Array | null | undefined,
    call: (blobs: CallBlobs) => Promise<Result>,
  ): Promise<Result> {
    const bytes = files.reduce((sum, file) => sum + (file ? sizeIn(file) : 0), sizeOf(state));
    const blobs = new CallBlobs(this.#folder, bytes);
    try {
      return await call(blobs);
    } finally {
      blobs.release();
    }
  }

  #withState<Result>(path: string, { state, ...settings }: { state: State | Uint8Array }, read: Read<Result>, options?: CallOptions): Promise<Result> {
    return this.#withBlobs([], state, (blobs) => this.#transport.call(path, { ...settings, state: blobs.putState(state) }, read, options, blobs.lost));
  }
}

/** Returns a reduction's fields on the wire. `files` are those of its updates. */
const reductionOnWire = ({ updates, accumulator, ...settings }: Reduction, files: readonly ReturnType<typeof fileParts>[], blobs: CallBlobs) => ({
  ...settings,
  updates: files.map((file, index) => ({ tensors: blobs.put(file), weight: updates[index]?.weight })),
  accumulator: accumulator && blobs.put([accumulator as Uint8Array<ArrayBuffer>]),
});

/** Encodes an infinite or NaN norm as a string. The schema allows no such number, even in MessagePack. */
const clipOnWire = (clip: NonNullable<StepSettings["clip"]>): typeof clip =>
  typeof clip.total_norm !== "number" || Number.isFinite(clip.total_norm) ? clip : { ...clip, total_norm: String(clip.total_norm) as "NaN" | "Infinity" };

const sizeIn = (parts: readonly Uint8Array[]): number => parts.reduce((sum, { length }) => sum + length, 0);

/** Returns which blob the server has dropped from its cache; undefined for any other error. */
const missingBlobOf = (error: unknown): "params" | "grads" | "state" | undefined =>
  error instanceof StepdError && error.code === "BLOB_MISSING"
    ? (["params", "grads", "state"] as const).find((field) => error.field === `/${field}`)
    : undefined;

/** Returns whether the new state was larger than its place. An optimizer may add slots after the first step. */
const isTooSmall = (error: unknown): boolean => error instanceof StepdError && error.code === "INVALID_PARAMS" && error.field === "/reply/into/state/length";

/** Returns a function that accepts a reply if it has `member`, which only replies of this method have. */
const readWith =
  <Result>(member: keyof Result & string) =>
  (reply: unknown): Result => {
    if (typeof reply === "object" && reply !== null && Object.hasOwn(reply, member)) return reply as Result;
    throw new RangeError(`expected an object with ${member}`);
  };
