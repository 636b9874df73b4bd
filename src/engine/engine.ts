/** What the service can do with bytes in a lease: one method for each of its jobs. */
import { LRUCache } from "lru-cache";
import type { Lease } from "../arena/arena.ts";
import type { Parts } from "../codec/parts.ts";
import { headerEnd, readSafetensorsInTurns } from "../codec/safetensors.ts";
import { inTurns, OneAtATime, type Run, TURN_PASSES, type Turns } from "../codec/turns.ts";
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
import { type Files, type Now, readNow, runStep, type StepOutput } from "./step.ts";
import { countNames, keyOf, LEAST_ENTRY, loadBlob, loadTensors, readTensors, type TensorFile, type Tensors } from "./tensors.ts";

export type { Lease } from "../arena/arena.ts";
export { planOf } from "./plan.ts";
export type { QueueTime } from "./runner.ts";
export { STATE_FORMAT, type State } from "./state.ts";
export type { StepOutput } from "./step.ts";

/** A call whose sources are in its lease, or in its body. */
export type Loaded<Call> = {
  readonly [Field in keyof Call]: Field extends "params" | "grads" ? Tensors : Field extends "state" ? Uint8Array | string | null : Call[Field];
};

/** Bytes of all that is kept of headers and options. */
const CACHE_BYTES = 2 ** 26;

/** Headers of more bytes are not kept. */
const MAX_KEY = CACHE_BYTES / 16;

/** Calls with more tensors wait for each other. */
const MANY = 4096;

/** Layouts that are kept for the same headers: of trainers that differ in an option, or of one that changes it with every step. */
const MAX_LAYOUTS = 8;

/** Characters of base64 that tell the length of a header. */
const HEAD_CHARACTERS = 12;

/** What is known of files with the same headers. */
interface Known {
  readonly matched: Matched;
  /** By their options. */
  readonly layouts: LRUCache<string, Layout>;
}

export class Engine {
  readonly #pool: Pool;
  /** Bytes that all calls' memory together may have. */
  readonly #capacity: number;
  /** By the bytes of their headers. */
  readonly #known = new LRUCache<string, Known>({
    maxSize: CACHE_BYTES,
    sizeCalculation: ({ matched, layouts }, key) => key.length + matchedBytes(matched) + sum(layouts, ([options, layout]) => layoutBytes(layout, options)),
  });

  /** Calls with many tensors run one at a time: before they are done they take several times what is kept of them. */
  readonly #large = new OneAtATime();
  /** What is long of the others' work. */
  readonly #small = new OneAtATime();

  constructor(pool: Pool, capacity: number) {
    this.#pool = pool;
    this.#capacity = capacity;
  }

  /** One update. Throws what docs/wire-format.md lists under optimizer.step. */
  async step({ params, grads, state = null, ...options }: Loaded<StepParams>, lease: Lease, queueTime: QueueTime): Promise<StepOutput> {
    const files: Files = {
      params: await loadTensors(params, "/params", lease),
      grads: await loadTensors(grads, "/grads", lease),
      state: state === null ? undefined : await inTurns(loadBlob(state, "/state", "STATE_CORRUPT", lease)),
    };
    return this.#inLine(hasMany(files.params) || hasMany(files.grads), (run) => this.#step(options, files, lease, queueTime, run));
  }

  async #step(options: StepOptions, files: Files, lease: Lease, queueTime: QueueTime, run: Run): Promise<StepOutput> {
    const headers = keyOfFiles(files);
    const known = (headers === undefined ? undefined : this.#known.get(headers)) ?? (await this.#match(files, headers, run));
    const { matched, layouts } = known;
    const key = canonical(options);
    let layout = layouts.get(key);
    if (!layout) {
      layout = await run(this.#compile(options, matched));
      layouts.set(key, layout);
      // Counts the new layout. The cache takes the size of another value alone.
      if (headers !== undefined) this.#known.set(headers, { ...known });
    }
    const now = await inTurns(readNow(layout, files.state));
    // A schedule that cycles the momentum changes what is compiled.
    const current = (await inTurns(isCycled(layout, now))) ? await run(this.#compile(options, matched, now)) : layout;
    return runStep(current, now, files, lease, this.#pool, queueTime);
  }

  async #match(files: Files, key: string | undefined, run: Run): Promise<Known> {
    const made: Known = { matched: await run(matchFiles(files)), layouts: new LRUCache({ max: MAX_LAYOUTS }) };
    if (key !== undefined) this.#known.set(key, made);
    return made;
  }

  #compile(options: StepOptions, matched: Matched, now?: Now): Turns<Layout> {
    const values = now?.rates.map((rates) => rates.values);
    return compile(options, matched, (name) => this.#pool.kernel(name), values);
  }

  /** The state before the first step: starting values, step 0, for all parameters. */
  async init({ params, ...options }: Loaded<InitParams>, lease: Lease, queueTime: QueueTime): Promise<Parts> {
    const file = await loadTensors(params, "/params", lease);
    return this.#inLine(hasMany(file), (run) => init(options, file, lease, this.#pool, queueTime, run));
  }

  /** Sums of squares by tensor: what exact clipping over several calls needs first. */
  async norms({ grads, params, loss_scale: lossScale = 1 }: Loaded<NormsParams>, lease: Lease, queueTime: QueueTime): Promise<Norms> {
    const gradFile = await loadTensors(grads, "/grads", lease);
    const paramFile = params === undefined ? undefined : await loadTensors(params, "/params", lease);
    return this.#inLine(hasMany(gradFile), (run) => norms(gradFile, paramFile, lossScale, lease, this.#pool, queueTime, run));
  }

  /** What a step would cost on this server. */
  async plan(call: PlanParams, lease: Lease): Promise<Estimate> {
    const count = Object.keys(call.tensors).length;
    countNames(count, lease);
    return this.#inLine(count > MANY, async (run) => run(estimate(call, (name) => this.#pool.kernel(name), this.#capacity)));
  }

  /** What a state holds. Throws STATE_CORRUPT. */
  async inspect(state: Uint8Array | string, lease: Lease): Promise<State> {
    return this.withState(state, loadState(state, lease));
  }

  /** Does work on a state, after others' where it has many tensors. */
  async withState<T>(state: Uint8Array | string, work: Turns<T>): Promise<T> {
    const head =
      typeof state === "string" ? Buffer.from(state.slice(0, HEAD_CHARACTERS), "base64") : Buffer.from(state.buffer, state.byteOffset, state.byteLength);
    return this.#inLine(hasMany({ bytes: head, plain: undefined }), async (run) => run(work));
  }

  /** Runs a call, after others where it has many tensors. */
  #inLine<T>(isLarge: boolean, call: (run: Run) => Promise<T>): Promise<T> {
    return isLarge ? this.#large.whole(() => call(inTurns)) : call((work) => this.#small.run(work));
  }
}

function* loadState(state: Uint8Array | string, lease: Lease): Turns<State> {
  return yield* readState(yield* loadBlob(state, "/state", "STATE_CORRUPT", lease));
}

const sum = <T>(items: Iterable<T>, bytes: (item: T) => number): number => [...items].reduce((total, item) => total + bytes(item), 0);

/** Undefined where the headers are too long to keep. */
const keyOfFiles = ({ params, grads, state }: Files): string | undefined => {
  const keys = [keyOf(params, MAX_KEY), keyOf(grads, MAX_KEY), state ? keyOf({ bytes: state, plain: undefined }, MAX_KEY) : ""];
  return keys.includes(undefined) ? undefined : keys.join("\n");
};

/** Whether a file has many tensors, by the length of its header. */
const hasMany = ({ bytes, plain }: TensorFile): boolean => (plain ? plain.length : headerEnd(bytes) / LEAST_ENTRY) > MANY;

function* isCycled({ targets }: Layout, { rates }: Now): Turns<boolean> {
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
