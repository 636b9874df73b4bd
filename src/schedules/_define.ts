/**
 * Defines a schedule: a name, arguments as JSON Schema under torch's names, and the learning rate as a pure function of the number of
 * steps taken. The wire schema, OpenRPC, OpenAPI and the clients' types are generated from it.
 */

/** The largest float32. A rate above it would be infinite in a float32 kernel. */
export const FLOAT32_MAX = 3.4028234663852886e38;

/** The rates of one step. `momentum` is present if the schedule cycles the momentum. */
export interface Rates {
  readonly lr: number;
  readonly momentum?: number;
  /** The highest rate of one_cycle and cyclic. It replaces the base rate in the ratio lr_t/lr. */
  readonly peak?: number;
}

/** Computes the rates of a step. `lr` is the base learning rate, `step` the number of steps taken before. */
export type Evaluator = (lr: number, step: number) => Rates;

/** The schedule object of a validated request. */
export interface Schedule {
  readonly name: string;
}

/** An argument as a JSON Schema with a default. An argument without a default is required. */
export interface Argument<Value = unknown> {
  readonly type: string | readonly string[];
  readonly default?: Value;
  readonly description: string;
  readonly [keyword: string]: unknown;
}

export type Arguments = Readonly<Record<string, Argument>>;
export type Values<A extends Arguments> = { readonly [K in keyof A]: A[K] extends Argument<infer Value> ? Value : never };

/** Describes an invalid combination of arguments that are valid by themselves. `field` is a JSON pointer within the schedule. */
export interface Problem {
  readonly field: string;
  readonly expected: string;
  readonly found: string;
}

/** The inputs of `prepare`, except the arguments. */
export interface PrepareContext {
  /** The JSON pointer of this schedule in the request, for errors that occur only at some steps. */
  readonly field: string;
  /** Prepares a nested schedule. `path` is its JSON pointer within this schedule. */
  nested(schedule: Schedule, path: string): Evaluator;
}

export interface ScheduleDefinition<A extends Arguments = Arguments> {
  readonly name: string;
  readonly title: string;
  /** The name of the equivalent class in torch.optim.lr_scheduler. */
  readonly torch: string;
  /** The formula of lr_t in plain text; t is the number of steps taken. */
  readonly formula: string;
  readonly references: readonly string[];
  readonly arguments: A;
  check?(values: Values<A>): Problem | undefined;
  /** Does the work that is equal for all steps and returns the evaluator. The evaluator takes at most logarithmic time in the step. */
  prepare(values: Values<A>, context: PrepareContext): Evaluator;
}

export const defineSchedule = <const A extends Arguments>(definition: ScheduleDefinition<A>): ScheduleDefinition<A> => definition;

interface Bounds {
  readonly minimum?: number;
  readonly exclusiveMinimum?: number;
  readonly maximum?: number;
  readonly exclusiveMaximum?: number;
}

/** Declares a number argument. Its maximum defaults to the largest float32. */
export const number = (description: string, bounds: Bounds, initial?: number): Argument<number> => ({
  type: "number",
  ...(initial !== undefined && { default: initial }),
  ...bounds,
  ...(bounds.maximum === undefined && bounds.exclusiveMaximum === undefined && { maximum: FLOAT32_MAX }),
  description,
});

const MAX_STEPS = Number.MAX_SAFE_INTEGER;

/** Declares an argument that counts steps. */
export const steps = (description: string, minimum: number, initial?: number): Argument<number> => ({
  type: "integer",
  ...(initial !== undefined && { default: initial }),
  minimum,
  maximum: MAX_STEPS,
  description,
});

/** Declares an argument that counts steps or is null. The description must explain null. */
export const optionalSteps = (description: string, minimum: number): Argument<number | null> => ({
  type: ["integer", "null"],
  default: null,
  minimum,
  maximum: MAX_STEPS,
  description,
});

// One schedule may have 1024 milestones, and one call 64 nested schedules.
export const [MAX_MILESTONES, MAX_SCHEDULES] = [1024, 64] as const;

/** Declares a list of step counts. The schedule's `check` must test their order. */
export const milestones = (description: string, minimum: number): Argument<readonly number[]> => ({
  type: "array",
  maxItems: MAX_MILESTONES,
  items: { type: "integer", minimum, maximum: MAX_STEPS },
  description,
});

/** A table has at most this many rates. schedule.evaluate returns as many. */
const MAX_TABLE_RATES = 10_000;

/** Declares a list of learning rates. */
export const rates = (description: string): Argument<readonly number[]> => ({
  type: "array",
  minItems: 1,
  maxItems: MAX_TABLE_RATES,
  items: { type: "number", minimum: 0, maximum: FLOAT32_MAX },
  description,
});

export const flag = (description: string, initial: boolean): Argument<boolean> => ({ type: "boolean", default: initial, description });

export const choice = <const C extends string>(description: string, choices: readonly C[], initial: NoInfer<C>): Argument<C> => ({
  type: "string",
  enum: choices,
  default: initial,
  description,
});

/** Declares a list of nested schedules. */
export const schedules = (description: string): Argument<readonly Schedule[]> => ({
  type: "array",
  items: { $ref: "schedule.schema.json" },
  minItems: 1,
  maxItems: MAX_SCHEDULES,
  description,
});

/** Counts the milestones at or before a step, by binary search. */
export const milestonesReached = (ascending: readonly number[], step: number): number => {
  let low = 0;
  let high = ascending.length;
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if ((ascending[middle] as number) <= step) low = middle + 1;
    else high = middle;
  }
  return low;
};
