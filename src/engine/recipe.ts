/**
 * A recipe is a sequence of kernel calls for a step, a measurement or a conversion. Tensors with equal dtypes, hyperparameters and
 * slots share a recipe. Kernels compute in float32 or float64, so narrower tensors are widened shard by shard into scratch memory.
 */
import { createHash } from "node:crypto";
import { bytesOf } from "../codec/dtype.ts";
import type { Hyperparameters, OptimizerDefinition, Rows, Stage, Values } from "../optimizers/registry.ts";
import { scratch } from "../pool/pool.ts";
import {
  absent,
  type Columns,
  fixed,
  GRADS,
  type KernelCall,
  NEW_SLOTS,
  type Operand,
  PARAMS,
  RETAINED_PARAMS,
  RETAINED_STATE,
  ROUNDED,
  STATE,
  sumsAt,
  tensorAt,
  WORKSPACE,
} from "./runner.ts";
import { BLOCK_ELEMENTS, codesOf, EMA, emaDecay, isCode, MASTER_PARAM, scaleOf, slotDtype, slotShape } from "./state.ts";
import { isSameShape } from "./tensors.ts";

/** A target's `offsets` list its parameter, gradient, widened gradient and slots at these indexes. */
export const [PARAM_AT, GRAD_AT, WIDE_GRAD_AT, SLOTS_AT] = [0, 1, 2, 3] as const;

/** The bytes of an element beside narrow moments, which are computed in float32. */
const SINGLE_BYTES = 4;

/** Each thread has three scratch areas: for a widened parameter, a widened gradient, and a copy of the parameter before the step. */
const PARAM_SCRATCH = fixed(scratch(0, SINGLE_BYTES));
const GRAD_SCRATCH = fixed(scratch(1, SINGLE_BYTES));
const COPY_SCRATCH = fixed(scratch(2));

/** The scratch areas of a stage's widened moments start here. */
const MOMENT_AREA = 3;

/** This "pointer" holds an element's index plus one. It advances by one per element, so each shard receives its own first index. */
const ELEMENT_INDEX: Operand = ({ first = 0 }) => ({ address: 1 + first, stride: 1 });

/** gradient_check counts non-finite values and non-finite squares. gradient_norm also counts zeros and adds up the squares. */
const GRADIENT_SUM_COUNTS = { check: 2, norm: 4 } as const;

/** The index of the sum of squares among the sums of gradient_norm. */
export const GRADIENT_SQUARES = 3;

/** The options of a call that apply equally to all its tensors. */
export interface TensorOptions {
  readonly lossScale: number;
  readonly maxValue: number | undefined;
  /** True if a separate pass over all gradients computes their sums before the first stage. */
  readonly isMeasured: boolean;
  /** The kernel that checks each gradient in the first stage. Undefined if a separate pass measures the gradients. */
  readonly gradientCheck: "check" | "norm" | undefined;
  readonly wantsStats: boolean;
  /** The seed of stochastic rounding to BF16. Without a seed, the step rounds to nearest even. */
  readonly seed: number | undefined;
  /** True if the reply needs the new parameters rounded to BF16, too. */
  readonly isRounded: boolean;
}

/** Tensors with equal inputs share a recipe. */
export interface RecipeInput {
  readonly param: string;
  readonly grad: string;
  readonly optimizer: OptimizerDefinition;
  readonly values: Values<Hyperparameters>;
  /** The tensor's shape, if the optimizer's stages depend on it. */
  readonly shape: readonly number[];
  /** The tensor's slots. `isNew` marks a slot that the state lacks and this step creates. */
  readonly slots: readonly (readonly [slot: string, isNew: boolean, dtype: string])[];
  /** True if the step creates slots, not counting the master copy. */
  readonly isFirst: boolean;
  /** The new slots that a state must contain after the first step, so their absence is then an error. */
  readonly slotsRequiredLater: readonly string[];
}

export interface Phase {
  /** The rows over which the calls run. Undefined if they run over the tensor's elements. */
  readonly rows: Rows | undefined;
  readonly calls: readonly KernelCall[];
  /** The columns of the gradient check's sums. */
  readonly gradientSums: Columns | undefined;
  /** The columns of the sums that the stage's own kernel computes. */
  readonly stageSums: Columns;
  /** The columns of two sums of squares: of the parameter before the step, and of its change. */
  readonly statsSums: Columns | undefined;
}

/** Kernel calls that compute sums over a tensor, and the columns of these sums. */
export interface Measurement {
  readonly calls: readonly KernelCall[];
  readonly sums: Columns;
}

export interface Recipe extends RecipeInput {
  /** Kernel calls that turn the parameter into its average. */
  readonly average: readonly KernelCall[];
  /** Kernel calls that copy the parameter and the slots of retained inputs to where the step overwrites them. */
  readonly copies: { readonly params: readonly KernelCall[]; readonly state: readonly KernelCall[] };
  readonly measure: Measurement | undefined;
  /** Kernel calls that create the master copy and the average from the parameter. */
  readonly fill: readonly KernelCall[];
  /** One phase per stage of the optimizer. */
  readonly phases: readonly Phase[];
  /** Counts the non-finite values of the new parameter in the reply's dtype. */
  readonly results: Measurement;
  /** The number of columns in a target's matrix of sums. */
  readonly columns: number;
  /** The bytes per element of a widened gradient in work memory; 0 if the gradient needs none. */
  readonly wideGradStride: number;
  /** The bytes of each buffer in work memory. Their offsets follow those of the slots. */
  readonly buffers: readonly number[];
}

export interface NormsRecipe extends Pick<Recipe, "columns" | "wideGradStride"> {
  readonly measure: Measurement;
  readonly squares: Measurement;
}

/** Lists the slots that workers copy shard by shard, with their indexes: those of the parameter's shape, without scales of Q8. */
export const copiedSlots = ({ optimizer, shape, slots }: RecipeInput): readonly (readonly [index: number, dtype: string])[] =>
  slots.flatMap(([slot, isNew, dtype], index) => {
    const isElementwise = codesOf(slot) === undefined && isSameShape(slotShape(optimizer, slot, shape) ?? [], shape);
    return isNew || !isElementwise ? [] : [[index, dtype] as const];
  });

interface SlotOperand {
  readonly operand: Operand;
  readonly isNew: boolean;
  /** The dtype of the slot in the state. */
  readonly stored: string;
}

/** Returns an operand for each slot. */
const slotOperands = ({ slots }: RecipeInput): ReadonlyMap<string, SlotOperand> =>
  new Map(
    slots.map(([slot, isNew, stored], index) => {
      const operand = tensorAt(isNew ? NEW_SLOTS : STATE, SLOTS_AT + index, stored, codesOf(slot) === undefined ? 1 : BLOCK_ELEMENTS);
      return [slot, { operand, isNew, stored }];
    }),
  );

/** Returns the operand without a stride, so that each shard gets the whole tensor. */
const wholeOf =
  (operand: Operand): Operand =>
  (target, bases) => ({ address: operand(target, bases).address, stride: 0 });

/** Returns an operand for each buffer in work memory. */
const buffersOf = ({ param, optimizer, values, shape, slots }: RecipeInput): ReadonlyMap<string, Operand> => {
  const names = Object.keys(optimizer.shapes?.buffers(values, shape) ?? {});
  return new Map(names.map((name, index) => [name, tensorAt(WORKSPACE, SLOTS_AT + slots.length + index, slotDtype(param))]));
};

const noScalars = (): readonly number[] => [];

/** Allocates columns in a target's matrix of sums. */
class SumColumns {
  width = 0;

  allocate(width: number): Columns {
    this.width += width;
    return { first: this.width - width, width };
  }
}

export class Recipes {
  readonly #kernel: (name: string) => number;

  constructor(kernel: (name: string) => number) {
    this.#kernel = kernel;
  }

  step(input: RecipeInput, tensorOptions: TensorOptions): Recipe {
    const { param, grad, optimizer, values, shape } = input;
    const stages = optimizer.stages(values, shape);
    const buffers = Object.values(optimizer.shapes?.buffers(values, shape) ?? {});
    const average = optimizer.average?.(values);
    const { isMeasured, gradientCheck } = tensorOptions;
    const dtype = slotDtype(param);
    const sumColumns = new SumColumns();
    // A gradient in the arithmetic dtype is used in place. One in another dtype is converted: into scratch memory for a single stage, else
    // into work memory.
    const needsWideGrad = grad !== dtype && (isMeasured || stages.length > 1);
    const gradient = grad === dtype ? tensorAt(GRADS, GRAD_AT, dtype) : needsWideGrad ? tensorAt(WORKSPACE, WIDE_GRAD_AT, dtype) : GRAD_SCRATCH;
    const measure = isMeasured ? this.#measure(param, grad, tensorOptions.lossScale, sumColumns.allocate(GRADIENT_SUM_COUNTS.norm)) : undefined;
    const phases = stages.map((stage, index): Phase => {
      const isFirst = index === 0;
      const isLast = index === stages.length - 1;
      const checkSums = isFirst && gradientCheck ? sumColumns.allocate(GRADIENT_SUM_COUNTS[gradientCheck]) : undefined;
      const columns = sumColumns.allocate(stage.sums);
      const stats = isLast && tensorOptions.wantsStats ? sumColumns.allocate(2) : undefined;
      if (stage.rows) {
        const calls = [this.#rows(input, stage, stage.rows, gradient)];
        return { rows: stage.rows, calls, gradientSums: undefined, stageSums: columns, statsSums: undefined };
      }
      const calls = [
        ...(isFirst ? this.#prepareGradient(input, gradient, checkSums, tensorOptions) : []),
        ...this.#stage(input, stage, gradient, columns, stats, isFirst, isLast, tensorOptions.seed),
      ];
      return { rows: undefined, calls, gradientSums: checkSums, stageSums: columns, statsSums: stats };
    });
    return {
      ...input,
      // optimizer.average gives parameters for evaluation, so they are no part of the average over the steps.
      average: average
        ? this.#stage({ ...input, values: { ...values, ema: null } }, average, gradient, sumColumns.allocate(0), undefined, true, true, undefined)
        : [],
      copies: this.#copies(input),
      measure,
      fill: this.#fill(input),
      phases,
      results: this.#results(param, tensorOptions.isRounded, sumColumns.allocate(GRADIENT_SUM_COUNTS.check)),
      columns: sumColumns.width,
      wideGradStride: needsWideGrad ? (bytesOf(dtype) as number) : 0,
      buffers: buffers.map((elements) => elements * (bytesOf(dtype) as number)),
    };
  }

  /** Builds the recipe of optimizer.norms: the sums of a gradient, and the sum of squares of its parameter. */
  norms(param: string, grad: string, lossScale: number): NormsRecipe {
    const dtype = slotDtype(param);
    const sumColumns = new SumColumns();
    const needsWideGrad = grad !== dtype;
    const stored = tensorAt(PARAMS, PARAM_AT, param);
    const wide = param === dtype ? stored : PARAM_SCRATCH;
    const squares = sumColumns.allocate(1);
    return {
      measure: this.#measure(param, grad, lossScale, sumColumns.allocate(GRADIENT_SUM_COUNTS.norm)),
      squares: { calls: [...this.#widen(param, dtype, stored, wide), this.#call("stats_squares", dtype, [wide, sumsAt(squares)])], sums: squares },
      columns: sumColumns.width,
      wideGradStride: needsWideGrad ? (bytesOf(dtype) as number) : 0,
    };
  }

  /** Builds the kernel calls that round a parameter to BF16, to nearest even. */
  round(param: string): readonly KernelCall[] {
    const stored = tensorAt(PARAMS, PARAM_AT, param);
    const single = param === "F32" ? stored : PARAM_SCRATCH;
    return [...this.#widen(param, "F32", stored, single), this.#convert("f32_bf16", single, tensorAt(ROUNDED, GRAD_AT, "BF16"))];
  }

  /** Builds the kernel calls that convert a slot. A target's offsets are its values, scales, float32 values, new values and new scales. */
  moments(slot: string, kind: Moment["kind"], from: string, to: string): readonly KernelCall[] {
    const wide = tensorAt(STATE, 2, "F32");
    const moment = (dtype: string, at: number): Moment => ({
      slot,
      kind,
      dtype,
      values: tensorAt(STATE, at, dtype),
      scales: isCode(dtype) ? tensorAt(STATE, at + 1, "BF16", BLOCK_ELEMENTS) : undefined,
      wide,
      work: PARAM_SCRATCH,
    });
    return [...(from === "F32" ? [] : [this.#widenMoment(moment(from, 0))]), ...(to === "F32" ? [] : [this.#narrowMoment(moment(to, 3))])];
  }

  /** Widens a gradient into work memory, divides it by the loss scale, and computes its sums. */
  #measure(param: string, grad: string, lossScale: number, sums: Columns): Measurement {
    const dtype = slotDtype(param);
    const gradient = grad === dtype ? tensorAt(GRADS, GRAD_AT, dtype) : tensorAt(WORKSPACE, WIDE_GRAD_AT, dtype);
    return { calls: [...this.#unscale(grad, dtype, gradient, lossScale), this.#call("gradient_norm", dtype, [gradient, sumsAt(sums)])], sums };
  }

  #results(param: string, isRounded: boolean, sums: Columns): Measurement {
    const dtype = slotDtype(param);
    const stored = tensorAt(PARAMS, PARAM_AT, param);
    // Rounding to BF16 can turn a finite F32 value into infinity, so the rounded value is checked. F16 values stay finite.
    const overflows = isRounded && param === "F32";
    const wide = param === dtype && !overflows ? stored : PARAM_SCRATCH;
    const rounding = overflows ? [this.#convert("f32_bf16", stored, COPY_SCRATCH), this.#convert("bf16_f32", COPY_SCRATCH, wide)] : [];
    return { calls: [...rounding, ...this.#widen(param, dtype, stored, wide), this.#call("gradient_check", dtype, [wide, sumsAt(sums)])], sums };
  }

  /** Copies the parameter to its new master copy and to its new average. */
  #fill({ param, slots }: RecipeInput): readonly KernelCall[] {
    const dtype = slotDtype(param);
    const stored = tensorAt(PARAMS, PARAM_AT, param);
    return slots.flatMap(([slot, isNew], index) => {
      if (!isNew || (slot !== MASTER_PARAM && slot !== EMA)) return [];
      const target = tensorAt(NEW_SLOTS, SLOTS_AT + index, dtype);
      const copy: KernelCall = { kernel: this.#kernel("copy"), operands: [stored, target], scalars: () => [bytesOf(dtype) as number] };
      return param === dtype ? [copy] : this.#widen(param, dtype, stored, target);
    });
  }

  /** Builds the calls that prepare a gradient for the first stage: unscale, check, clamp, scale. */
  #prepareGradient(
    { param, grad, values }: RecipeInput,
    gradient: Operand,
    columns: Columns | undefined,
    { lossScale, maxValue, isMeasured, gradientCheck }: TensorOptions,
  ): readonly KernelCall[] {
    const dtype = slotDtype(param);
    const sign = values["maximize"] === true ? -1 : 1;
    return [
      ...(isMeasured ? [] : this.#unscale(grad, dtype, gradient, lossScale)),
      ...(columns ? [this.#call(`gradient_${gradientCheck}`, dtype, [gradient, sumsAt(columns)])] : []),
      ...(maxValue === undefined ? [] : [this.#call("gradient_clamp", dtype, [gradient], () => [maxValue])]),
      this.#call("gradient_scale", dtype, [gradient], ({ scale }) => (sign * scale === 1 ? undefined : [sign * scale])),
    ];
  }

  /** Builds the calls of a stage: widen the parameter, run the stage's kernel, compute statistics, narrow the parameter. */
  #stage(
    input: RecipeInput,
    { kernel, operands, scalars, sums }: Stage,
    gradient: Operand,
    columns: Columns,
    stats: Columns | undefined,
    isFirst: boolean,
    isLast: boolean,
    seed: number | undefined,
  ): readonly KernelCall[] {
    const {
      param,
      values,
      optimizer: { moments = {} },
    } = input;
    const dtype = slotDtype(param);
    const slotAt = slotOperands(input);
    const narrow = operands.filter((slot) => slot in moments && slotAt.get(slot) && slotAt.get(slot)?.stored !== dtype);
    const momentScratch = new Map(narrow.map((slot, index) => [slot, fixed(scratch(MOMENT_AREA + index))]));
    const momentCalls = (convert: (moment: Moment) => KernelCall): readonly KernelCall[] =>
      narrow.map((slot) => {
        const { operand: values, stored } = slotAt.get(slot) as { operand: Operand; stored: string };
        const scales = slotAt.get(scaleOf(slot))?.operand;
        const wide = momentScratch.get(slot) as Operand;
        return convert({ slot, kind: moments[slot] as Moment["kind"], dtype: stored, values, scales, wide, work: wide });
      });
    const bufferAt = buffersOf(input);
    const stored = tensorAt(PARAMS, PARAM_AT, param);
    const master = slotAt.get(MASTER_PARAM);
    const wide = master?.operand ?? (param === dtype ? stored : PARAM_SCRATCH);
    const needsFill = master ? master.isNew && isFirst : operands.includes("param");
    const operandOf = (operand: string): Operand => {
      if (operand === "param") return wide;
      if (operand === "grad") return gradient;
      if (operand === "sums") return sumsAt(columns);
      if (operand === "index") return ELEMENT_INDEX;
      const tensor = momentScratch.get(operand) ?? slotAt.get(operand)?.operand ?? bufferAt.get(operand) ?? absent;
      return operands.includes("index") ? wholeOf(tensor) : tensor;
    };
    const ema = isLast ? slotAt.get(EMA) : undefined;
    const decay = emaDecay(values);
    const step = this.#call(kernel, dtype, operands.map(operandOf), ({ context }) => scalars(context));
    return [
      ...(needsFill ? this.#widen(param, dtype, stored, wide) : []),
      ...(stats ? [this.#call("stats_keep", dtype, [wide, COPY_SCRATCH, sumsAt(stats)])] : []),
      ...(narrow.length === 0 || sums > 0
        ? [...momentCalls((moment) => this.#widenMoment(moment)), step, ...momentCalls((moment) => this.#narrowMoment(moment))]
        : [
            ...momentCalls((moment) => ({ ...this.#widenMoment(moment), isBlocked: true })),
            { ...step, isBlocked: true },
            ...momentCalls((moment) => ({ ...this.#narrowMoment(moment), isBlocked: true })),
          ]),
      ...(stats ? [this.#call("stats_moved", dtype, [wide, COPY_SCRATCH, sumsAt(stats, 1)])] : []),
      // As in torch's AveragedModel, the average is the parameter itself after the first step, and after a step that creates the average.
      ...(ema && decay !== undefined
        ? [this.#call("ema", dtype, [wide, ema.operand], ({ context }) => [ema.isNew || context.step === 1 ? 1 : 1 - decay])]
        : []),
      ...(isLast && param !== dtype ? [this.#narrow(param, wide, stored, master ? undefined : seed)] : []),
    ];
  }

  /** Builds the call of a stage that runs over rows. */
  #rows(input: RecipeInput, { kernel, operands, scalars }: Stage, { strides }: Rows, gradient: Operand): KernelCall {
    const dtype = slotDtype(input.param);
    const slotAt = slotOperands(input);
    const bufferAt = buffersOf(input);
    const pointers = operands.map((operand, index): Operand => {
      if (operand === "panel") return PARAM_SCRATCH;
      if (operand === "index") return ELEMENT_INDEX;
      if (operand === "absent") return absent;
      const whole = operand === "grad" ? gradient : (slotAt.get(operand)?.operand ?? (bufferAt.get(operand) as Operand));
      const stride = (strides[index] as number) * (bytesOf(dtype) as number);
      return (target, bases) => ({ address: whole(target, bases).address, stride });
    });
    return this.#call(kernel, dtype, pointers, ({ context }) => scalars(context));
  }

  #widenMoment({ kind, dtype, values, scales, wide }: Moment): KernelCall {
    if (!scales) return this.#convert(`${dtype}_f32`, values, wide);
    return { kernel: this.#kernel(`moments_${kind}_q8_f32`), operands: [values, scales, wide], scalars: noScalars };
  }

  #narrowMoment({ slot, kind, values, scales, wide, work }: Moment): KernelCall {
    return {
      kernel: this.#kernel(scales ? `moments_${kind}_f32_q8` : "moments_f32_bf16"),
      operands: [wide, work, values, ...(scales ? [scales] : []), ELEMENT_INDEX],
      scalars: ({ context, target: { name } }) => noiseKey(`${context.step}/${slot}/${name}`),
    };
  }

  /** Converts a gradient to the arithmetic dtype and divides it by the loss scale. */
  #unscale(grad: string, dtype: string, gradient: Operand, lossScale: number): readonly KernelCall[] {
    // A float64 gradient may exceed float32's range before the division. So it is first divided by a power of two, which is exact. Then it
    // is converted to float32, and the result is divided by the remaining factor. The bits are those of a float32 gradient, unless the gradient is subnormal.
    const power = grad === "F64" && dtype === "F32" ? ceilPowerOfTwo(lossScale) : 1;
    const remainder = lossScale / power;
    const stored = tensorAt(GRADS, GRAD_AT, grad);
    return [
      ...(power === 1 ? [] : [this.#call("gradient_divide", grad, [stored], () => [power])]),
      ...this.#widen(grad, dtype, stored, gradient),
      ...(remainder === 1 ? [] : [this.#call("gradient_divide", dtype, [gradient], () => [remainder])]),
    ];
  }

  #widen(from: string, to: string, source: Operand, target: Operand): readonly KernelCall[] {
    return from === to ? [] : [this.#convert(`${from}_${to}`, source, target)];
  }

  #narrow(param: string, source: Operand, target: Operand, seed: number | undefined): KernelCall {
    if (seed === undefined || param !== "BF16") return this.#convert(`f32_${param}`, source, target);
    return this.#convert("stochastic_f32_bf16", source, target, ELEMENT_INDEX, ({ context, target: { name } }) => {
      return noiseKey(`${seed}/${context.step}/${name}`);
    });
  }

  #copies(input: RecipeInput): Recipe["copies"] {
    const copy = (from: number, to: number, index: number, dtype: string): KernelCall => {
      const operands = [tensorAt(from, index, dtype), tensorAt(to, index, dtype)];
      return { kernel: this.#kernel("copy"), operands, scalars: () => [bytesOf(dtype) as number] };
    };
    return {
      params: [copy(RETAINED_PARAMS, PARAMS, PARAM_AT, input.param)],
      state: copiedSlots(input).map(([index, dtype]) => copy(RETAINED_STATE, STATE, SLOTS_AT + index, dtype)),
    };
  }

  #convert(dtypes: string, source: Operand, target: Operand, index?: Operand, scalars: KernelCall["scalars"] = noScalars): KernelCall {
    return { kernel: this.#kernel(`convert_${dtypes.toLowerCase()}`), operands: index ? [source, target, index] : [source, target], scalars };
  }

  #call(kernel: string, dtype: string, operands: readonly Operand[], scalars: KernelCall["scalars"] = noScalars): KernelCall {
    return { kernel: this.#kernel(`${kernel}_${dtype.toLowerCase()}`), operands, scalars };
  }
}

/** A moment in a narrow format, with the scratch memory of its float32 values. */
interface Moment {
  readonly slot: string;
  readonly kind: "signed" | "square";
  readonly dtype: string;
  readonly values: Operand;
  /** The scales of Q8; undefined for BF16. */
  readonly scales: Operand | undefined;
  readonly wide: Operand;
  /** Memory for the rounded values before they are packed, as large as `wide`. It may be `wide` itself. */
  readonly work: Operand;
}

/** The key of the noise of stochastic rounding. Noise depends only on the key and the element, so workers and sharding do not change it. */
const noiseKey = (seed: string): readonly number[] => {
  const key = createHash("sha256").update(seed).digest();
  return [key.readUInt32LE(0), key.readUInt32LE(4)];
};

/** Returns the smallest power of two that is at least the value; 1 for values up to 1. */
const ceilPowerOfTwo = (value: number): number => {
  let power = 1;
  while (power < value) power *= 2;
  return power;
};
