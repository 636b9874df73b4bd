/** What the service can do with bytes in a lease: one method for each of its jobs. */
import type { Lease } from "../arena/arena.ts";
import type { Parts } from "../codec/parts.ts";
import { groupFinder } from "../planner/groups.ts";
import type { Pool } from "../pool/pool.ts";
import type { Plan } from "./plan.ts";
import { addSlots, emptyState, readState, type State, writeState } from "./state.ts";
import { runStep, type StepInput, type StepOutput } from "./step.ts";
import { loadTensors, type Tensors } from "./tensors.ts";

export { makePlan, type Plan } from "./plan.ts";
export { STATE_FORMAT, type State } from "./state.ts";
export type { StepOutput } from "./step.ts";

export class Engine {
  readonly #pool: Pool;

  constructor(pool: Pool) {
    this.#pool = pool;
  }

  /** One update. Throws what docs/wire-format.md lists under optimizer.step. */
  step(input: StepInput, lease: Lease): Promise<StepOutput> {
    return runStep(input, lease, this.#pool);
  }

  /** The state before the first step: zeros, step 0, for all parameters. */
  init({ optimizer, base, groups }: Plan, params: Tensors, lease: Lease): Parts {
    const find = groupFinder(groups);
    const state = emptyState(optimizer);
    const wanted = [...loadTensors(params, "/params", lease).tensors.values()].map((param) => ({
      param,
      slots: optimizer.slots(groups[find(param.name)]?.values ?? base),
      lateSlots: optimizer.lateSlots,
    }));
    addSlots(state, wanted, lease);
    return writeState(state, optimizer, lease);
  }

  /** What a state holds. Throws STATE_CORRUPT. */
  inspect(state: Uint8Array | string, lease: Lease): State {
    return readState(state, lease);
  }
}
