/** The engine: steps, norms, plans, and the reading of states, on tensors in a lease. */
import { LRUCache } from "lru-cache";
import type { Lease } from "../arena/arena.ts";
import type { Parts } from "../codec/parts.ts";
import { headerEnd, readSafetensorsInTurns } from "../codec/safetensors.ts";
import { inTurns, type Run, SerialQueue, TURN_PASSES, type Turns } from "../codec/turns.ts";
import type { InitParams, NormsParams, PlanParams, StepParams } from "../generated/wire.gen.ts";
import type { Pool } from "../pool/pool.ts";
import { canonical } from "./canonical.ts";
import { type Estimate, estimate } from "./estimate.ts";
import { init } from "./init.ts";
import { compile, type Layout, layoutBytes, type StepOptions } from "./layout.ts";
import { type Matched, match, matchedBytes } from "./match.ts";
import { type Norms, norms } from "./norms.ts";
import type { QueueTime } from "./runner.ts";
import { readState, type State } from "./state.ts";
import { type Files, type Progress, readProgress, runStep, type StepOutput } from "./step.ts";
import { countPlainTensors, keyOf, loadBlob, loadTensors, MIN_ENTRY_BYTES, readTensors, type TensorFile, type Tensors } from "./tensors.ts";

export type { Lease } from "../arena/arena.ts";
export { planOf } from "./plan.ts";
export type { QueueTime } from "./runner.ts";
export { STATE_FORMAT, type State } from "./state.ts";
export type { StepOutput } from "./step.ts";

/** A call whose blobs are in the lease. */
export type Loaded<Call> = {
  readonly [Field in keyof Call]: Field extends "params" | "grads" ? Tensors : Field extends "state" ? Uint8Array | string | null : Call[Field];
};

/** The size of the cache of headers and layouts. */
const CACHE_BYTES = 2 ** 26;

/** The most bytes of headers that are cached. */
const MAX_KEY = CACHE_BYTES / 16;

/** Calls with more tensors run one at a time. */
const MANY_TENSORS = 4096;

/** The most cached layouts per set of headers. A trainer may change an option at every step. */
const MAX_LAYOUTS = 8;

/** The most characters of a layout's key. Serializing longer lists of names would block the main thread, so their layouts are not cached. */
const MAX_OPTIONS_KEY = 2 ** 20;

/** The base64 characters that contain the header's length. */
const LENGTH_CHARACTERS = 12;

/** The cache entry for files with the same headers. */
interface CacheEntry {
  readonly matched: Matched;
  /** Layouts by the options of the call. */
  readonly layouts: LRUCache<string, Layout>;
}

export class Engine {
  readonly #pool: Pool;
  /** The arena's capacity in bytes. */
  readonly #capacity: number;
  /** Cache entries by the bytes of the files' headers. */
  readonly #cache = new LRUCache<string, CacheEntry>({
    maxSize: CACHE_BYTES,
    sizeCalculation: ({ matched, layouts }, key) => key.length + matchedBytes(matched) + sum(layouts, ([options, layout]) => layoutBytes(layout, options)),
  });

  /** Calls with many tensors. They run one at a time, because their peak memory is several times that of their cache entry. */
  readonly #largeCalls = new SerialQueue();
  /** The long parts of all other calls. */
  readonly #longWork = new SerialQueue();

  constructor(pool: Pool, capacity: number) {
    this.#pool = pool;
    this.#capacity = capacity;
  }

  /** Runs one step. docs/wire-format.md lists its errors under optimizer.step. */
  async step({ params, grads, state = null, ...options }: Loaded<StepParams>, lease: Lease, queueTime: QueueTime): Promise<StepOutput> {
    const files: Files = {
      params: await loadTensors(params, "/params", lease),
      grads: await loadTensors(grads, "/grads", lease),
      state: state === null ? undefined : await inTurns(loadBlob(state, "/state", "STATE_CORRUPT", lease)),
    };
    return this.#runCall(hasManyTensors(files.params) || hasManyTensors(files.grads), (run) => this.#step(options, files, lease, queueTime, run));
  }

  async #step(options: StepOptions, files: Files, lease: Lease, queueTime: QueueTime, run: Run): Promise<StepOutput> {
    const headers = headersKey(files);
    const entry = (headers === undefined ? undefined : this.#cache.get(headers)) ?? (await this.#match(files, headers, run));
    const { matched, layouts } = entry;
    const key = canonical(options, MAX_OPTIONS_KEY);
    let layout = key === undefined ? undefined : layouts.get(key);
    if (!layout) {
      layout = await run(this.#compile(options, matched));
      if (key !== undefined) layouts.set(key, layout);
      // Sets a copy, because the cache recomputes the size only for a different object.
      if (headers !== undefined && key !== undefined) this.#cache.set(headers, { ...entry });
    }
    const progress = await inTurns(readProgress(layout, files.state));
    // A cycled momentum is compiled into the layout, so this step needs its own.
    const current = (await inTurns(isCycled(layout, progress))) ? await run(this.#compile(options, matched, progress)) : layout;
    return runStep(current, progress, files, lease, this.#pool, queueTime);
  }

  async #match(files: Files, key: string | undefined, run: Run): Promise<CacheEntry> {
    const entry: CacheEntry = { matched: await run(matchFiles(files)), layouts: new LRUCache({ max: MAX_LAYOUTS }) };
    if (key !== undefined) this.#cache.set(key, entry);
    return entry;
  }

  #compile(options: StepOptions, matched: Matched, progress?: Progress): Turns<Layout> {
    const values = progress?.rates.map((rates) => rates.values);
    return compile(options, matched, (name) => this.#pool.kernel(name), values);
  }

  /** Creates the state before the first step: initial values and step 0 for all parameters. */
  async init({ params, ...options }: Loaded<InitParams>, lease: Lease, queueTime: QueueTime): Promise<Parts> {
    const file = await loadTensors(params, "/params", lease);
    return this.#runCall(hasManyTensors(file), (run) => init(options, file, lease, this.#pool, queueTime, run));
  }

  /** Computes the sums of squares by tensor, for exact clipping over several calls. */
  async norms({ grads, params, loss_scale: lossScale = 1 }: Loaded<NormsParams>, lease: Lease, queueTime: QueueTime): Promise<Norms> {
    const gradFile = await loadTensors(grads, "/grads", lease);
    const paramFile = params === undefined ? undefined : await loadTensors(params, "/params", lease);
    const isLarge = hasManyTensors(gradFile) || (paramFile !== undefined && hasManyTensors(paramFile));
    return this.#runCall(isLarge, (run) => norms(gradFile, paramFile, lossScale, lease, this.#pool, queueTime, run));
  }

  /** Estimates the cost of a step on this server. */
  async plan(call: PlanParams, lease: Lease): Promise<Estimate> {
    const count = Object.keys(call.tensors).length;
    countPlainTensors(count, lease);
    return this.#runCall(count > MANY_TENSORS, async (run) => run(estimate(call, (name) => this.#pool.kernel(name), this.#capacity)));
  }

  /** Reads a state. Throws STATE_CORRUPT. */
  async inspect(state: Uint8Array | string, lease: Lease): Promise<State> {
    return this.withState(state, loadState(state, lease));
  }

  /** Runs work on a state. A state with many tensors waits for other large calls. */
  async withState<T>(state: Uint8Array | string, work: Turns<T>): Promise<T> {
    const head =
      typeof state === "string" ? Buffer.from(state.slice(0, LENGTH_CHARACTERS), "base64") : Buffer.from(state.buffer, state.byteOffset, state.byteLength);
    return this.#runCall(hasManyTensors({ bytes: head, plain: undefined }), async (run) => run(work));
  }

  /** Runs a call. A large call waits for other large ones. */
  #runCall<T>(isLarge: boolean, call: (run: Run) => Promise<T>): Promise<T> {
    return isLarge ? this.#largeCalls.runCall(() => call(inTurns)) : call((work) => this.#longWork.run(work));
  }
}

function* loadState(state: Uint8Array | string, lease: Lease): Turns<State> {
  return yield* readState(yield* loadBlob(state, "/state", "STATE_CORRUPT", lease));
}

const sum = <T>(items: Iterable<T>, bytes: (item: T) => number): number => [...items].reduce((total, item) => total + bytes(item), 0);

/** The cache key of the files' headers. Undefined if they are too long to cache. */
const headersKey = ({ params, grads, state }: Files): string | undefined => {
  const keys = [keyOf(params, MAX_KEY), keyOf(grads, MAX_KEY), state ? keyOf({ bytes: state, plain: undefined }, MAX_KEY) : ""];
  return keys.includes(undefined) ? undefined : keys.join("\n");
};

/** True if a file may have many tensors, judged by the length of its header. */
const hasManyTensors = ({ bytes, plain }: TensorFile): boolean => (plain ? plain.length : headerEnd(bytes) / MIN_ENTRY_BYTES) > MANY_TENSORS;

function* isCycled({ targets }: Layout, { rates }: Progress): Turns<boolean> {
  for (const [index, { recipe }] of targets.entries()) {
    if (rates[index]?.values !== recipe.values) return true;
    if (index % TURN_PASSES === TURN_PASSES - 1) yield;
  }
  return false;
}

function* matchFiles({ params, grads, state }: Files): Turns<Matched> {
  return yield* match({
    params: yield* readTensors(params, "/params"),
    grads: yield* readTensors(grads, "/grads"),
    state: state && (yield* readSafetensorsInTurns(state, "/state", "STATE_CORRUPT")),
  });
}
