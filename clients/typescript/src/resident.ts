/** A run whose parameters and state stay on the server between its steps. */
import type { StepCached, StepInput, StepReply, StepResult } from "./calls.ts";
import { describeValue, requireObject, requireStep, requireTensors } from "./checks.ts";
import { StepdError } from "./errors.ts";
import { copied, isShards, type PartedResult } from "./parts.ts";
import type { State } from "./state.ts";
import { checkTensors, type Tensors } from "./tensors.ts";
import type { CallOptions } from "./transport.ts";

const FETCH_EVERY = 20;

/** A step is sent this often, if the server keeps losing the results before it. */
const ATTEMPTS = 3;

/** The server keeps the result, and the reply has neither parameters nor state. */
const STAY: StepReply = { params: "none", state: "none", cache: true };

/** A Client or a ShardedClient. */
export interface Stepper {
  step(input: never, options?: CallOptions): Promise<StepResult | PartedResult>;
}

export interface ResidentOptions {
  readonly params: Tensors;
  /** The state of an earlier run. */
  readonly state?: State | Uint8Array | null | undefined;
  /** The number of steps after which `step` fetches parameters and state; 20 by default. */
  readonly fetchEvery?: number | undefined;
}

/** A step of a run. The run itself sets the other members. */
export interface ResidentInput extends Omit<StepInput, "params" | "state" | "cached" | "reply" | "receipt"> {
  /** The form of the parameters in the reply. */
  readonly reply?: Pick<StepReply, "params"> | undefined;
}

/** The result of a step. Reading its `state` throws RangeError, because the state is on the server. */
export type ResidentResult = Omit<StepResult, "cached" | "receipt">;

/**
 * Steps with gradients up and parameters down, on a server with a cache (STEPD_CACHE_MIB). The run holds the parameters and the
 * state of the last fetch, and the gradients of each later step. A server that restarts, or that needs the memory, gets all of them
 * again, so the run continues with the same bits. Await each step before the next.
 */
export class ResidentRun {
  readonly #client: Stepper;
  readonly #fetchEvery: number;
  #params: Tensors;
  #state: StepInput["state"];
  /** The steps since the last fetch, without those that were skipped. */
  #steps: ResidentInput[] = [];
  /** The number of those steps whose result the server has, under `#cached`. */
  #done = 0;
  #cached: StepCached | undefined;
  /** Whether the server has lost results since the last fetch. The next loss is then likely, and a fetch saves repeating steps. */
  #isLossy = false;

  /** `client` is a Client or a ShardedClient. The run copies the parameters. */
  constructor(client: Stepper, options: ResidentOptions) {
    if (typeof (client as Partial<Stepper> | null)?.step !== "function")
      throw new TypeError(`client: expected a Client or a ShardedClient, found ${describeValue(client)}`);
    requireObject("options", options, "an object with params");
    const { params, state, fetchEvery = FETCH_EVERY } = options;
    requireTensors("params", params);
    checkTensors(params);
    if (!(Number.isInteger(fetchEvery) && fetchEvery > 0))
      throw new TypeError(`fetchEvery: expected a whole number of at least 1, found ${String(fetchEvery)}`);
    this.#client = client;
    this.#params = copied(params);
    this.#state = state;
    this.#fetchEvery = fetchEvery;
  }

  /** Takes a step. After an error the run is unchanged. */
  async step(input: ResidentInput, options?: CallOptions): Promise<ResidentResult> {
    requireStep(input);
    // A step of a run has no updates to reduce, which the run would have to keep as well.
    requireTensors("grads", input.grads);
    for (const name of ["params", "state", "cached", "receipt"] as const)
      if ((input as Partial<StepInput>)[name] !== undefined) throw new TypeError(`${name}: expected none, because the run sets it`);
    const { reply = {} } = input;
    const other = Object.keys(reply).find((name) => name !== "params");
    if (other !== undefined) throw new TypeError(`reply: expected params alone, found ${other}`);
    const { grads, ...settings } = input;
    checkTensors(grads);
    // Settings are copied as well, because the server may need this step again.
    const step: ResidentInput = { ...structuredClone(settings), grads: copied(grads) };
    if (this.#steps.length >= this.#fetchEvery || this.#isLossy) await this.fetch(options);
    const result = await this.#send(step, { ...STAY, params: reply.params ?? "same" }, options);
    this.#cached = result.cached;
    if (!result.skipped) {
      this.#steps.push(step);
      this.#done++;
    }
    return result;
  }

  /** Returns the current parameters and state, which must not change. The state is null before the first step of a new run. */
  async fetch(options?: CallOptions): Promise<{ readonly params: Tensors; readonly state: State | Uint8Array | null }> {
    const last = this.#steps.at(-1);
    if (last) {
      const { optimizer, groups, master_weights } = last;
      // A step without gradients returns what the server has, unchanged.
      const { params, state } = await this.#send({ optimizer, groups, master_weights, grads: {} }, {}, options);
      this.#params = params;
      this.#state = state;
      this.#steps = [];
      this.#done = 0;
      this.#isLossy = false;
    }
    return { params: this.#params, state: this.#state ?? null };
  }

  /** Sends a step, after the steps before it whose results the server lacks. */
  async #send(step: ResidentInput, reply: StepReply, options: CallOptions | undefined): Promise<StepResult> {
    for (let attempt = 1; ; attempt++) {
      try {
        for (; this.#done < this.#steps.length; this.#done++) this.#cached = (await this.#call(this.#steps[this.#done] as ResidentInput, STAY, options)).cached;
        return await this.#call(step, reply, options);
      } catch (error) {
        if (!(error instanceof StepdError && error.code === "BLOB_MISSING") || attempt === ATTEMPTS) throw error;
        this.#cached = undefined;
        this.#done = 0;
        this.#isLossy = true;
      }
    }
  }

  async #call(step: ResidentInput, reply: StepReply, options: CallOptions | undefined): Promise<StepResult> {
    const values = this.#cached ? { cached: this.#cached } : { params: this.#params, state: this.#state };
    const result = (await this.#client.step({ ...step, ...values, reply } as never, options)) as StepResult;
    if (reply.cache && !isWhole(result.cached))
      throw new RangeError("a ResidentRun needs a server that keeps parameters and state (STEPD_CACHE_MIB), and this one has no room for both");
    // The server's file has another order.
    const params = Object.fromEntries(Object.keys(this.#params).flatMap((name) => (result.params[name] ? [[name, result.params[name]]] : [])));
    // A spread would read the state, which may have stayed on the server.
    return Object.assign(result, { params });
  }
}

/** Returns whether the server has cached parameters and state. */
const isWhole = (cached: StepCached | undefined): boolean =>
  isShards(cached) ? cached.every((shard) => isWhole(shard.cached)) : cached?.params !== undefined && cached.state !== undefined;
