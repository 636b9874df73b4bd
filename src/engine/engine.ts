/** The engine runs steps, computes norms, estimates costs and reads states. The tensors are in a lease of the arena. */
import { LRUCache } from "lru-cache";
import { type Lease, RetainedBlob } from "../arena/arena.ts";
import type { Parts } from "../codec/parts.ts";
import { headerEnd, readSafetensorsInTurns } from "../codec/safetensors.ts";
import { CHEAP_ITEMS_PER_YIELD, inTurns, type Run, SerialQueue, type Task } from "../codec/turns.ts";
import type { AverageParams, DistancesParams, InitParams, NormsParams, PlanParams, ReduceParams, StepParams } from "../generated/wire.gen.ts";
import type { Pool } from "../pool/pool.ts";
import { average } from "./average.ts";
import { canonicalText } from "./canonical.ts";
import { copyRest } from "./copies.ts";
import { distances } from "./distances.ts";
import { type Estimate, estimate } from "./estimate.ts";
import { init } from "./init.ts";
import { compile, type Layout, layoutBytes, type StepOptions } from "./layout.ts";
import { type Matched, match, matchedBytes } from "./match.ts";
import { convertMoments, planMoments } from "./moments.ts";
import { type Norms, norms } from "./norms.ts";
import { type Reduced, type ReduceFiles, reduce, type Update } from "./reduce.ts";
import type { StepReport } from "./report.ts";
import type { QueueTime } from "./runner.ts";
import { readState, type State } from "./state.ts";
import { type Progress, type RetainedFiles, readProgress, runStep, type StepFiles, type StepOutput } from "./step.ts";
import {
  type BlobInput,
  beginCopy,
  filePieces,
  headerKey,
  loadBlob,
  loadTensors,
  MIN_ENTRY_BYTES,
  type ReplyTensors,
  readTensors,
  reservePlainTensors,
  type TensorFile,
  type Tensors,
} from "./tensors.ts";

export type { Lease } from "../arena/arena.ts";
export { planOf } from "./plan.ts";
export { encodeGrads, type Reduced } from "./reduce.ts";
export type { QueueTime } from "./runner.ts";
export { EMA, STATE_FORMAT, type State } from "./state.ts";
export type { StepOutput } from "./step.ts";
export { filePieces } from "./tensors.ts";

/** A call after its blob references are resolved. */
export type Loaded<Call> = {
  readonly [Field in keyof Call]: Field extends "params" | "grads"
    ? Tensors | Extract<Call[Field], undefined>
    : Field extends "state" | "accumulator"
      ? BlobInput | null
      : Field extends "updates"
        ? readonly LoadedUpdate[]
        : Field extends "reduce"
          ? Loaded<NonNullable<Call[Field]>> | Extract<Call[Field], undefined>
          : Call[Field];
};

interface LoadedUpdate {
  readonly tensors: Tensors;
  readonly weight?: number;
}

/** The cache of headers and layouts takes at most this many bytes of heap. */
const CACHE_BYTES = 2 ** 26;

/** Headers above this length are not cached. */
const MAX_HEADER_BYTES = CACHE_BYTES / 16;

/** Calls with more than this many tensors run one at a time. */
const MANY_TENSORS = 4096;

/** The cache keeps this many layouts for the same headers, because a trainer may change an option at every step. */
const MAX_LAYOUTS = 8;

/** Layouts with option keys above this length are not cached, because serializing long lists of names would block the main thread. */
const MAX_OPTIONS_KEY_LENGTH = 2 ** 20;

/** This many base64 characters contain the length field of a safetensors header. */
const LENGTH_FIELD_CHARACTERS = 12;

/** A cache entry for calls whose files have equal headers. */
interface CacheEntry {
  readonly matched: Matched;
  /** Maps the serialized options of a call to its layout. */
  readonly layouts: LRUCache<string, Layout>;
}

/** A layout, and the tensors from which it was compiled. */
interface Compiled {
  readonly matched: Matched;
  readonly layout: Layout;
}

/** The cache of small calls takes at most this many bytes of heap. */
const SMALL_CALL_CACHE_BYTES = 2 ** 23;
/** Larger layouts are not cached by template. */
const MAX_SMALL_CALL_BYTES = 2 ** 16;

export class Engine {
  readonly #pool: Pool;
  readonly #arenaBytes: number;
  /** Maps the headers of a call's files to their cache entry. */
  readonly #cache = new LRUCache<string, CacheEntry>({
    maxSize: CACHE_BYTES,
    sizeCalculation: ({ matched, layouts }, key) => key.length + matchedBytes(matched) + sum(layouts, ([options, layout]) => layoutBytes(layout, options)),
  });

  /** Maps the template of a small call's body to its layout. Comparing headers takes less time than building the other cache's keys. */
  readonly #recent = new LRUCache<object, Compiled & { readonly headers: readonly FileHeader[] }>({ maxSize: SMALL_CALL_CACHE_BYTES });

  /** Runs calls with many tensors one at a time, because their peak memory is several times that of their cache entry. */
  readonly #largeCalls = new SerialQueue();
  /** Runs the long tasks of all other calls one at a time. */
  readonly #longTasks = new SerialQueue();

  constructor(pool: Pool, arenaBytes: number) {
    this.#pool = pool;
    this.#arenaBytes = arenaBytes;
  }

  /** Runs one step. docs/wire-format.md lists its errors under optimizer.step. */
  async step(
    { params, grads, reduce: reduction, state = null, receipt: _, ...options }: Loaded<StepParams>,
    lease: Lease,
    queueTime: QueueTime,
    template?: object,
    digests?: InputDigests,
  ): Promise<StepOutput> {
    // The reduction needs whole parameters, so these are copied before it.
    const retained: RetainedFiles = {
      params: params instanceof RetainedBlob && !reduction ? params.bytes : undefined,
      state: state instanceof RetainedBlob ? state.bytes : undefined,
    };
    const paramFile = retained.params
      ? { bytes: beginCopy(retained.params, "TENSORS_CORRUPT", lease), plain: undefined }
      : await loadTensors(params, "/params", lease);
    const reduced = reduction && (await this.#reduce(reduction, "/reduce", paramFile, lease, queueTime, digests));
    const stateFile = async (): Promise<Buffer | undefined> => {
      if (retained.state) return beginCopy(retained.state, "STATE_CORRUPT", lease);
      return state === null ? undefined : inTurns(loadBlob(state, "/state", "STATE_CORRUPT", lease));
    };
    const files: StepFiles = {
      params: paramFile,
      grads: reduced?.grads ?? (await loadTensors(grads as Tensors, "/grads", lease)),
      gradsField: reduced ? "/reduce" : "/grads",
      state: await stateFile(),
      retained,
    };
    if (digests) {
      await addInput(digests, "/params", params, files.params);
      if (!reduced) await addInput(digests, "/grads", grads, files.grads);
      if (files.state) await addInput(digests, "/state", state, { bytes: files.state, plain: undefined });
      // The step overwrites its inputs.
      await digests.inputsHashed();
    }
    const isLarge = hasManyTensors(files.params) || hasManyTensors(files.grads);
    // Bodies with the same template may have updates of other tensors, and so other gradients.
    const output = await this.#runCall(isLarge, (run) => this.#step(options, files, reduced ? undefined : template, lease, queueTime, run));
    return reduced ? { ...output, reduced, report: withReduceReport(output.report, reduced) } : output;
  }

  async #step(options: StepOptions, files: StepFiles, template: object | undefined, lease: Lease, queueTime: QueueTime, run: Run): Promise<StepOutput> {
    const recent = template && this.#recent.get(template);
    const { matched, layout } = recent && isCompiledFor(files, recent.headers) ? recent : await this.#layoutOf(options, files, template, run);
    if (files.retained.params || files.retained.state) await inTurns(copyRest(layout, files));
    const progress = await inTurns(readProgress(layout, files.state));
    // A layout contains the momentum. A schedule that cycles the momentum needs a new layout for this step.
    const current = (await inTurns(changesHyperparameters(layout, progress))) ? await run(this.#compile(options, matched, progress)) : layout;
    return runStep(current, progress, files, lease, this.#pool, queueTime);
  }

  /** Finds the layout of a step in the cache, or compiles it. */
  async #layoutOf(options: StepOptions, files: StepFiles, template: object | undefined, run: Run): Promise<Compiled> {
    const headers = headersKey(files);
    const entry = (headers === undefined ? undefined : this.#cache.get(headers)) ?? (await this.#match(files, headers, run));
    const { matched, layouts } = entry;
    const key = canonicalText(options, MAX_OPTIONS_KEY_LENGTH);
    let layout = key === undefined ? undefined : layouts.get(key);
    if (!layout) {
      layout = await run(this.#compile(options, matched));
      if (key !== undefined) layouts.set(key, layout);
      // The cache recomputes an entry's size only for a new object, so this sets a copy.
      if (headers !== undefined && key !== undefined) this.#cache.set(headers, { ...entry });
    }
    if (template && headers !== undefined && key !== undefined) {
      const size = headers.length + matchedBytes(matched) + layoutBytes(layout, key);
      if (size <= MAX_SMALL_CALL_BYTES) this.#recent.set(template, { matched, layout, headers: filesOf(files).map(fileHeaderOf) }, { size });
    }
    return { matched, layout };
  }

  async #match(files: StepFiles, key: string | undefined, run: Run): Promise<CacheEntry> {
    const entry: CacheEntry = { matched: await run(matchHeaders(files)), layouts: new LRUCache({ max: MAX_LAYOUTS }) };
    if (key !== undefined) this.#cache.set(key, entry);
    return entry;
  }

  #compile(options: StepOptions, matched: Matched, progress?: Progress): Task<Layout> {
    const values = progress?.rates.map((rates) => rates.values);
    return compile(options, matched, (name) => this.#pool.kernel(name), values);
  }

  /** Creates the state before the first step: initial values and step 0 for all parameters. */
  async init({ params, ...options }: Loaded<InitParams>, lease: Lease, queueTime: QueueTime, digests?: InputDigests): Promise<Parts> {
    const file = await loadTensors(params, "/params", lease);
    if (digests) await addInput(digests, "/params", params, file);
    return this.#runCall(hasManyTensors(file), (run) => init(options, file, lease, this.#pool, queueTime, run));
  }

  /** Computes the averaged parameters, with which a model is evaluated. */
  async average({ params, state, ...options }: Loaded<AverageParams>, lease: Lease, queueTime: QueueTime): Promise<ReplyTensors> {
    const paramFile = await loadTensors(params, "/params", lease);
    const stateFile = await inTurns(loadBlob(state as BlobInput, "/state", "STATE_CORRUPT", lease));
    return this.#runCall(hasManyTensors(paramFile), (run) => average(options, paramFile, stateFile, lease, this.#pool, queueTime, run));
  }

  /** Computes sums of squares by tensor, for exact clipping over several calls. */
  async norms({ grads, params, ...options }: Loaded<NormsParams>, lease: Lease, queueTime: QueueTime, digests?: InputDigests): Promise<Norms> {
    const gradFile = await loadTensors(grads, "/grads", lease);
    const paramFile = params === undefined ? undefined : await loadTensors(params, "/params", lease);
    if (digests) {
      await addInput(digests, "/grads", grads, gradFile);
      if (paramFile) await addInput(digests, "/params", params, paramFile);
      // A loss scale divides the gradients in place.
      await digests.inputsHashed();
    }
    const isLarge = hasManyTensors(gradFile) || (paramFile !== undefined && hasManyTensors(paramFile));
    return this.#runCall(isLarge, (run) => norms(gradFile, paramFile, options, lease, this.#pool, queueTime, run));
  }

  /** Combines the updates of several clients into one pseudo-gradient. */
  async reduce({ params, ...reduction }: Loaded<ReduceParams>, lease: Lease, queueTime: QueueTime, digests?: InputDigests): Promise<Reduced> {
    const paramFile = params === undefined ? undefined : await loadTensors(params, "/params", lease);
    if (digests && paramFile) await addInput(digests, "/params", params, paramFile);
    return this.#reduce(reduction, "", paramFile, lease, queueTime, digests);
  }

  /** Combines updates. `prefix` is the JSON pointer of the reduction's fields. */
  async #reduce(
    { updates, accumulator = null, ...options }: Loaded<Omit<ReduceParams, "params">>,
    prefix: string,
    params: TensorFile | undefined,
    lease: Lease,
    queueTime: QueueTime,
    digests?: InputDigests,
  ): Promise<Reduced> {
    const loaded: Update[] = [];
    for (const [index, { tensors, weight = 1 }] of updates.entries()) {
      const field = `${prefix}/updates/${index}/tensors`;
      const file = await loadTensors(tensors, field, lease);
      if (digests) await addInput(digests, field, tensors, file);
      loaded.push({ file, weight });
    }
    const sum = accumulator === null ? undefined : await inTurns(loadBlob(accumulator, `${prefix}/accumulator`, "STATE_CORRUPT", lease));
    if (digests && sum) await addInput(digests, `${prefix}/accumulator`, accumulator, { bytes: sum, plain: undefined });
    const files: ReduceFiles = { prefix, params, updates: loaded, accumulator: sum };
    const isLarge = loaded.reduce((total, { file }) => total + maxTensors(file), params ? maxTensors(params) : 0) > MANY_TENSORS;
    return this.#runCall(isLarge, (run) => reduce(options, files, lease, this.#pool, queueTime, run));
  }

  /** Computes the squared distances between updates. */
  async distances({ updates, distances: earlier }: Loaded<DistancesParams>, lease: Lease, queueTime: QueueTime): Promise<number[][]> {
    const files: TensorFile[] = [];
    for (const [index, { tensors }] of updates.entries()) files.push(await loadTensors(tensors, `/updates/${index}/tensors`, lease));
    const isLarge = files.reduce((total, file) => total + maxTensors(file), 0) > MANY_TENSORS;
    return this.#runCall(isLarge, (run) => distances(files, earlier, lease, this.#pool, queueTime, run));
  }

  /** Estimates the cost of a step on this server. */
  async plan(call: PlanParams, lease: Lease): Promise<Estimate> {
    const count = Object.keys(call.tensors).length;
    reservePlainTensors(count, lease);
    return this.#runCall(count > MANY_TENSORS, async (run) => run(estimate(call, (name) => this.#pool.kernel(name), this.#arenaBytes)));
  }

  /** Reads a state. Throws STATE_CORRUPT. */
  async inspect(state: BlobInput, lease: Lease): Promise<State> {
    return this.withState(state, (run) => run(loadState(state, lease)));
  }

  /** Converts the moments of a state to the format of `stateDtype`. Throws UNSUPPORTED_DTYPE. */
  async convertMoments(state: State, stateDtype: string, lease: Lease, queueTime: QueueTime, run: Run): Promise<void> {
    const targets = await run(planMoments(state, stateDtype, lease, this.#pool));
    if (targets.length > 0) await convertMoments(targets, lease, this.#pool, queueTime);
  }

  /** Runs a call on a state. A state with many tensors waits for other large calls. */
  async withState<T>(state: BlobInput, call: (run: Run) => Promise<T> | T): Promise<T> {
    const file =
      state instanceof RetainedBlob ? state.bytes : typeof state === "string" ? Buffer.from(state.slice(0, LENGTH_FIELD_CHARACTERS), "base64") : state;
    const head = Buffer.from(file.buffer, file.byteOffset, file.byteLength);
    return this.#runCall(hasManyTensors({ bytes: head, plain: undefined }), async (run) => call(run));
  }

  /** Runs a call. Large calls run one at a time. */
  #runCall<T>(isLarge: boolean, call: (run: Run) => Promise<T>): Promise<T> {
    return isLarge ? this.#largeCalls.runCall(() => call(inTurns)) : call((work) => this.#longTasks.run(work));
  }
}

/** Hashes the inputs of a call for its receipt. */
export interface InputDigests {
  /** Starts to hash an input. `blob` may know its digest already, and remembers it. */
  addInput(field: string, pieces: readonly Uint8Array[], blob?: RetainedBlob): void;
  /** Resolves when all inputs are hashed. */
  inputsHashed(): Promise<void>;
}

/** Adds an input as it was given, or else as it was loaded. The copy of a retained blob may be incomplete at this time. */
const addInput = async (digests: InputDigests, field: string, given: unknown, loaded: TensorFile): Promise<void> => {
  if (given instanceof RetainedBlob) digests.addInput(field, [given.bytes], given);
  else digests.addInput(field, await inTurns(filePieces(loaded)));
};

function* loadState(state: BlobInput, lease: Lease): Task<State> {
  return yield* readState(yield* loadBlob(state, "/state", "STATE_CORRUPT", lease));
}

const sum = <T>(items: Iterable<T>, bytes: (item: T) => number): number => [...items].reduce((total, item) => total + bytes(item), 0);

/** Returns the cache key of the files' headers, or undefined if the headers are too long to cache. */
const headersKey = ({ params, grads, state }: StepFiles): string | undefined => {
  const keys = [
    headerKey(params, MAX_HEADER_BYTES),
    headerKey(grads, MAX_HEADER_BYTES),
    state ? headerKey({ bytes: state, plain: undefined }, MAX_HEADER_BYTES) : "",
  ];
  return keys.includes(undefined) ? undefined : keys.join("\n");
};

const filesOf = ({ params, grads, state }: StepFiles): readonly TensorFile[] => (state ? [params, grads, { bytes: state, plain: undefined }] : [params, grads]);

/** A file's length and a copy of its header. Plain tensors have no header, because the template contains their descriptions. */
interface FileHeader {
  readonly length: number;
  readonly header: Buffer;
}

const fileHeaderOf = ({ bytes, plain }: TensorFile): FileHeader => ({
  length: bytes.length,
  header: Buffer.from(plain ? [] : bytes.subarray(0, headerEnd(bytes))),
});

/** True if each file has the length and the header for which a layout was compiled. */
const isCompiledFor = (files: StepFiles, headers: readonly FileHeader[]): boolean =>
  filesOf(files).every(({ bytes }, index) => {
    const { length, header } = headers[index] as FileHeader;
    return bytes.length === length && header.compare(bytes, 0, header.length) === 0;
  });

/** The report of a step whose gradients a reduction made. */
const withReduceReport = ({ warnings, ...report }: StepReport, { report: reduce }: Reduced): StepReport =>
  // The step would warn of missing gradients, but a skipped reduction has none.
  reduce.skipped ? { ...report, skipped: true, reduce } : { ...report, ...(warnings && { warnings }), reduce };

/** Bounds the number of a file's tensors. Before parsing, only the length of its header is known. */
const maxTensors = ({ bytes, plain }: TensorFile): number => (plain ? plain.length : headerEnd(bytes) / MIN_ENTRY_BYTES);

const hasManyTensors = (file: TensorFile): boolean => maxTensors(file) > MANY_TENSORS;

function* changesHyperparameters({ targets }: Layout, { rates }: Progress): Task<boolean> {
  for (const [index, { recipe }] of targets.entries()) {
    if (rates[index]?.values !== recipe.values) return true;
    if (index % CHEAP_ITEMS_PER_YIELD === CHEAP_ITEMS_PER_YIELD - 1) yield;
  }
  return false;
}

function* matchHeaders({ params, grads, state }: StepFiles): Task<Matched> {
  return yield* match({
    params: yield* readTensors(params, "/params"),
    grads: yield* readTensors(grads, "/grads"),
    state: state && (yield* readSafetensorsInTurns(state, "/state", "STATE_CORRUPT")),
  });
}
