/** What a call asks for, checked as a whole: the optimizer and the hyperparameters of each group. */
import { StepdError } from "../errors/errors.ts";
import { type Hyperparameters, type OptimizerDefinition, registry, type Values } from "../optimizers/registry.ts";
import { type Given, type Group, withDefaults } from "../planner/groups.ts";

export interface Plan {
  readonly optimizer: OptimizerDefinition;
  readonly base: Values<Hyperparameters>;
  readonly groups: readonly (Group & { readonly values: Values<Hyperparameters> })[];
}

/** Hyperparameters that hold for the call as a whole and so cannot differ between groups. */
const GLOBAL = ["max_grad_norm"];

/** Makes the plan of a call whose optimizer and groups (each with the base's hyperparameters merged in) have passed their schema. */
export const makePlan = (optimizer: Given, groups: readonly Group[]): Plan => {
  const definition = registry.get(optimizer.name);
  if (!definition) throw new Error(`the schema let an unknown optimizer pass: ${optimizer.name}`);
  const resolve = (given: Given, field: string): Values<Hyperparameters> => {
    const values = withDefaults(definition, given);
    const problem = definition.check?.(values);
    if (problem) throw StepdError.mismatch("INVALID_PARAMS", `${field}/${problem.field}`, problem.expected, problem.found);
    return values;
  };
  const base = resolve(optimizer, "/optimizer");
  return {
    optimizer: definition,
    base,
    groups: groups.map((group, index) => {
      const field = `/groups/${index}/optimizer`;
      const values = resolve(group.optimizer, field);
      for (const name of GLOBAL) {
        if (values[name] !== base[name])
          throw StepdError.mismatch("INVALID_PARAMS", `${field}/${name}`, "no value, because it holds for the whole call", String(values[name]));
      }
      return { ...group, values };
    }),
  };
};
