/** Converts a state's moments to F32, BF16 or Q8. Rounds moments as the step with the state's step count would round them. */
import type { Lease } from "../arena/arena.ts";
import { bytesOf } from "../codec/dtype.ts";
import { ITEMS_PER_YIELD, type Task } from "../codec/turns.ts";
import { StepdError } from "../errors/errors.ts";
import type { Pool } from "../pool/pool.ts";
import { Recipes } from "./recipe.ts";
import { type KernelCall, NO_CONTEXT, type QueueTime, Runner, type Target } from "./runner.ts";
import { isCode, type State, scaleCount, scaleOf, storedDtype } from "./state.ts";
import type { ArenaTensor } from "./tensors.ts";

/** A slot to convert. Its offsets are addresses: values, scales, float32 values, new values, new scales. */
interface MomentTarget extends Target {
  readonly step: number;
  readonly calls: readonly KernelCall[];
}

/** Lists the conversions, and replaces the slots of `state` by their results. Throws UNSUPPORTED_DTYPE. */
export function* planMoments(state: State, stateDtype: string, lease: Lease, pool: Pool): Task<readonly MomentTarget[]> {
  const recipes = new Recipes((name) => pool.kernel(name));
  const targets: MomentTarget[] = [];
  let read = 0;
  for (const [name, { optimizer, step, slots }] of state.parameters) {
    if (++read % ITEMS_PER_YIELD === 0) yield;
    for (const [slot, kind] of Object.entries(optimizer.moments ?? {})) {
      const from = slots.get(slot);
      if (!from) continue;
      if (from.dtype === "F64" && stateDtype !== "F32") {
        throw StepdError.mismatch("UNSUPPORTED_DTYPE", "/state_dtype", "F32 for a state with moments in F64", stateDtype, [name]);
      }
      const dtype = from.dtype === "F64" ? "F64" : storedDtype(optimizer, stateDtype, { dtype: "F32", elements: from.elements }, slot);
      if (dtype === from.dtype) continue;
      const allocate = (dtype: string, shape: readonly number[], elements: number): ArenaTensor => {
        const bytes = elements * (bytesOf(dtype) as number);
        return { name, dtype, shape, elements, bytes, address: lease.alloc(bytes) };
      };
      const scales = slots.get(scaleOf(slot));
      const to = allocate(dtype, from.shape, from.elements);
      const count = scaleCount(from.elements);
      const newScales = isCode(dtype) ? allocate("BF16", [count], count) : undefined;
      const wide = from.dtype === "F32" ? from.address : dtype === "F32" ? to.address : lease.alloc(4 * from.elements);
      slots.set(slot, to);
      slots.delete(scaleOf(slot));
      if (newScales) slots.set(scaleOf(slot), newScales);
      targets.push({
        name,
        step,
        elements: from.elements,
        offsets: [from.address, scales?.address ?? 0, wide, to.address, newScales?.address ?? 0],
        sums: 0,
        calls: recipes.moments(slot, kind, from.dtype, dtype),
      });
    }
  }
  return targets;
}

export const convertMoments = async (targets: readonly MomentTarget[], lease: Lease, pool: Pool, queueTime: QueueTime): Promise<void> => {
  const runner = new Runner(lease, pool, queueTime, [0, 0, 0, 0, 0, 0]);
  const inputsOf = (target: MomentTarget) => ({ context: { ...NO_CONTEXT, step: target.step }, scale: 1, target });
  await runner.run(targets, ({ calls }) => calls, true, inputsOf);
};
