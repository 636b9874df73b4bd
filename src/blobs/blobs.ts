/** Resolves references to blobs: a call can name a file or a cached blob instead of sending bytes. Results can go to a file or the cache. */
import type { Lease, RetainedBlob } from "../arena/arena.ts";
import type { Mapping } from "../codec/members.ts";
import { Parts } from "../codec/parts.ts";
import { StepdError } from "../errors/errors.ts";
import type { BlobSource, CachedBlob, NormsParams, PlainTensor, SharedBlob, StepParams, TensorsSource, Update } from "../generated/wire.gen.ts";
import type { CachedResult, ResultCache } from "./cache.ts";
import { allSettled, type SharedFolder, type SharedRange } from "./shared.ts";

export { ResultCache } from "./cache.ts";
export { SharedFolder } from "./shared.ts";

type PlainTensors = Mapping<PlainTensor>;

/** A call whose blob references are replaced by their bytes in the lease. */
type Loaded<Call> = {
  readonly [Field in keyof Call]: Field extends BlobField
    ? Exclude<Call[Field], SharedBlob | CachedBlob> | RetainedBlob
    : Field extends "updates"
      ? readonly LoadedUpdate[]
      : Field extends "reduce"
        ? Loaded<NonNullable<Call[Field]>> | Extract<Call[Field], undefined>
        : Call[Field];
};

interface LoadedUpdate extends Omit<Update, "tensors"> {
  readonly tensors: Exclude<TensorsSource, SharedBlob | CachedBlob> | RetainedBlob;
}

type BlobField = (typeof FIELDS)[number];

/** These fields of a call may be blobs, and so may the tensors of updates. */
const FIELDS = ["params", "grads", "state", "accumulator"] as const;

interface BlobFields {
  readonly params?: TensorsSource;
  readonly grads?: TensorsSource;
  readonly state?: BlobSource | null;
  readonly accumulator?: BlobSource | null;
  readonly updates?: readonly Update[];
  readonly reduce?: BlobFields;
}

/** A blob reference of a call, with the JSON pointer of its field. */
interface Reference {
  readonly field: string;
  readonly source: SharedBlob | CachedBlob;
}

/** At most this many references are read at once, because each file holds an open descriptor. */
const MAX_OPEN = 64;

interface StepResult {
  readonly params: Parts | PlainTensors;
  /** The parameters rounded to BF16, if the call requests them. */
  readonly rounded?: Parts | PlainTensors | undefined;
  readonly state: Parts;
  /** True if the caller can recover the new parameters from the rounded ones or from the state. */
  readonly isRecoverable: boolean;
  /** The known digests of the whole parameters and the state. */
  readonly digests?: Readonly<Record<string, string>> | undefined;
}

/** The fields of the reply that contain the result or name its place. */
interface ResultFields {
  readonly params?: Parts | PlainTensors | SharedBlob;
  readonly state?: Parts | SharedBlob;
  readonly cached?: { readonly params?: CachedBlob; readonly state?: CachedBlob };
}

const isSharedBlob = (source: unknown): source is SharedBlob => typeof (source as { file?: unknown } | null | undefined)?.file === "string";

const isCachedBlob = (source: unknown): source is CachedBlob => typeof (source as { handle?: unknown } | null | undefined)?.handle === "string";

const isReference = (source: unknown): source is SharedBlob | CachedBlob => isSharedBlob(source) || isCachedBlob(source);

/** Lists the blob references of a call. */
const referencesOf = (call: BlobFields, prefix = ""): readonly Reference[] => {
  const found: Reference[] = [];
  const add = (field: string, source: unknown): void => {
    if (isReference(source)) found.push({ field: prefix + field, source });
  };
  for (const field of FIELDS) add(`/${field}`, call[field]);
  for (const [index, { tensors }] of call.updates?.entries() ?? []) add(`/updates/${index}/tensors`, tensors);
  return call.reduce ? [...found, ...referencesOf(call.reduce, `${prefix}/reduce`)] : found;
};

/** Copies a call with its blob references replaced by bytes. */
const withLoaded = <Call extends BlobFields>(call: Call, loaded: ReadonlyMap<string, Uint8Array | RetainedBlob>, prefix = ""): Loaded<Call> => {
  const fields = FIELDS.flatMap((field) => {
    const blob = loaded.get(`${prefix}/${field}`);
    return blob ? [[field, blob] as const] : [];
  });
  return {
    ...call,
    ...Object.fromEntries(fields),
    ...(call.updates && {
      updates: call.updates.map((update, index) => ({ ...update, tensors: loaded.get(`${prefix}/updates/${index}/tensors`) ?? update.tensors })),
    }),
    ...(call.reduce && { reduce: withLoaded(call.reduce, loaded, `${prefix}/reduce`) }),
  } as unknown as Loaded<Call>;
};

/** Resolves the blob references of one request. */
export class Blobs {
  readonly #folder: SharedFolder | undefined;
  readonly #cache: ResultCache | undefined;
  readonly #caller: string | undefined;
  readonly #cacheLimit: number | undefined;
  /** The cached results that the call names. */
  readonly #sources = new Set<CachedResult>();
  /** The seconds spent on files and the cache. */
  seconds = 0;

  /** `caller` is the name of the request's token. Calls that reference files need `folder`; calls that reference cached blobs need `cache`. */
  /** The results of `caller` take at most `cacheLimit` bytes of the cache. */
  constructor(folder: SharedFolder | undefined, cache: ResultCache | undefined, caller: string | undefined, cacheLimit?: number) {
    this.#folder = folder;
    this.#cache = cache;
    this.#caller = caller;
    this.#cacheLimit = cacheLimit;
  }

  /** Reads all referenced blobs into the lease. Throws INVALID_PARAMS or BLOB_MISSING with the field, or an error of the arena. */
  load<Call extends BlobFields>(call: Call, lease: Lease): Loaded<Call> | Promise<Loaded<Call>> {
    const references = referencesOf(call);
    if (references.length === 0) return call as unknown as Loaded<Call>;
    return this.#timed(async () => {
      const loaded = new Map<string, Uint8Array | RetainedBlob>();
      for (let at = 0; at < references.length; at += MAX_OPEN)
        for (const [field, blob] of await this.#load(references.slice(at, at + MAX_OPEN), lease)) loaded.set(field, blob);
      return withLoaded(call, loaded);
    });
  }

  /**
   * Opens the destination of a step's result, runs the step, and delivers its result. Throws INVALID_PARAMS, before the step, if
   * the server cannot deliver there.
   */
  async deliver<Output extends StepResult>(
    call: Pick<StepParams, "params" | "state" | "reply">,
    lease: Lease,
    step: () => Promise<Output>,
  ): Promise<{ readonly delivered: ResultFields; readonly result: Output }> {
    if (call.reply === undefined && !isSharedBlob(call.params) && !isSharedBlob(call.state)) {
      const result = await step();
      return { delivered: { params: result.params, state: result.state }, result };
    }
    await using delivery = await this.#openDelivery(call, lease);
    const result = await step();
    return { delivered: await delivery.deliver(result), result };
  }

  /**
   * Returns gradients that a later step can read: a copy if this call changes them. Returns undefined if the server keeps no blobs, if
   * the gradients are no blob of this call, or if they exceed the cache.
   */
  unchangedGrads(grads: Loaded<NormsParams>["grads"], isChanged: boolean, lease: Lease): Uint8Array | undefined {
    if (!this.#cache || !(grads instanceof Uint8Array) || grads.length > this.#cache.capacity) return undefined;
    return isChanged ? new Parts([grads]).joinInto(lease.view(lease.alloc(grads.length), grads.length)) : grads;
  }

  /** Keeps gradients for the step that follows, and returns their handle by field. */
  async keepGrads(grads: Uint8Array, lease: Lease): Promise<{ readonly grads?: CachedBlob }> {
    const kept = await this.#cache?.keep({ grads: new Parts([grads]) }, [], this.#caller, lease);
    return Object.fromEntries(Object.entries(kept ?? {}).map(([field, handle]) => [field, { handle }]));
  }

  /** Frees gradients that a call of optimizer.norms has kept and a finished step has used. */
  releaseGrads({ grads }: Pick<StepParams, "grads">): void {
    if (isCachedBlob(grads)) this.#cache?.releaseGrads(grads.handle, this.#caller);
  }

  async #openDelivery({ params, state, reply = {} }: Pick<StepParams, "params" | "state" | "reply">, lease: Lease): Promise<Delivery> {
    if (reply.state === "none" && reply.cache !== true) {
      throw StepdError.mismatch("INVALID_PARAMS", "/reply/cache", "true, because without it the new state would be lost (reply.state is none)", "false");
    }
    if (reply.state === "none" && !this.#cache) {
      throw StepdError.mismatch("INVALID_PARAMS", "/reply/state", "same: this server keeps nothing (STEPD_CACHE_MIB is 0)", "none");
    }
    if (reply.params === "bf16" && isSharedBlob(params) && !reply.into?.params) {
      throw StepdError.mismatch("INVALID_PARAMS", "/reply/into/params", "a place for the rounded parameters, which must not lie over the whole ones", "none");
    }
    const ranges: { params?: SharedRange; state?: SharedRange } = {};
    const cache = reply.cache === true ? this.#cache : undefined;
    const keeper = cache && {
      capacity: cache.capacity,
      keep: (blobs: Readonly<Record<string, Parts>>, digests: Digests) => cache.keep(blobs, [...this.#sources], this.#caller, lease, digests, this.#cacheLimit),
    };
    const delivery = new Delivery(reply, ranges, keeper, (work) => this.#timed(work));
    try {
      for (const [field, source] of [["params", params] as const, ["state", state] as const]) {
        const into = reply.into?.[field];
        const target = into ?? (isSharedBlob(source) ? source : undefined);
        if (target && reply[field] !== "none") ranges[field] = await this.#open(target, "write", `${into ? "/reply/into" : ""}/${field}`);
      }
      requireDisjoint(ranges);
    } catch (error) {
      await delivery[Symbol.asyncDispose]();
      throw error;
    }
    return delivery;
  }

  async #load(references: readonly Reference[], lease: Lease): Promise<readonly (readonly [field: string, blob: Uint8Array | RetainedBlob])[]> {
    const ranges = new Map<string, SharedRange>();
    try {
      const cached = references.flatMap(({ field, source }) => (isCachedBlob(source) ? [[field, this.#findCached(source, field, lease)] as const] : []));
      for (const { field, source } of references) if (isSharedBlob(source)) ranges.set(field, await this.#open(source, "read", field));
      let start = ranges.size === 0 ? 0 : lease.allocInput([...ranges.values()].reduce((sum, { blob }) => sum + blob.length, 0));
      const reads = [...ranges].map(([field, range]) => {
        const { length } = range.blob;
        start += length;
        return { field, view: lease.view(start - length, length), read: range.read(lease.bytes, start - length) };
      });
      await allSettled(reads.map(({ read }) => read));
      return [...cached, ...reads.map(({ field, view }) => [field, view] as const)];
    } finally {
      await Promise.all([...ranges.values()].map((range) => range[Symbol.asyncDispose]()));
    }
  }

  #findCached({ handle }: CachedBlob, field: string, lease: Lease): RetainedBlob {
    const found = this.#cache?.get(handle, this.#caller, lease);
    if (!found) throw StepdError.mismatch("BLOB_MISSING", field, "the handle of a blob that this server still has; send the blob", handle);
    this.#sources.add(found.result);
    return found.blob;
  }

  async #timed<T>(work: () => Promise<T> | T): Promise<T> {
    const start = performance.now();
    try {
      return await work();
    } finally {
      this.seconds += (performance.now() - start) / 1000;
    }
  }

  async #open(blob: SharedBlob, use: "read" | "write", field: string): Promise<SharedRange> {
    if (!this.#folder) throw StepdError.mismatch("INVALID_PARAMS", field, "a blob: this server shares no folder (STEPD_SHARED_DIR)", "a file");
    return this.#folder.open(blob, use, field, this.#caller);
  }
}

/** Throws INVALID_PARAMS if parameters and state go to overlapping ranges of one file. */
const requireDisjoint = ({ params, state }: { readonly params?: SharedRange; readonly state?: SharedRange }): void => {
  if (!params || !state || params.blob.file !== state.blob.file) return;
  const [a, b] = [params.blob, state.blob];
  if (a.offset >= b.offset + b.length || b.offset >= a.offset + a.length) return;
  throw StepdError.mismatch(
    "INVALID_PARAMS",
    state.field,
    "a place apart from that of the parameters",
    `${b.offset} to ${b.offset + b.length} of the same file`,
  );
};

type Digests = StepResult["digests"];

/** Keeps blobs of this call in the cache. */
interface Keeper {
  readonly capacity: number;
  keep(blobs: Readonly<Record<string, Parts>>, digests: Digests): ReturnType<ResultCache["keep"]>;
}

type Timed = <T>(work: () => Promise<T> | T) => Promise<T>;

/** The destination of a step's result, as the call's `reply` field requests: files, the cache, or the reply. */
class Delivery implements AsyncDisposable {
  readonly #reply: NonNullable<StepParams["reply"]>;
  readonly #ranges: { readonly params?: SharedRange; readonly state?: SharedRange };
  readonly #keeper: Keeper | undefined;
  readonly #timed: Timed;

  constructor(
    reply: NonNullable<StepParams["reply"]>,
    ranges: { readonly params?: SharedRange; readonly state?: SharedRange },
    keeper: Keeper | undefined,
    timed: Timed,
  ) {
    this.#reply = reply;
    this.#ranges = ranges;
    this.#keeper = keeper;
    this.#timed = timed;
  }

  /** Delivers the result of a finished step. Returns the fields of the reply that contain it or name its place. */
  deliver(result: StepResult): Promise<ResultFields> {
    const isPlain = !this.#keeper && !this.#ranges.params && !this.#ranges.state;
    return isPlain ? this.#deliver(result) : this.#timed(() => this.#deliver(result));
  }

  async #deliver({ params: whole, rounded, state, isRecoverable, digests }: StepResult): Promise<ResultFields> {
    const { params: form = "same", state: stateForm = "same" } = this.#reply;
    const params = form === "none" ? undefined : (rounded ?? whole);
    if (params !== undefined && this.#ranges.params && !(params instanceof Parts)) {
      throw StepdError.mismatch("INVALID_PARAMS", "/reply/into/params", "params as a blob or a file beside it", "tensors by name");
    }
    // A failed check must leave the files unchanged, so all checks come before the first write.
    if (params instanceof Parts) this.#ranges.params?.requireRoom(params.length);
    this.#ranges.state?.requireRoom(state.length);
    const cached = this.#keeper && (await this.#keep(this.#keeper, whole, state, digests));
    if (stateForm === "none" && !cached?.state) throw notCachedError("state", state.length, this.#keeper?.capacity ?? 0);
    // A caller without reply.cache has chosen to discard the full-precision parameters.
    if (this.#reply.cache === true && form !== "same" && !isRecoverable && !cached?.params) throw this.#paramsLost(whole, state, form);
    const writeResult = (field: "params" | "state", result: Parts | PlainTensors | undefined) =>
      result instanceof Parts && this.#ranges[field] ? this.#ranges[field].write(result) : result;
    const [newParams, newState] = await allSettled([writeResult("params", params), writeResult("state", stateForm === "none" ? undefined : state)]);
    return {
      ...(newParams !== undefined && { params: newParams }),
      ...(newState !== undefined && { state: newState as Parts | SharedBlob }),
      ...(cached && { cached }),
    };
  }

  async #keep({ capacity, keep }: Keeper, params: Parts | PlainTensors, state: Parts, digests: Digests): Promise<NonNullable<ResultFields["cached"]>> {
    // If both do not fit together, only the state is kept, because it is larger.
    const fits = params instanceof Parts && params.length + state.length <= capacity;
    const handles = await keep(fits ? { params, state } : { state }, digests).catch((error) => {
      // A StepdError means that the arena has no room for a copy.
      if (!(error instanceof StepdError)) throw error;
    });
    return Object.fromEntries(Object.entries(handles ?? {}).map(([field, handle]) => [field, { handle }]));
  }

  /** Creates the error for new parameters that would be lost because neither the reply nor the cache contains them. */
  #paramsLost(params: Parts | PlainTensors, state: Parts, form: string): StepdError {
    if (this.#keeper && params instanceof Parts) return notCachedError("params", params.length + state.length, this.#keeper.capacity);
    const expected = "same, because the new parameters would be lost: kept are those that come as a blob, on a server with a cache";
    return StepdError.mismatch("INVALID_PARAMS", "/reply/params", expected, form);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.#ranges.params, this.#ranges.state].map((place) => place?.[Symbol.asyncDispose]()));
  }
}

const notCachedError = (what: "params" | "state", bytes: number, capacity: number): StepdError =>
  bytes > capacity
    ? StepdError.mismatch(
        "PAYLOAD_TOO_LARGE",
        `/reply/${what}`,
        `at most ${capacity} bytes of results, what this server's cache holds, or same`,
        `${bytes} bytes`,
      )
    : new StepdError("OVERLOADED", "The arena has no room to keep this result now", { field: `/reply/${what}`, retry_after: 1 });
