/** A call's plan contains its optimizers, the hyperparameters of each group, and its schedule. All are checked. */
import { StepdError } from "../errors/errors.ts";
import type { Group, Optimizer, StepParams } from "../generated/wire.gen.ts";
import { type Hyperparameters, type OptimizerDefinition, registry, type Values } from "../optimizers/registry.ts";
import { prepare } from "../schedules/registry.ts";
import { validate } from "../validation/validate.ts";
import { groupFinder, type OptimizerInput, requireFewPatterns, withDefaults } from "./groups.ts";

/** The optimizer of the call or of a group, with all hyperparameters. */
export interface Settings {
  readonly optimizer: OptimizerDefinition;
  readonly values: Values<Hyperparameters>;
  /** The JSON pointer of the optimizer in the call. */
  readonly field: string;
}

export interface Plan {
  /** The settings of parameters that belong to no group. */
  readonly base: Settings;
  /** True if no group has another optimizer than the base. */
  readonly hasOneOptimizer: boolean;
  /** Returns the settings of a parameter: those of the first group that matches its name, or the base. */
  settingsOf(parameter: string): Settings;
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
  requireFewPatterns(groups);
  const inputs = groups.map((group, index) => groupInput(optimizer, group, `/groups/${index}/optimizer`));
  const base = settingsFrom(optimizer as OptimizerInput, "/optimizer");
  const settings = inputs.map((input, index) => {
    const own = settingsFrom(input, `/groups/${index}/optimizer`);
    requireCommonLimit(own, base, groups[index]?.optimizer["name"] !== undefined);
    return own;
  });
  requireSharedValues([base, ...settings]);
  const groupOf = groupFinder(groups);
  const evaluate = schedule && prepare(schedule);
  return {
    base,
    hasOneOptimizer: settings.every((own) => own.optimizer === base.optimizer),
    settingsOf: (parameter) => settings[groupOf(parameter)] ?? base,
    ratesAt: (values, stepsTaken) => {
      const base = values["lr"] as number;
      if (!evaluate) return { values, lr: base };
      const { lr, momentum, peak } = evaluate(base, stepsTaken);
      const own = peak === undefined ? values : { ...values, lr: peak };
      return { values: momentum === undefined ? own : withMomentum(own, momentum), lr };
    },
  };
};

/** Returns the optimizer object of a group: its own if it names an optimizer, else the call's with the group's hyperparameters. */
const groupInput = (optimizer: Optimizer, { optimizer: own }: Group, field: string): OptimizerInput => {
  const input = own["name"] === undefined ? { ...optimizer, ...own } : own;
  validate("optimizer.schema.json", input, field);
  return input as OptimizerInput;
};

const settingsFrom = (input: OptimizerInput, field: string): Settings => {
  const optimizer = registry.get(input.name);
  if (!optimizer) throw new Error(`the schema let an unknown optimizer pass: ${input.name}`);
  const values = withDefaults(optimizer, input);
  const problem = optimizer.check?.(values);
  if (problem) throw StepdError.mismatch("INVALID_PARAMS", `${field}/${problem.field}`, problem.expected, problem.found);
  return { optimizer, values, field };
};

/** Returns the optimizer's own limit of the norm over all gradients, or null. */
export const normLimit = ({ optimizer, values }: Settings): number | null =>
  optimizer.normLimit === undefined ? null : (values[optimizer.normLimit] as number | null);

/** Throws INVALID_PARAMS if a group limits the norm over all gradients by itself. A group that names its optimizer may leave the limit out. */
const requireCommonLimit = (own: Settings, base: Settings, isNamed: boolean): void => {
  const limit = normLimit(own);
  if (own.optimizer.normLimit === undefined || limit === normLimit(base) || (isNamed && limit === null)) return;
  const expected = "no value, because it holds for the whole call";
  throw StepdError.mismatch("INVALID_PARAMS", `${own.field}/${own.optimizer.normLimit}`, expected, String(limit));
};

/** Throws INVALID_PARAMS if groups of one optimizer differ in a hyperparameter that its tensors share. */
const requireSharedValues = (settings: readonly Settings[]): void => {
  const first = new Map<OptimizerDefinition, Settings>();
  for (const own of settings) {
    const { optimizer, values, field } = own;
    const { values: expected, field: where } = first.get(optimizer) ?? own;
    first.set(optimizer, first.get(optimizer) ?? own);
    for (const key of optimizer.shared?.hyperparameters ?? []) {
      const [wanted, found] = [JSON.stringify(expected[key]), JSON.stringify(values[key])];
      if (wanted !== found) throw StepdError.mismatch("INVALID_PARAMS", `${field}/${key}`, `${wanted}, as in ${where}, because all tensors share it`, found);
    }
  }
};

/** Applies a schedule's momentum to `momentum` or to the first of `betas`, as torch does. */
const withMomentum = (values: Values<Hyperparameters>, momentum: number): Values<Hyperparameters> => {
  if ("momentum" in values) return { ...values, momentum };
  if ("betas" in values) return { ...values, betas: [momentum, (values["betas"] as readonly number[])[1] as number] };
  throw StepdError.mismatch("INVALID_PARAMS", "/schedule/cycle_momentum", "false with an optimizer that has neither momentum nor betas", "true");
};
