/** The optimizer and groups of a call: a group's hyperparameters are merged into the call's and checked as one. */
import { makePlan, type Plan } from "../engine/engine.ts";
import type { Group, Optimizer, StepParams } from "../generated/wire.gen.ts";
import { prepare } from "../schedules/registry.ts";
import { validate } from "../validation/validate.ts";

export const planOf = (optimizer: Optimizer, groups: readonly Group[] = [], schedule?: StepParams["schedule"]): Plan => {
  const given = optimizer as Optimizer & Record<string, unknown>;
  const merged = groups.map(({ tensors, optimizer: override }, index) => {
    const values = { ...given, ...override };
    validate("optimizer.schema.json", values, `/groups/${index}/optimizer`);
    return { tensors, optimizer: values };
  });
  return makePlan(given, merged, schedule && prepare(schedule));
};
