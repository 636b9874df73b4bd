/** The inputs and results of a client's calls, and their parts. */
import type { DistancesInput, ReduceInput, ReduceResult } from "./reduce.ts";
import type { Slices, State } from "./state.ts";
import type { DType, Tensor, Tensors } from "./tensors.ts";
import type { CallOptions } from "./transport.ts";
import type { Cached, NormsParams, NormsResult, ReplyOptions, StepParams, StepResult as WireResult } from "./wire.gen.ts";

/** Selects the results in the reply. The client itself sets their places (`into`). */
export type StepReply = Omit<ReplyOptions, "into">;

/** A step's options without its tensors, under their wire names. */
export interface StepSettings extends Omit<StepParams, "params" | "grads" | "reduce" | "state" | "reply"> {
  /** Selects the results in the reply. With `cache`, the server caches the new parameters and state. */
  readonly reply?: StepReply | undefined;
}

export interface StepInput extends StepSettings {
  readonly params: Tensors;
  readonly grads: Tensors;
  /** The state of the last result, or the bytes of a stored state. Absent at the first step. */
  readonly state?: State | Uint8Array | null | undefined;
  /**
   * The `cached` member of an earlier result. The client does not send the parameters and state that it names. If the server
   * has dropped either, the client sends `params` or `state` instead, so both must stay unchanged until the call ends. The member
   * `cached` of norms names gradients, of which the same holds.
   */
  readonly cached?: StepCached | undefined;
}

/** A step whose parameters are only in the server's cache. */
export interface CachedStepInput extends Omit<StepInput, "params" | "cached"> {
  readonly params?: undefined;
  /** Must name the parameters. */
  readonly cached: StepCached;
}

/** The updates of a step, with the options of their reduction. The step's parameters are those that the updates started from. */
export type Reduction = Omit<ReduceInput, "params" | "finish">;

/** A step by the pseudo-gradient of several updates. It has the bits of a step with the `grads` of `reduce`. */
export interface ReducedStepInput extends Omit<StepInput, "grads"> {
  readonly grads?: undefined;
  readonly reduce: Reduction;
}

/** Handles of blobs on the server, also of gradients from norms. A result that came in several calls has one entry per call. */
export type StepCached = (Cached & Pick<NonNullable<NormsResult["cached"]>, "grads">) | readonly CachedShard[];

export interface StepResult extends Omit<WireResult, "params" | "state" | "cached"> {
  /** For the next step's `cached`. Undefined if the server cached nothing. */
  readonly cached?: StepCached | undefined;
  /** Empty if the step had `reply.params: "none"`. */
  readonly params: Record<string, Tensor>;
  /** Reading the state throws RangeError if the step had `reply.state: "none"`. */
  readonly state: State;
}

export interface NormsInput extends Pick<StepInput, "grads" | "loss_scale" | "slices">, Pick<NormsParams, "reply"> {
  /** Needed if a parameter's dtype differs from its gradient's, because the parameter's dtype decides the arithmetic. */
  readonly params?: Tensors | undefined;
}

/** One server's cached result of one call. */
export interface CachedShard {
  readonly url: string;
  readonly cached: Cached;
  /** The call's parameters. Their shapes, dtypes and step counts suffice when only the server has the values. */
  readonly tensors: TensorInfos;
  /** The first and the last element (exclusive) of each tensor of which the call had a slice. */
  readonly slices?: Slices | undefined;
}

export interface TensorInfo {
  /** The shape of the whole tensor. */
  readonly shape: readonly number[];
  readonly dtype: DType;
  /** The number of steps taken. */
  readonly step: number;
}

export type TensorInfos = Readonly<Record<string, TensorInfo>>;

/** A client that makes one call of a step. */
export interface Caller {
  readonly url: string;
  step(input: StepInput | CachedStepInput, options?: CallOptions): Promise<StepResult>;
  norms(input: NormsInput, options?: CallOptions): Promise<NormsResult>;
  reduce(input: ReduceInput, options?: CallOptions): Promise<ReduceResult>;
  distances(input: DistancesInput, options?: CallOptions): Promise<number[][]>;
}

export type Call<Result> = (client: Caller, options: CallOptions) => Promise<Result>;
