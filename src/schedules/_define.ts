/**
 * What a schedule is to stepd: a name, arguments as JSON Schema in torch's names, and the learning rate as a pure function of
 * the number of steps taken. The wire schema, OpenRPC, OpenAPI and the clients' types derive from it.
 */

/** The largest float32: a rate above it would be infinite in a float32 kernel. */
export const FLOAT32_MAX = 3.4028234663852886e38;

/** What a schedule says of one step. `momentum` is there where the schedule cycles it. */
export interface Rates {
  readonly lr: number;
  readonly momentum?: number;
  /** What the rate is a part of, where that is an argument of the schedule's own and not the base rate: of one_cycle and cyclic. */
  readonly peak?: number;
}

/** The rates of the step that comes after `step` others, with this base learning rate. */
export type Evaluator = (lr: number, step: number) => Rates;

/** A schedule as it comes over the wire, its schema having passed. */
export interface Schedule {
  readonly name: string;
}

/** One argument: a JSON Schema with its default. Without a default it must be given. */
export interface Argument<Value = unknown> {
  readonly type: string | readonly string[];
  readonly default?: Value;
  readonly description: string;
  readonly [keyword: string]: unknown;
}

export type Arguments = Readonly<Record<string, Argument>>;
export type Values<A extends Arguments> = { readonly [K in keyof A]: A[K] extends Argument<infer Value> ? Value : never };

/** What is wrong with arguments that have each passed their schema: a JSON pointer within the schedule, and the rest of the error. */
export interface Problem {
  readonly field: string;
  readonly expected: string;
  readonly found: string;
}

/** What a definition has at hand beside its arguments. */
export interface Surroundings {
  /** The JSON pointer of this schedule, for errors that depend on the step. */
  readonly field: string;
  /** Prepares a schedule within this one, `path` being its JSON pointer from here. */
  nested(schedule: Schedule, path: string): Evaluator;
}

export interface ScheduleDefinition<A extends Arguments = Arguments> {
  readonly name: string;
  readonly title: string;
  /** The class in torch.optim.lr_scheduler. */
  readonly torch: string;
  /** lr_t in plain text, t being the number of steps taken. */
  readonly formula: string;
  readonly references: readonly string[];
  readonly arguments: A;
  check?(values: Values<A>): Problem | undefined;
  /** Does once what is the same for all steps. The evaluator takes time of at most the logarithm of the step. */
  prepare(values: Values<A>, surroundings: Surroundings): Evaluator;
}

export const defineSchedule = <const A extends Arguments>(definition: ScheduleDefinition<A>): ScheduleDefinition<A> => definition;

interface Bounds {
  readonly minimum?: number;
  readonly exclusiveMinimum?: number;
  readonly maximum?: number;
  readonly exclusiveMaximum?: number;
}

/** A number within bounds, at most what float32 can hold. */
export const number = (description: string, bounds: Bounds, initial?: number): Argument<number> => ({
  type: "number",
  ...(initial !== undefined && { default: initial }),
  ...bounds,
  ...(bounds.maximum === undefined && bounds.exclusiveMaximum === undefined && { maximum: FLOAT32_MAX }),
  description,
});

const MAX_WHOLE = Number.MAX_SAFE_INTEGER;

/** A count of steps. */
export const steps = (description: string, minimum: number, initial?: number): Argument<number> => ({
  type: "integer",
  ...(initial !== undefined && { default: initial }),
  minimum,
  maximum: MAX_WHOLE,
  description,
});

/** A count of steps, or null for what the description says. */
export const optionalSteps = (description: string, minimum: number): Argument<number | null> => ({
  type: ["integer", "null"],
  default: null,
  minimum,
  maximum: MAX_WHOLE,
  description,
});

/** Milestones of a schedule, and schedules of a sequence. */
export const [MAX_MILESTONES, MAX_SCHEDULES] = [1024, 64] as const;

/** Counts of steps, in order. */
export const milestones = (description: string, minimum: number): Argument<readonly number[]> => ({
  type: "array",
  maxItems: MAX_MILESTONES,
  items: { type: "integer", minimum, maximum: MAX_WHOLE },
  description,
});

export const flag = (description: string, initial: boolean): Argument<boolean> => ({ type: "boolean", default: initial, description });

export const choice = <const C extends string>(description: string, choices: readonly C[], initial: NoInfer<C>): Argument<C> => ({
  type: "string",
  enum: choices,
  default: initial,
  description,
});

/** Schedules within a schedule. */
export const schedules = (description: string): Argument<readonly Schedule[]> => ({
  type: "array",
  items: { $ref: "schedule.schema.json" },
  minItems: 1,
  maxItems: MAX_SCHEDULES,
  description,
});

/** How many of these ascending milestones the step has reached, in time of their logarithm. */
export const reached = (ascending: readonly number[], step: number): number => {
  let low = 0;
  let high = ascending.length;
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if ((ascending[middle] as number) <= step) low = middle + 1;
    else high = middle;
  }
  return low;
};
