/** What the service can do with bytes in a lease: one method for each of its jobs. */
import { LRUCache } from "lru-cache";
import type { Lease } from "../arena/arena.ts";
import type { Parts } from "../codec/parts.ts";
import { headerEnd, readSafetensorsInTurns } from "../codec/safetensors.ts";
import { OneAtATime, type Turns } from "../codec/turns.ts";
import type { InitParams, NormsParams, PlanParams, StepParams } from "../generated/wire.gen.ts";
import type { Pool } from "../pool/pool.ts";
import { canonical } from "./canonical.ts";
import { type Estimate, estimate } from "./estimate.ts";
import { init } from "./init.ts";
import { compile, type Layout, layoutBytes, type StepOptions } from "./layout.ts";
import { type Matched, match, matchedBytes } from "./match.ts";
import { type Norms, norms } from "./norms.ts";
import type { Waits } from "./runner.ts";
import { readState, type State } from "./state.ts";
import { type Files, type Now, readNow, runStep, type StepOutput } from "./step.ts";
import { countNames, keyOf, loadBlob, loadTensors, readTensors, type Tensors } from "./tensors.ts";

export type { Lease } from "../arena/arena.ts";
export { planOf } from "./plan.ts";
export type { Waits } from "./runner.ts";
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

/** Calls with more tensors wait for each other before they are compiled. */
const MANY = 2048;

/** Layouts that are kept for the same headers: of trainers that differ in an option, or of one that changes it with every step. */
const MAX_LAYOUTS = 8;

/** Bytes of an entry of a header, at least. */
const LEAST_ENTRY = 50;

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
    sizeCalculation: ({ matched }, key) => key.length + matchedBytes(matched) + MAX_LAYOUTS * layoutBytes(matched),
  });

  /** Calls with many tensors are compiled one at a time: before they are done they take several times what is kept of them. */
  readonly #compilations = new OneAtATime();

  constructor(pool: Pool, capacity: number) {
    this.#pool = pool;
    this.#capacity = capacity;
  }

  /** One update. Throws what docs/wire-format.md lists under optimizer.step. */
  async step({ params, grads, state = null, ...options }: Loaded<StepParams>, lease: Lease, waits: Waits): Promise<StepOutput> {
    const files: Files = {
      params: await loadTensors(params, "/params", lease),
      grads: await loadTensors(grads, "/grads", lease),
      state: state === null ? undefined : loadBlob(state, "/state", "STATE_CORRUPT", lease),
    };
    const headers = keyOfFiles(files);
    const { matched, layouts } = (headers === undefined ? undefined : this.#known.get(headers)) ?? (await this.#match(files, headers));
    const key = canonical(options);
    let layout = layouts.get(key);
    if (!layout) {
      layout = await this.#compile(options, matched);
      layouts.set(key, layout);
    }
    const now = readNow(layout, files.state);
    // A schedule that cycles the momentum changes what is compiled.
    const current = isCycled(layout, now) ? await this.#compile(options, matched, now) : layout;
    return runStep(current, now, files, lease, this.#pool, waits);
  }

  async #match(files: Files, key: string | undefined): Promise<Known> {
    const made: Known = { matched: await this.#compilations.run(matchFiles(files), hasMany(files)), layouts: new LRUCache({ max: MAX_LAYOUTS }) };
    if (key !== undefined) this.#known.set(key, made);
    return made;
  }

  #compile(options: StepOptions, matched: Matched, now?: Now): Layout | Promise<Layout> {
    const values = now?.rates.map((rates) => rates.values);
    return this.#compilations.run(
      compile(options, matched, (name) => this.#pool.kernel(name), values),
      matched.pairs.length > MANY,
    );
  }

  /** The state before the first step: starting values, step 0, for all parameters. */
  init(call: Loaded<InitParams>, lease: Lease, waits: Waits): Promise<Parts> {
    return init(call, lease, this.#pool, waits, this.#compilations);
  }

  /** Sums of squares by tensor: what exact clipping over several calls needs first. */
  norms(call: Loaded<NormsParams>, lease: Lease, waits: Waits): Promise<Norms> {
    return norms(call, lease, this.#pool, waits, this.#compilations);
  }

  /** What a step would cost on this server. */
  plan(call: PlanParams, lease: Lease): Estimate | Promise<Estimate> {
    const count = Object.keys(call.tensors).length;
    countNames(count, lease);
    return this.#compilations.run(
      estimate(call, (name) => this.#pool.kernel(name), this.#capacity),
      count > MANY,
    );
  }

  /** What a state holds. Throws STATE_CORRUPT. */
  inspect(state: Uint8Array | string, lease: Lease): State | Promise<State> {
    return this.#compilations.run(readState(state, lease));
  }
}

/** Undefined where the headers are too long to keep. */
const keyOfFiles = ({ params, grads, state }: Files): string | undefined => {
  const keys = [keyOf(params, MAX_KEY), keyOf(grads, MAX_KEY), state ? keyOf({ bytes: state, plain: undefined }, MAX_KEY) : ""];
  return keys.includes(undefined) ? undefined : keys.join("\n");
};

/** Whether files have many tensors, by the length of their headers: an entry of one takes at least 50 bytes. */
const hasMany = (files: Files): boolean =>
  [files.params, files.grads].some(({ bytes, plain }) => (plain ? plain.length : headerEnd(bytes) / LEAST_ENTRY) > MANY);

const isCycled = ({ targets }: Layout, { rates }: Now): boolean => targets.some(({ recipe }, index) => rates[index]?.values !== recipe.values);

function* matchFiles({ params, grads, state }: Files): Turns<Matched> {
  return yield* match({
    params: yield* readTensors(params, "/params"),
    grads: yield* readTensors(grads, "/grads"),
    state: state && (yield* readSafetensorsInTurns(state, "/state", "STATE_CORRUPT")),
  });
}
