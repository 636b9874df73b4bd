/** What a call asks for, checked as a whole: the optimizer, the hyperparameters of each group, and the schedule. */
import { StepdError } from "../errors/errors.ts";
import { type Hyperparameters, type OptimizerDefinition, registry, type Values } from "../optimizers/registry.ts";
import { type Given, type Group, requireFewPatterns, withDefaults } from "../planner/groups.ts";

/** The learning rate, and where it cycles the momentum, after so many steps; the base rate is the group's own. */
export type Schedule = (lr: number, stepsTaken: number) => { readonly lr: number; readonly momentum?: number; readonly peak?: number };

export interface Plan {
  readonly optimizer: OptimizerDefinition;
  readonly base: Values<Hyperparameters>;
  readonly groups: readonly (Group & { readonly values: Values<Hyperparameters> })[];
  /** The hyperparameters and the learning rate of the step that follows so many. */
  at(values: Values<Hyperparameters>, stepsTaken: number): { readonly values: Values<Hyperparameters>; readonly lr: number };
}

/** Hyperparameters that hold for the call as a whole and so cannot differ between groups. */
const GLOBAL = ["max_grad_norm"];

/** Makes the plan of a call whose optimizer and groups (each with the base's hyperparameters merged in) have passed their schema. */
export const makePlan = (optimizer: Given, groups: readonly Group[], schedule?: Schedule): Plan => {
  const definition = registry.get(optimizer.name);
  if (!definition) throw new Error(`the schema let an unknown optimizer pass: ${optimizer.name}`);
  const resolve = (given: Given, field: string): Values<Hyperparameters> => {
    const values = withDefaults(definition, given);
    const problem = definition.check?.(values);
    if (problem) throw StepdError.mismatch("INVALID_PARAMS", `${field}/${problem.field}`, problem.expected, problem.found);
    return values;
  };
  const base = resolve(optimizer, "/optimizer");
  requireFewPatterns(groups);
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
    at: (values, stepsTaken) => {
      const base = values["lr"] as number;
      if (!schedule) return { values, lr: base };
      const { lr, momentum, peak } = schedule(base, stepsTaken);
      const own = peak === undefined ? values : { ...values, lr: peak };
      return { values: momentum === undefined ? own : withMomentum(own, momentum), lr };
    },
  };
};

/** The momentum that a schedule cycles is `momentum`, or the first of `betas`, as in torch. */
const withMomentum = (values: Values<Hyperparameters>, momentum: number): Values<Hyperparameters> => {
  if ("momentum" in values) return { ...values, momentum };
  if ("betas" in values) return { ...values, betas: [momentum, (values["betas"] as readonly number[])[1] as number] };
  throw StepdError.mismatch("INVALID_PARAMS", "/schedule/cycle_momentum", "false with an optimizer that has neither momentum nor betas", "true");
};
