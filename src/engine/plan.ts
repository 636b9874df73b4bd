/** A call's plan contains its optimizer, the hyperparameters of each group, and its schedule. All are checked. */
import { StepdError } from "../errors/errors.ts";
import type { Group as GivenGroup, Optimizer, StepParams } from "../generated/wire.gen.ts";
import { type Hyperparameters, type OptimizerDefinition, registry, type Values } from "../optimizers/registry.ts";
import { prepare } from "../schedules/registry.ts";
import { validate } from "../validation/validate.ts";
import { type Group, requireFewPatterns, withDefaults } from "./groups.ts";

export interface Plan {
  readonly optimizer: OptimizerDefinition;
  readonly base: Values<Hyperparameters>;
  readonly groups: readonly (Group & { readonly values: Values<Hyperparameters> })[];
  /** Evaluates the schedule after `stepsTaken` steps. Returns the same `values` object unless the schedule changes hyperparameters. */
  ratesAt(values: Values<Hyperparameters>, stepsTaken: number): Rates;
}

export interface Rates {
  readonly values: Values<Hyperparameters>;
  readonly lr: number;
}

/** A call's plan depends only on these fields. */
export type PlanOptions = Pick<StepParams, "optimizer" | "groups" | "schedule">;

/** Creates the plan of a validated call: merges each group's hyperparameters into the call's and checks them. Throws INVALID_PARAMS. */
export const planOf = ({ optimizer, groups = [], schedule }: PlanOptions): Plan => {
  const definition = registry.get(optimizer.name);
  if (!definition) throw new Error(`the schema let an unknown optimizer pass: ${optimizer.name}`);
  const resolve = (given: Optimizer, field: string): Values<Hyperparameters> => {
    const values = withDefaults(definition, given as Group["optimizer"]);
    const problem = definition.check?.(values);
    if (problem) throw StepdError.mismatch("INVALID_PARAMS", `${field}/${problem.field}`, problem.expected, problem.found);
    return values;
  };
  requireFewPatterns(groups);
  const merged = groups.map((group, index) => mergeGroup(optimizer, group, `/groups/${index}/optimizer`));
  const base = resolve(optimizer, "/optimizer");
  const resolved = merged.map((group, index) => {
    const field = `/groups/${index}/optimizer`;
    const values = resolve(group.optimizer as Optimizer, field);
    const name = definition.normLimit;
    if (name !== undefined && values[name] !== base[name]) {
      throw StepdError.mismatch("INVALID_PARAMS", `${field}/${name}`, "no value, because it holds for the whole call", String(values[name]));
    }
    return { ...group, values };
  });
  const evaluate = schedule && prepare(schedule);
  return {
    optimizer: definition,
    base,
    groups: resolved,
    ratesAt: (values, stepsTaken) => {
      const base = values["lr"] as number;
      if (!evaluate) return { values, lr: base };
      const { lr, momentum, peak } = evaluate(base, stepsTaken);
      const own = peak === undefined ? values : { ...values, lr: peak };
      return { values: momentum === undefined ? own : withMomentum(own, momentum), lr };
    },
  };
};

const mergeGroup = (optimizer: Optimizer, { tensors, optimizer: override }: GivenGroup, field: string): Group => {
  const values = { ...optimizer, ...override };
  validate("optimizer.schema.json", values, field);
  return { tensors, optimizer: values };
};

/** Applies a schedule's momentum to `momentum` or to the first of `betas`, as torch does. */
const withMomentum = (values: Values<Hyperparameters>, momentum: number): Values<Hyperparameters> => {
  if ("momentum" in values) return { ...values, momentum };
  if ("betas" in values) return { ...values, betas: [momentum, (values["betas"] as readonly number[])[1] as number] };
  throw StepdError.mismatch("INVALID_PARAMS", "/schedule/cycle_momentum", "false with an optimizer that has neither momentum nor betas", "true");
};
