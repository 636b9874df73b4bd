/**
 * The kernels that a step, a measurement or a conversion of a tensor takes, in their order, for all tensors of the same dtypes,
 * hyperparameters and slots. Tensors that are not in the dtype of arithmetic are widened shard by shard into scratch memory in
 * front of a kernel and narrowed behind it.
 */
import { createHash } from "node:crypto";
import { bytesOf } from "../codec/dtype.ts";
import type { Hyperparameters, Stage, Values } from "../optimizers/registry.ts";
import { scratch } from "../pool/pool.ts";
import { type Columns, fixed, GRADS, type KernelCall, MADE, type Operand, PARAMS, ROUNDED, STATE, sumsAt, tensorAt, WORK } from "./runner.ts";
import { MASTER_PARAM, slotDtype } from "./state.ts";

/** Indexes of a target's offsets. Its slots follow. */
export const [PARAM_AT, GRAD_AT, HOME_AT, SLOTS_AT] = [0, 1, 2, 3] as const;

/** The scratch areas of a thread: a widened parameter, a widened gradient, a copy of the parameter before the step. */
const PARAM_SCRATCH = fixed(scratch(0));
const GRAD_SCRATCH = fixed(scratch(1));
const COPY_SCRATCH = fixed(scratch(2));

/** The number of the shard's first element plus one: a pointer that walks one "byte" an element. */
const ELEMENT_INDEX = fixed({ address: 1, stride: 1 });

/** A slot that is not in use, for the kernel. */
const ABSENT = fixed({ address: 0, stride: 0 });

/** Sums of gradient_check: values that are not finite, and squares that are not; gradient_norm adds zeros and the sum of squares. */
const GRADIENT_SUMS = { check: 2, norm: 4 } as const;

/** What a call does with all its gradients and parameters. */
export interface Treatment {
  readonly lossScale: number;
  readonly maxValue: number | undefined;
  /** Whether all gradients are measured before the first stage. */
  readonly isMeasured: boolean;
  /** How gradients that are not measured are looked at in front of the first stage. */
  readonly look: "check" | "norm" | undefined;
  readonly wantsStats: boolean;
  /** Seed of stochastic rounding to BF16; to nearest even without. */
  readonly seed: number | undefined;
  /** Whether the reply has the parameters rounded to BF16. */
  readonly isRounded: boolean;
}

/** What tensors with one recipe have in common. */
export interface Kind {
  readonly param: string;
  readonly grad: string;
  readonly values: Values<Hyperparameters>;
  readonly stages: readonly Stage[];
  /** Slots in use, with whether this step makes them. */
  readonly slots: readonly (readonly [slot: string, isMade: boolean])[];
  /** Whether the step makes slots beside the master copy, and which of them no earlier step can have been taken without. */
  readonly isFirst: boolean;
  readonly needed: readonly string[];
}

export interface Phase {
  readonly calls: readonly KernelCall[];
  /** Sums of the gradient, of the stage, and of the parameter before the step and its change. */
  readonly look: Columns | undefined;
  readonly stage: Columns;
  readonly stats: Columns | undefined;
}

/** Kernels that take sums of a tensor. */
export interface Measurement {
  readonly calls: readonly KernelCall[];
  readonly look: Columns;
}

export interface Recipe extends Kind {
  readonly measure: Measurement | undefined;
  /** Copies the parameter into a new master copy. */
  readonly fill: readonly KernelCall[];
  /** One for each stage. */
  readonly phases: readonly Phase[];
  /** Counts the values of the new parameter that are not finite, as the reply has them. */
  readonly results: Measurement;
  /** Columns of sums. */
  readonly columns: number;
  /** Bytes an element of memory for a widened gradient; 0 where it needs none of its own. */
  readonly homeStride: number;
}

export interface NormsRecipe extends Pick<Recipe, "columns" | "homeStride"> {
  readonly measure: Measurement;
  readonly squares: Measurement;
}

const none = (): readonly number[] => [];

/** Hands out columns of sums one after the other. */
class Matrix {
  width = 0;

  take(width: number): Columns {
    this.width += width;
    return { first: this.width - width, width };
  }
}

export class Recipes {
  readonly #kernel: (name: string) => number;

  constructor(kernel: (name: string) => number) {
    this.#kernel = kernel;
  }

  /** All kernels of a tensor's step. */
  step(kind: Kind, treatment: Treatment): Recipe {
    const { param, grad, stages } = kind;
    const { isMeasured, look } = treatment;
    const dtype = slotDtype(param);
    const matrix = new Matrix();
    // In place, in scratch where one stage is all, else in memory of its own.
    const needsHome = grad !== dtype && (isMeasured || stages.length > 1);
    const gradient = grad === dtype ? tensorAt(GRADS, GRAD_AT, dtype) : needsHome ? tensorAt(WORK, HOME_AT, dtype) : GRAD_SCRATCH;
    const measure = isMeasured ? this.#measure(param, grad, treatment.lossScale, matrix.take(GRADIENT_SUMS.norm)) : undefined;
    const phases = stages.map((stage, index): Phase => {
      const isFirst = index === 0;
      const isLast = index === stages.length - 1;
      const looked = isFirst && look ? matrix.take(GRADIENT_SUMS[look]) : undefined;
      const columns = matrix.take(stage.sums);
      const stats = isLast && treatment.wantsStats ? matrix.take(2) : undefined;
      const calls = [
        ...(isFirst ? this.#prepareGradient(kind, gradient, looked, treatment) : []),
        ...this.#stage(kind, stage, gradient, columns, stats, isFirst, isLast, treatment.seed),
      ];
      return { calls, look: looked, stage: columns, stats };
    });
    return {
      ...kind,
      measure,
      fill: this.#fill(kind),
      phases,
      results: this.#results(param, treatment.isRounded, matrix.take(GRADIENT_SUMS.check)),
      columns: matrix.width,
      homeStride: needsHome ? (bytesOf(dtype) as number) : 0,
    };
  }

  /** The sums of a gradient, and the sum of squares of its parameter in its dtype of arithmetic. */
  norms(param: string, grad: string, lossScale: number): NormsRecipe {
    const dtype = slotDtype(param);
    const matrix = new Matrix();
    const needsHome = grad !== dtype;
    const stored = tensorAt(PARAMS, PARAM_AT, param);
    const wide = param === dtype ? stored : PARAM_SCRATCH;
    const squares = matrix.take(1);
    return {
      measure: this.#measure(param, grad, lossScale, matrix.take(GRADIENT_SUMS.norm)),
      squares: { calls: [...this.#widen(param, dtype, stored, wide), this.#call("stats_squares", dtype, [wide, sumsAt(squares)])], look: squares },
      columns: matrix.width,
      homeStride: needsHome ? (bytesOf(dtype) as number) : 0,
    };
  }

  /** A parameter rounded to BF16, to nearest even. */
  round(param: string): readonly KernelCall[] {
    const stored = tensorAt(PARAMS, PARAM_AT, param);
    const single = param === "F32" ? stored : PARAM_SCRATCH;
    return [...this.#widen(param, "F32", stored, single), this.#convert("f32_bf16", single, tensorAt(ROUNDED, GRAD_AT, "BF16"))];
  }

  /** Widens a gradient into memory of its own, divides it by the loss scale, and takes its sums. */
  #measure(param: string, grad: string, lossScale: number, look: Columns): Measurement {
    const dtype = slotDtype(param);
    const gradient = grad === dtype ? tensorAt(GRADS, GRAD_AT, dtype) : tensorAt(WORK, HOME_AT, dtype);
    return { calls: [...this.#unscale(grad, dtype, gradient, lossScale), this.#call("gradient_norm", dtype, [gradient, sumsAt(look)])], look };
  }

  #results(param: string, isRounded: boolean, look: Columns): Measurement {
    const dtype = slotDtype(param);
    const stored = tensorAt(PARAMS, PARAM_AT, param);
    // Of F32 alone BF16 makes finite values infinite.
    const overflows = isRounded && param === "F32";
    const wide = param === dtype && !overflows ? stored : PARAM_SCRATCH;
    const rounding = overflows ? [this.#convert("f32_bf16", stored, COPY_SCRATCH), this.#convert("bf16_f32", COPY_SCRATCH, wide)] : [];
    return { calls: [...rounding, ...this.#widen(param, dtype, stored, wide), this.#call("gradient_check", dtype, [wide, sumsAt(look)])], look };
  }

  #fill({ param, slots }: Kind): readonly KernelCall[] {
    const index = slots.findIndex(([slot, isMade]) => isMade && slot === MASTER_PARAM);
    return index < 0 ? [] : this.#widen(param, "F32", tensorAt(PARAMS, PARAM_AT, param), tensorAt(MADE, SLOTS_AT + index, "F32"));
  }

  /** Everything that happens to a shard's gradient in front of the first stage. */
  #prepareGradient(
    { param, grad, values }: Kind,
    gradient: Operand,
    columns: Columns | undefined,
    { lossScale, maxValue, isMeasured, look }: Treatment,
  ): readonly KernelCall[] {
    const dtype = slotDtype(param);
    const sign = values["maximize"] === true ? -1 : 1;
    return [
      ...(isMeasured ? [] : this.#unscale(grad, dtype, gradient, lossScale)),
      ...(columns ? [this.#call(`gradient_${look}`, dtype, [gradient, sumsAt(columns)])] : []),
      ...(maxValue === undefined ? [] : [this.#call("gradient_clamp", dtype, [gradient], () => [maxValue])]),
      this.#call("gradient_scale", dtype, [gradient], ({ scale }) => (sign * scale === 1 ? undefined : [sign * scale])),
    ];
  }

  /** A stage's kernel with what goes before and behind it: the parameter in the dtype of arithmetic, and the statistics of its change. */
  #stage(
    { param, slots }: Kind,
    { kernel, operands, scalars }: Stage,
    gradient: Operand,
    columns: Columns,
    stats: Columns | undefined,
    isFirst: boolean,
    isLast: boolean,
    seed: number | undefined,
  ): readonly KernelCall[] {
    const dtype = slotDtype(param);
    const slotAt = new Map(slots.map(([slot, isMade], index) => [slot, { operand: tensorAt(isMade ? MADE : STATE, SLOTS_AT + index, dtype), isMade }]));
    const stored = tensorAt(PARAMS, PARAM_AT, param);
    const master = slotAt.get(MASTER_PARAM);
    const wide = master?.operand ?? (param === dtype ? stored : PARAM_SCRATCH);
    const needsFill = master ? master.isMade && isFirst : operands.includes("param");
    const operandOf = (operand: string): Operand => {
      if (operand === "param") return wide;
      if (operand === "grad") return gradient;
      if (operand === "sums") return sumsAt(columns);
      return slotAt.get(operand)?.operand ?? ABSENT;
    };
    return [
      ...(needsFill ? this.#widen(param, dtype, stored, wide) : []),
      ...(stats ? [this.#call("stats_keep", dtype, [wide, COPY_SCRATCH, sumsAt(stats)])] : []),
      this.#call(kernel, dtype, operands.map(operandOf), ({ moment }) => scalars(moment)),
      ...(stats ? [this.#call("stats_moved", dtype, [wide, COPY_SCRATCH, sumsAt(stats, 1)])] : []),
      ...(isLast && param !== dtype ? [this.#narrow(param, wide, stored, master ? undefined : seed)] : []),
    ];
  }

  /** Brings a gradient into the dtype of arithmetic and divides it by the loss scale. */
  #unscale(grad: string, dtype: string, gradient: Operand, lossScale: number): readonly KernelCall[] {
    // What float32 cannot hold it may hold once it is divided. By a power of two in place, and by the rest as any other: so the
    // bits are those of a float32 gradient, down to where it is subnormal.
    const power = grad === "F64" && dtype === "F32" ? powerFrom(lossScale) : 1;
    const rest = lossScale / power;
    const stored = tensorAt(GRADS, GRAD_AT, grad);
    return [
      ...(power === 1 ? [] : [this.#call("gradient_divide", grad, [stored], () => [power])]),
      ...this.#widen(grad, dtype, stored, gradient),
      ...(rest === 1 ? [] : [this.#call("gradient_divide", dtype, [gradient], () => [rest])]),
    ];
  }

  #widen(from: string, to: string, source: Operand, target: Operand): readonly KernelCall[] {
    return from === to ? [] : [this.#convert(`${from}_${to}`, source, target)];
  }

  #narrow(param: string, source: Operand, target: Operand, seed: number | undefined): KernelCall {
    if (seed === undefined || param !== "BF16") return this.#convert(`f32_${param}`, source, target);
    return this.#convert("stochastic_f32_bf16", source, target, ELEMENT_INDEX, ({ moment, target: { name } }) => {
      // The noise depends on the seed, the step, the name and the element alone, so neither workers nor shards change it.
      const key = createHash("sha256").update(`${seed}/${moment.step}/${name}`).digest();
      return [key.readUInt32LE(0), key.readUInt32LE(4)];
    });
  }

  #convert(dtypes: string, source: Operand, target: Operand, index?: Operand, scalars: KernelCall["scalars"] = none): KernelCall {
    return { kernel: this.#kernel(`convert_${dtypes.toLowerCase()}`), operands: index ? [source, target, index] : [source, target], scalars };
  }

  #call(kernel: string, dtype: string, operands: readonly Operand[], scalars: KernelCall["scalars"] = none): KernelCall {
    return { kernel: this.#kernel(`${kernel}_${dtype.toLowerCase()}`), operands, scalars };
  }
}

/** The least power of two that is not below a number over 1, so that division by it leaves no more than division by the number; else 1. */
const powerFrom = (value: number): number => {
  let power = 1;
  while (power < value) power *= 2;
  return power;
};
