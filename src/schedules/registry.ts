/** Exports the public parts of schedules/: the registry by name, and the evaluation of a schedule. */
import { StepdError } from "../errors/errors.ts";
import { type Evaluator, FLOAT32_MAX, MAX_SCHEDULES, type Rates, type Schedule, type Values } from "./_define.ts";
import { registry } from "./_registry.gen.ts";

export type { Evaluator, Rates, Schedule, ScheduleDefinition } from "./_define.ts";
export { registry } from "./_registry.gen.ts";

/**
 * Checks a schedule that its JSON Schema has already validated, and returns its evaluator.
 *
 * @param field - JSON pointer of the schedule in the call, for errors.
 * @returns a function that computes a step's rates from the base learning rate and the number of steps taken (an integer up to 2^53).
 * @throws INVALID_PARAMS if arguments contradict each other. The evaluator throws it if the schedule has ended (one_cycle), or if
 *   the rate exceeds float32.
 */
export const prepare = (schedule: Schedule, field = "/schedule"): Evaluator => {
  requireFewSchedules(schedule, field);
  const evaluate = prepareOne(schedule, field);
  return (lr, step) => {
    const rates = evaluate(lr, step);
    // The negated comparison also rejects NaN.
    if (!(rates.lr <= FLOAT32_MAX)) throw StepdError.mismatch("INVALID_PARAMS", field, "learning rates that float32 can hold", `${rates.lr} at step ${step}`);
    return rates;
  };
};

/** Throws INVALID_PARAMS if there are too many schedules in total. Nested sequences multiply the number of schedules to prepare. */
const requireFewSchedules = (schedule: Schedule, field: string): void => {
  let count = 0;
  const visit = ({ schedules = [] }: Schedule & { readonly schedules?: readonly Schedule[] }): void => {
    for (const part of schedules) {
      if (++count > MAX_SCHEDULES) throw StepdError.mismatch("INVALID_PARAMS", field, `at most ${MAX_SCHEDULES} schedules, within each other or not`, "more");
      visit(part);
    }
  };
  visit(schedule);
};

const prepareOne = (schedule: Schedule, field: string): Evaluator => {
  const definition = registry.get(schedule.name);
  if (!definition) throw new Error(`the schema let an unknown schedule pass: ${schedule.name}`);
  const given = schedule as Schedule & Readonly<Record<string, unknown>>;
  const values = Object.fromEntries(
    Object.entries(definition.arguments).map(([key, { default: initial }]) => [key, given[key] === undefined ? initial : given[key]]),
  ) as Values<typeof definition.arguments>;
  const problem = definition.check?.(values);
  if (problem) throw StepdError.mismatch("INVALID_PARAMS", `${field}${problem.field}`, problem.expected, problem.found);
  return definition.prepare(values, { field, nested: (inner, path) => prepareOne(inner, `${field}${path}`) });
};

/** Evaluates a schedule at a step, counted from 0. Throws the errors of `prepare`. */
export const evaluate = (schedule: Schedule, lr: number, step: number): Rates => prepare(schedule)(lr, step);
