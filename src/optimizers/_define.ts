/**
 * What an optimizer is to stepd: names, hyperparameters as JSON Schema, state slots, and the kernel stages with the scalars
 * they take. The wire schema, OpenRPC, OpenAPI, the documentation table and the clients' types all derive from it.
 */

/** The largest float32: a hyperparameter above it would be infinite in a float32 kernel. */
const FLOAT32_MAX = 3.4028234663852886e38;

/** One hyperparameter: a JSON Schema with its default. Without a default it must be given. */
export type Hyperparameter =
  | { readonly type: "number"; readonly default?: number; readonly minimum?: number; readonly maximum?: number; readonly description: string }
  | { readonly type: "boolean"; readonly default: boolean; readonly description: string }
  | {
      readonly type: readonly ["number", "null"];
      readonly default: null;
      readonly minimum?: number;
      readonly exclusiveMinimum?: number;
      readonly maximum?: number;
      readonly description: string;
    }
  | { readonly type: "string"; readonly enum: readonly string[]; readonly default: string; readonly description: string }
  | {
      readonly type: "array";
      readonly items: { readonly type: "number" };
      readonly minItems: 2;
      readonly maxItems: 2;
      readonly default: readonly [number, number];
      readonly description: string;
    };

type ValueOf<P extends Hyperparameter> = P extends { type: "number" }
  ? number
  : P extends { type: "boolean" }
    ? boolean
    : P extends { type: "string" }
      ? P["enum" & keyof P] extends readonly (infer Choice)[]
        ? Choice
        : never
      : P extends { type: "array" }
        ? readonly [number, number]
        : number | null;

export type Hyperparameters = Readonly<Record<string, Hyperparameter>>;
export type Values<H extends Hyperparameters> = { readonly [K in keyof H]: ValueOf<H[K]> };

/** What the scalars of one tensor's step depend on, beside the hyperparameters. */
export interface Moment {
  /** The tensor's count of steps with this one: 1 at its first. */
  readonly step: number;
  /** The learning rate of this step; `lr` among the hyperparameters is the base that a schedule starts from. */
  readonly lr: number;
  /** Whether a slot was made by this very step, by first use or because the state had none. */
  readonly first: boolean;
  /** Elements of the tensor. */
  readonly elements: number;
  /** For each stage that has run: its sums over the whole tensor. */
  readonly sums: readonly (readonly number[])[];
  /** The scalar slots as they were before this step. */
  readonly scalarSlots: Readonly<Record<string, number>>;
}

/** One kernel over all elements of a tensor. The next stage starts when every tensor has finished this one. */
export interface Stage {
  /** The kernel's export without its dtype suffix. */
  readonly kernel: string;
  /** Memory that the kernel takes, in its order: `param`, `grad`, a slot, `sums`, or `absent` for a slot not in use. */
  readonly operands: readonly string[];
  /** How many float64 sums the kernel gives for a block; 0 without `sums` among the operands. */
  readonly sums: number;
  /** Everything that is the same for all elements, in float64, in the kernel's order: 16 numbers at most. */
  scalars(at: Moment): readonly number[];
}

export interface OptimizerDefinition<H extends Hyperparameters = Hyperparameters> {
  readonly name: string;
  readonly title: string;
  /** Raised when any bit of a result changes; the state carries it. */
  readonly revision: number;
  /** Optimizers of one family share slots and their meaning, so a state of one continues under another. */
  readonly family: string;
  /** The update in plain text, as the documentation prints it. */
  readonly formula: string;
  readonly references: readonly string[];
  readonly hyperparameters: H;
  /**
   * Settings that the suites over all optimizers run it with, by a label of its own: one for each way through its kernels.
   * Labels begin with the name. Its pinned bits stand under them.
   */
  readonly variants: Readonly<Record<string, Partial<Values<NoInfer<H>>>>>;
  /** The slots in use with these hyperparameters, in the names of torch. */
  slots(values: Values<H>): readonly string[];
  /** All slots that can be in a state of this optimizer. */
  readonly allSlots: readonly string[];
  /** Slots that may be missing from a state of earlier steps: they start at zero, with `first` set, as in torch. */
  readonly lateSlots: readonly string[];
  /** Slots of averages or sums of squares of gradients: an infinite one never becomes finite again. */
  readonly squareSlots?: readonly string[];
  /** Slots that state.convert can add to a state: the slot that each starts as a copy of, or null for zeros. */
  readonly fills?: Readonly<Record<string, string | null>>;
  /** Set where the peer in torch keeps no count of steps beside the slots. */
  readonly isStepless?: true;
  /** The hyperparameter that limits the norm over all gradients of a call, and so cannot differ between groups. */
  readonly normLimit?: keyof H & string;
  /** What a slot starts from where that is not 0. */
  initial?(values: Values<H>): Readonly<Record<string, number>>;
  /** Slots that are one float64 number for a tensor, with what they start from. */
  readonly scalarSlots?: Readonly<Record<string, number>>;
  /** The scalar slots after this step. */
  nextScalarSlots?(values: Values<H>, at: Moment): Readonly<Record<string, number>>;
  /** What is wrong with a combination of hyperparameters that are each in range: the field, what was expected, what was found. */
  check?(values: Values<H>): { readonly field: string; readonly expected: string; readonly found: string } | undefined;
  stages(values: Values<H>): readonly Stage[];
  /** The factor that a finished step scaled a tensor's update by, where the optimizer has one. */
  trustRatio?(values: Values<H>, at: Moment): number;
}

export const defineOptimizer = <const H extends Hyperparameters>(definition: OptimizerDefinition<H>): OptimizerDefinition<H> => definition;

/** A finite number of at least `minimum` that float32 can hold. */
export const number = <const D extends number | undefined>(initial: D, description: string, minimum?: number) =>
  ({
    type: "number",
    ...(initial !== undefined && { default: initial as number }),
    minimum: minimum ?? -FLOAT32_MAX,
    maximum: FLOAT32_MAX,
    description,
  }) as const;

/** A finite number of at least zero. */
export const rate = <const D extends number | undefined>(initial: D, description: string) => number(initial, description, 0);

export const flag = (description: string, initial = false) => ({ type: "boolean", default: initial, description }) as const;

/** A number of at least zero, or null for none. */
export const optional = (description: string) => ({ type: ["number", "null"], default: null, minimum: 0, maximum: FLOAT32_MAX, description }) as const;

export const choice = <const C extends readonly string[]>(choices: C, initial: C[number], description: string) =>
  ({ type: "string", enum: choices, default: initial, description }) as const;

/** Two decay rates from 0 up to, not including, 1. */
export const betas = (initial: readonly [number, number], description: string) =>
  ({ type: "array", items: { type: "number", minimum: 0, exclusiveMaximum: 1 }, minItems: 2, maxItems: 2, default: initial, description }) as const;

/** Two weights, each any finite number. */
export const pair = (initial: readonly [number, number], description: string) =>
  ({ type: "array", items: { type: "number", minimum: -FLOAT32_MAX, maximum: FLOAT32_MAX }, minItems: 2, maxItems: 2, default: initial, description }) as const;
