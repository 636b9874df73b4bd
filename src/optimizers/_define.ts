/**
 * Defines an optimizer: names, hyperparameters as JSON Schema, state slots, and kernel stages with their scalars. The wire schema,
 * OpenRPC, OpenAPI, the documentation table and the clients' types are generated from it.
 */

/** The largest float32. A hyperparameter above it would be infinite in a float32 kernel. */
const FLOAT32_MAX = 3.4028234663852886e38;

/** A hyperparameter as a JSON Schema with a default. A hyperparameter without a default is required. */
export type Hyperparameter =
  | {
      readonly type: "number";
      readonly default?: number;
      readonly minimum?: number;
      readonly exclusiveMinimum?: number;
      readonly maximum?: number;
      readonly description: string;
    }
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
    }
  | {
      readonly type: "array";
      readonly items: { readonly type: readonly ["number", "null"] };
      readonly minItems: 2;
      readonly maxItems: 2;
      readonly default: readonly [null, number];
      readonly description: string;
    }
  | {
      readonly type: "array";
      readonly items: { readonly type: "number" };
      readonly minItems: 3;
      readonly maxItems: 3;
      readonly default: readonly [number, number, number];
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
        ? P["default" & keyof P] extends readonly [number, number, number]
          ? readonly [number, number, number]
          : P["default" & keyof P] extends readonly [null, number]
            ? readonly [number | null, number | null]
            : readonly [number, number]
        : number | null;

export type Hyperparameters = Readonly<Record<string, Hyperparameter>>;
export type Values<H extends Hyperparameters> = { readonly [K in keyof H]: ValueOf<H[K]> };

/** The inputs of one tensor's step, except the hyperparameters. A stage computes its scalars from them. */
export interface StepContext {
  /** The number of this step, counted from 1 for each tensor. */
  readonly step: number;
  /** The learning rate of this step. The hyperparameter `lr` is the base rate of the schedule. */
  readonly lr: number;
  /** True if this step creates a slot: at the tensor's first step, or if the state lacks the slot. */
  readonly isFirst: boolean;
  /** The number of elements of the tensor. */
  readonly elements: number;
  /** The sums over the whole tensor: one row for each finished stage. */
  readonly sums: readonly (readonly number[])[];
  /** The same sums over all tensors of the optimizer in this call. Empty unless the optimizer has `shared`. */
  readonly allSums: readonly (readonly number[])[];
  /** The values of the scalar slots before this step. */
  readonly scalarSlots: Readonly<Record<string, number>>;
}

/** The rows over which a kernel runs. Shards are blocks of rows, so their bounds depend on the shape alone. */
export interface Rows {
  readonly count: number;
  /** The number of rows in a shard. */
  readonly perShard: number;
  /** The elements by which each operand advances with a row. With 0, each shard gets the whole operand. */
  readonly strides: readonly number[];
  /** The work per row, in elements of an ordinary kernel. */
  readonly work: number;
}

/** An optimizer whose update of a tensor depends on all of its tensors, so that a step cannot be several calls. */
export interface SharedDefinition {
  /** The scalar slot that counts steps. All tensors take the scalar slots of the one with the largest count. */
  readonly count: string;
  /** The hyperparameters that must be equal in all groups of the optimizer. */
  readonly hyperparameters: readonly string[];
}

/** An optimizer whose stages depend on the shapes of tensors. */
export interface ShapeDefinition<V> {
  /** Returns the number of elements of each buffer in work memory. The stages use their names as operands. */
  buffers(values: V, shape: readonly number[]): Readonly<Record<string, number>>;
  /** Returns the shape of a slot; undefined if a tensor of this shape has no such slot. Absent if slots have the shapes of their parameters. */
  slotShape?(slot: string, shape: readonly number[]): readonly number[] | undefined;
}

/** An optimizer that takes only matrices. */
export interface MatrixDefinition<V> {
  /** Returns the number of multiplications and additions in the matrix products of a step. */
  flops(values: V, shape: readonly number[]): number;
}

/** One run of a kernel over all elements of a tensor. A stage starts after every tensor has finished the stage before. */
export interface Stage {
  /** The name of the kernel's export without its dtype suffix. */
  readonly kernel: string;
  /**
   * The kernel's pointer arguments, in order: `param`, `grad`, a slot, `sums`, or `absent` for an unused slot. With `shapes` there are also
   * buffers of work memory; `panel`, the scratch memory of a thread; and `index`: in place of an address, the number of the shard's first
   * element or row, counted from 1. A stage over elements with `index` gets slots and buffers whole.
   */
  readonly operands: readonly string[];
  /** The number of float64 sums per shard; 0 if `sums` is not an operand. */
  readonly sums: number;
  /** Present if the kernel runs over rows instead of elements. Such a stage is not the first, has no sums, and does not change the parameter. */
  readonly rows?: Rows;
  /** Computes the kernel's float64 scalars, which are equal for all elements. A kernel has at most 16. */
  scalars(context: StepContext): readonly number[];
}

export interface OptimizerDefinition<H extends Hyperparameters = Hyperparameters> {
  readonly name: string;
  readonly title: string;
  /** The revision increases with every change to the bits of a result. Each state records it. */
  readonly revision: number;
  /** Optimizers of one family have slots with the same meaning, so the state of one can continue under another. */
  readonly family: string;
  /** The update formula in plain text, for the documentation. */
  readonly formula: string;
  readonly references: readonly string[];
  readonly hyperparameters: H;
  /**
   * Hyperparameters for the tests over all optimizers: one variant for each path through the kernels. Keys are labels that begin with
   * the optimizer's name. The pinned digests use them.
   */
  readonly variants: Readonly<Record<string, Partial<Values<NoInfer<H>>>>>;
  /** Lists the slots that these hyperparameters need, under torch's names. */
  slots(values: Values<H>): readonly string[];
  /** All slots that a state of this optimizer may contain. */
  readonly allSlots: readonly string[];
  /**
   * The slots that `state_dtype` stores in a narrow format: `signed`, or `square` if they are never negative. Other slots stay in the
   * arithmetic dtype.
   */
  readonly moments?: Readonly<Record<string, "signed" | "square">>;
  /** Slots that a state may lack even after the first step. A missing slot starts at zero, and `isFirst` is true, as in torch. */
  readonly lateSlots: readonly string[];
  /** The slots with averages or sums of squared gradients. Once infinite, they never become finite again. */
  readonly squareSlots?: readonly string[];
  /** The slots that state.convert can add to a state. The value is the slot to copy, or null for zeros. */
  readonly fills?: Readonly<Record<string, string | null>>;
  /** True if torch's optimizer stores no step count. */
  readonly hasNoStepInTorch?: true;
  /**
   * Set if an element's update depends on other elements of its tensor: true, or the name of the hyperparameter that makes it so.
   * Such an optimizer refuses slices of tensors.
   */
  readonly wholeTensors?: true | (keyof H & string);
  /** Present if an update depends on all tensors of the optimizer. */
  readonly shared?: SharedDefinition;
  /** The hyperparameter that limits the norm over all gradients of a call. It must be equal in all groups. */
  readonly normLimit?: keyof H & string;
  /** Returns the initial values of slots that do not start at 0. */
  initial?(values: Values<H>): Readonly<Record<string, number>>;
  /** The slots with one float64 number per tensor, and their initial values. */
  readonly scalarSlots?: Readonly<Record<string, number>>;
  /** True if the peer keeps the scalar slots in float64. torch keeps NAdam's product in float32. */
  readonly hasDoubleScalars?: true;
  /** Computes the values of the scalar slots after this step. */
  nextScalarSlots?(values: Values<H>, context: StepContext): Readonly<Record<string, number>>;
  /** Checks a combination of hyperparameters that are valid by themselves. Returns the parts of an error, or undefined. */
  check?(values: Values<H>): { readonly field: string; readonly expected: string; readonly found: string } | undefined;
  /**
   * Returns the stage that turns the parameters into their average, if a model is evaluated with other parameters than it is trained
   * with. optimizer.average runs it.
   */
  average?(values: Values<H>): Stage;
  /** Returns the stages of a step, in order. Without `shapes`, the shape is empty. */
  stages(values: Values<H>, shape: readonly number[]): readonly Stage[];
  /** Present if the stages depend on the shapes of tensors. */
  readonly shapes?: ShapeDefinition<Values<H>>;
  /** Present if the optimizer takes only matrices. */
  readonly matrices?: MatrixDefinition<Values<H>>;
  /** Computes the trust ratio of a finished step: the factor that scaled the tensor's update. */
  trustRatio?(values: Values<H>, context: StepContext): number;
}

export const defineOptimizer = <const H extends Hyperparameters>(definition: OptimizerDefinition<H>): OptimizerDefinition<H> => definition;

/** Declares a finite number of at least `minimum`, within the range of float32. */
export const number = <const D extends number | undefined>(initial: D, description: string, minimum?: number) =>
  ({
    type: "number",
    ...(initial !== undefined && { default: initial as number }),
    minimum: minimum ?? -FLOAT32_MAX,
    maximum: FLOAT32_MAX,
    description,
  }) as const;

/** Declares a finite number above 0, within the range of float32. */
export const positive = <const D extends number>(initial: D, description: string) =>
  ({ type: "number", default: initial as number, exclusiveMinimum: 0, maximum: FLOAT32_MAX, description }) as const;

/** Declares a finite number of at least zero. */
export const rate = <const D extends number | undefined>(initial: D, description: string) => number(initial, description, 0);

export const flag = (description: string, initial = false) => ({ type: "boolean", default: initial, description }) as const;

/** Declares a number of at least zero, or null for none. */
export const optional = (description: string) => ({ type: ["number", "null"], default: null, minimum: 0, maximum: FLOAT32_MAX, description }) as const;

export const choice = <const C extends readonly string[]>(choices: C, initial: C[number], description: string) =>
  ({ type: "string", enum: choices, default: initial, description }) as const;

/** Every optimizer with `moments` has this hyperparameter. */
export const stateDtype = choice(
  ["F32", "BF16", "Q8"],
  "F32",
  "Format of the moments: F32; BF16, with half of the bytes; or Q8, with 8 bits per element and one scale per 64 elements. Under Q8, tensors below 4,096 elements keep their moments in F32. Parameters in F64 allow only F32",
);

/** Declares a pair of decay rates, each at least 0 and below 1. */
export const betas = (initial: readonly [number, number], description: string) =>
  ({ type: "array", items: { type: "number", minimum: 0, exclusiveMaximum: 1 }, minItems: 2, maxItems: 2, default: initial, description }) as const;

/** Declares three decay rates, each at least 0 and below 1. */
export const threeBetas = (initial: readonly [number, number, number], description: string) =>
  ({ type: "array", items: { type: "number", minimum: 0, exclusiveMaximum: 1 }, minItems: 3, maxItems: 3, default: initial, description }) as const;

/** Declares a pair of finite weights. */
export const pair = (initial: readonly [number, number], description: string) =>
  ({ type: "array", items: { type: "number", minimum: -FLOAT32_MAX, maximum: FLOAT32_MAX }, minItems: 2, maxItems: 2, default: initial, description }) as const;
