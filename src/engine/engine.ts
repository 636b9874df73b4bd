/** What the service can do with bytes in a lease: one method for each of its jobs. */
import { LRUCache } from "lru-cache";
import type { Lease } from "../arena/arena.ts";
import type { Parts } from "../codec/parts.ts";
import { compareUtf8 } from "../codec/safetensors.ts";
import { groupFinder } from "../planner/groups.ts";
import type { Pool } from "../pool/pool.ts";
import { type Estimate, type EstimateInput, estimate } from "./estimate.ts";
import type { Plan } from "./plan.ts";
import { PreparedStep } from "./prepared.ts";
import { Runner, type Waits } from "./runner.ts";
import { addSlots, emptyState, MASTER_PARAM, readState, type State, slotDtype, writeState } from "./state.ts";
import { runStep, type StepInput, type StepOutput, wantedSlots } from "./step.ts";
import { loadTensors, requireMatch, type Tensor, type Tensors } from "./tensors.ts";
import type { StepOptions } from "./update.ts";

export { makePlan, type Plan, type Schedule } from "./plan.ts";
export type { Waits } from "./runner.ts";
export { STATE_FORMAT, type State } from "./state.ts";
export type { StepInput, StepOutput } from "./step.ts";
export type { StepOptions } from "./update.ts";

/** Sums over one tensor, in float64. */
export interface TensorNorms {
  /** Sum of squares of the gradient, after the loss scale. */
  readonly grad_squares: number;
  readonly param_squares?: number;
  readonly zeros: number;
  readonly non_finite: number;
}

export interface Norms {
  readonly tensors: Readonly<Record<string, TensorNorms>>;
  /** The root of the squares of all gradients, added in the order of the names' UTF-8 bytes. */
  readonly grad_norm: number;
}

/** Bytes that all prepared steps together take, about. */
const PREPARED_BYTES = 2 ** 26;

/** How often a step with the same options is prepared again, because the tensors are others. */
const PREPARATIONS = 3;

export class Engine {
  readonly #pool: Pool;
  /** Bytes that all calls' memory together may have. */
  readonly #capacity: number;
  /** How often steps with the same options were taken the general way. */
  readonly #sights = new WeakMap<StepOptions, number>();
  readonly #prepared = new LRUCache<StepOptions, PreparedStep>({ maxSize: PREPARED_BYTES, sizeCalculation: ({ bytes }) => bytes });

  constructor(pool: Pool, capacity: number) {
    this.#pool = pool;
    this.#capacity = capacity;
  }

  /** One update. Who asks for the same again hands in the same options. Throws what docs/wire-format.md lists under optimizer.step. */
  step(options: StepOptions, input: StepInput, lease: Lease, waits: Waits): StepOutput | Promise<StepOutput> {
    return this.#prepared.get(options)?.run(input, lease, this.#pool, waits) ?? this.#step(options, input, lease, waits);
  }

  async #step(options: StepOptions, input: StepInput, lease: Lease, waits: Waits): Promise<StepOutput> {
    const output = await runStep(options, input, lease, this.#pool, waits);
    const sights = this.#sights.get(options) ?? 0;
    this.#sights.set(options, sights + 1);
    if (sights >= 1 && sights <= PREPARATIONS) {
      const prepared = PreparedStep.like(options, input, lease, this.#pool, PREPARED_BYTES);
      if (prepared) this.#prepared.set(options, prepared);
    }
    return output;
  }

  /** The state before the first step: starting values, step 0, for all parameters. */
  async init(plan: Plan, params: Tensors, masterWeights: boolean, lease: Lease, waits: Waits): Promise<Parts> {
    const { optimizer, base, groups } = plan;
    const find = groupFinder(groups);
    const state = emptyState(optimizer);
    const tensors = [...loadTensors(params, "/params", lease).tensors.values()];
    const wanted = tensors.map((param) => wantedSlots(optimizer, plan.at(groups[find(param.name)]?.values ?? base, 0).values, param, masterWeights));
    addSlots(state, optimizer, wanted, lease);
    const masters = tensors.flatMap((param) => {
      const master = state.parameters.get(param.name)?.slots.get(MASTER_PARAM);
      return master ? [{ param, master }] : [];
    });
    await new Runner(lease, this.#pool, waits).fillMasters(masters);
    return writeState(state, optimizer, lease);
  }

  /** Sums of squares by tensor: what exact clipping over several calls needs first. */
  async norms(grads: Tensors, params: Tensors | undefined, lossScale: number, lease: Lease, waits: Waits): Promise<Norms> {
    const runner = new Runner(lease, this.#pool, waits);
    const gradSet = loadTensors(grads, "/grads", lease);
    const paramSet = params === undefined ? undefined : loadTensors(params, "/params", lease);
    if (paramSet) requireMatch(paramSet, gradSet);
    const ordered = [...gradSet.tensors.values()].sort((a, b) => compareUtf8(a.name, b.name));
    const paramOf = ({ name }: Tensor): Tensor | undefined => paramSet?.tensors.get(name);
    // As in a step: in the dtype of the arithmetic, which the parameter decides.
    const dtypes = ordered.map((grad) => slotDtype((paramOf(grad) ?? grad).dtype));
    const { sums } = await runner.measure(ordered, dtypes, lossScale);
    const paramSquares = paramSet && (await runner.squares(ordered.map((grad) => paramOf(grad) as Tensor)));
    const tensors = ordered.map(({ name }, index): [string, TensorNorms] => {
      const { squares = 0, zeros = 0, nonFinite = 0 } = sums[index] ?? {};
      return [name, { grad_squares: squares, ...(paramSquares && { param_squares: paramSquares[index] ?? 0 }), zeros, non_finite: nonFinite }];
    });
    return { tensors: Object.fromEntries(tensors), grad_norm: Math.sqrt(sums.reduce((sum, { squares }) => sum + squares, 0)) };
  }

  /** What a step would cost on this server. */
  estimate(input: Omit<EstimateInput, "capacity">): Estimate {
    return estimate({ ...input, capacity: this.#capacity });
  }

  /** What a state holds. Throws STATE_CORRUPT. */
  inspect(state: Uint8Array | string, lease: Lease): State {
    return readState(state, lease);
  }
}
