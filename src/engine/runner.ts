/**
 * Turns a step into units of the pool, stage by stage, and reads their sums. Tensors that are not in the dtype of arithmetic
 * are widened shard by shard into scratch memory in front of a kernel and narrowed behind it.
 */
import { createHash } from "node:crypto";
import type { Lease } from "../arena/arena.ts";
import { bytesOf } from "../codec/dtype.ts";
import type { Hyperparameters, Moment, Stage, Values } from "../optimizers/registry.ts";
import { type Call, type Pointer, type Pool, SHARD, scratch, type Unit } from "../pool/pool.ts";
import { MASTER_PARAM, slotDtype } from "./state.ts";
import type { Tensor, TensorSet } from "./tensors.ts";

/** Bytes of a kernel's sum, a float64. */
export const SUM_BYTES = 8;

/** The scratch areas of a thread: a widened parameter, a widened gradient, a copy of the parameter before the step. */
const PARAM_SCRATCH = scratch(0);
const GRAD_SCRATCH = scratch(1);
const COPY_SCRATCH = scratch(2);

/** The number of the shard's first element plus one: a pointer that walks one "byte" an element. */
const ELEMENT_INDEX: Pointer = { address: 1, stride: 1 };

/** A slot that is not in use, for the kernel. */
const ABSENT: Pointer = { address: 0, stride: 0 };

/** One tensor's step on its way through the stages. */
export interface Work {
  readonly param: Tensor;
  readonly grad: Tensor;
  readonly slots: ReadonlyMap<string, Tensor>;
  readonly values: Values<Hyperparameters>;
  readonly stages: readonly Stage[];
  readonly moment: Omit<Moment, "sums">;
  /** Whether the float32 master copy is new and has to be filled from the parameter. */
  readonly isMasterNew: boolean;
}

/** A gradient that has been brought into the dtype of arithmetic in memory of its own. */
export interface Measured {
  /** Sums over whole tensors, by index of the gradient. */
  readonly sums: readonly GradientSums[];
  /** Where the gradients are now. */
  readonly pointers: readonly Pointer[];
}

export interface GradientSums {
  readonly nonFinite: number;
  /** Values that are finite, or not, whose square is not. */
  readonly squareOverflows: number;
  readonly zeros: number;
  /** Sum of squares; NaN where it was not asked for. */
  readonly squares: number;
}

export interface StageOptions {
  readonly lossScale: number;
  /** Factor for all gradients. */
  readonly scale: number;
  readonly maxValue: number | undefined;
  /** How the gradients are looked at on the way. */
  readonly look: "not" | "check" | "norm";
  readonly wantsStats: boolean;
  /** Seed of stochastic rounding to BF16; to nearest even without. */
  readonly seed: number | undefined;
  /** Called with the gradients' sums after the first stage, before anything goes on; throws to stop. */
  onLook(sums: readonly GradientSums[]): void;
}

/** What a tensor's step came to. */
export interface TensorResult {
  /** Whole-tensor sums of each stage. */
  readonly sums: number[][];
  /** Sums of squares of the parameter before the step, and of its change. */
  paramSquares: number;
  updateSquares: number;
}

/** The time that a call spent waiting for other calls' jobs. It is counted up as it passes, so that it is known of a call that fails, too. */
export interface Waits {
  seconds: number;
}

/** Memory for the sums of one tensor: a row of float64 for each block. */
interface Sums {
  readonly address: number;
  /** Sums in a row. */
  readonly width: number;
  readonly blocks: number;
}

/** Sums of gradient_check: values that are not finite, and squares that are not. */
export const CHECK_SUMS = 2;
const NORM_SUMS = 4;

const arithmetic = (param: Tensor): string => slotDtype(param.dtype);

export class Runner {
  readonly #lease: Lease;
  readonly #pool: Pool;
  readonly #waits: Waits;

  constructor(lease: Lease, pool: Pool, waits: Waits) {
    this.#lease = lease;
    this.#pool = pool;
    this.#waits = waits;
  }

  /** Widens gradients into memory of their own where they are not in `dtypes`, divides them by the loss scale, and takes their sums. */
  async measure(grads: readonly Tensor[], dtypes: readonly string[], lossScale: number): Promise<Measured> {
    const rows = this.#allocSums(grads.map(({ elements }) => ({ elements, width: NORM_SUMS })));
    const pointers = grads.map((grad, index) => this.#home(grad, dtypes[index] ?? grad.dtype));
    await this.#run(
      grads.map((grad, index): Unit => {
        const dtype = dtypes[index] ?? grad.dtype;
        const pointer = pointers[index] as Pointer;
        const calls = this.#unscale(grad, pointer, dtype, lossScale);
        calls.push(this.#call("gradient_norm", dtype, [pointer, this.#row(rows[index])], []));
        return { elements: grad.elements, calls, isRepeatable: lossScale === 1 };
      }),
    );
    return { sums: rows.map((row) => gradientSums(this.#total(row))), pointers };
  }

  /** The sums of squares of tensors, each in the dtype of arithmetic. */
  async squares(tensors: readonly Tensor[]): Promise<readonly number[]> {
    const rows = this.#allocSums(tensors.map(({ elements }) => ({ elements, width: 1 })));
    await this.#run(
      tensors.map((tensor, index): Unit => {
        const dtype = slotDtype(tensor.dtype);
        const pointer = tensor.dtype === dtype ? pointerTo(tensor) : PARAM_SCRATCH;
        return {
          elements: tensor.elements,
          calls: [...this.#widen(tensor, pointer, dtype), this.#call("stats_squares", dtype, [pointer, this.#row(rows[index])], [])],
          isRepeatable: true,
        };
      }),
    );
    return rows.map((row) => this.#total(row)[0] ?? 0);
  }

  /** Copies parameters into new master copies. */
  async fillMasters(pairs: readonly { readonly param: Tensor; readonly master: Tensor }[]): Promise<void> {
    await this.#run(
      pairs.map(({ param, master }): Unit => ({ elements: param.elements, calls: this.#widen(param, pointerTo(master), master.dtype), isRepeatable: true })),
    );
  }

  /** Tensors in BF16, to nearest even, in the form that they came in. */
  async round({ tensors, inDtype }: TensorSet): Promise<ReturnType<TensorSet["reply"]>> {
    const rounded = inDtype("BF16");
    await this.#run(
      [...tensors.values()].map((tensor): Unit => {
        const single = tensor.dtype === "F32" ? pointerTo(tensor) : PARAM_SCRATCH;
        const target = pointerTo(rounded.tensors.get(tensor.name) as Tensor);
        const calls = [...this.#widen(tensor, single, "F32"), this.#callNamed("convert_f32_bf16", [single, target], [])];
        return { elements: tensor.elements, calls, isRepeatable: true };
      }),
    );
    return rounded.reply();
  }

  /** Runs all stages of all tensors. */
  async runStages(work: readonly Work[], measured: Measured | undefined, options: StageOptions): Promise<readonly TensorResult[]> {
    const results = work.map((): TensorResult => ({ sums: [], paramSquares: 0, updateSquares: 0 }));
    const grads = work.map((item, index) => measured?.pointers[index] ?? this.#gradHome(item));
    const count = work.reduce((most, { stages }) => Math.max(most, stages.length), 0);
    for (let index = 0; index < count; index++) {
      const isFirst = index === 0;
      const looks = isFirst && !measured ? LOOK_SUMS[options.look] : 0;
      const lookRows = this.#allocSums(work.map(({ grad }) => ({ elements: grad.elements, width: looks })));
      const stageRows = this.#allocSums(work.map(({ grad, stages }) => ({ elements: grad.elements, width: stages[index]?.sums ?? 0 })));
      const statRows = this.#allocSums(work.map((item) => ({ elements: item.grad.elements, width: options.wantsStats && isLast(item, index) ? 2 : 0 })));
      await this.#run(
        work.map((item, at): Unit => {
          const calls = isFirst ? this.#prepareGrad(item, grads[at] as Pointer, measured !== undefined, lookRows[at], options) : [];
          const stage = item.stages[index];
          if (stage)
            calls.push(
              ...this.#stageCalls(item, stage, isLast(item, index), grads[at] as Pointer, stageRows[at], statRows[at], results[at] as TensorResult, options),
            );
          return { elements: item.param.elements, calls };
        }),
      );
      if (looks > 0) options.onLook(lookRows.map((row) => gradientSums(this.#total(row))));
      work.forEach((item, at) => {
        const result = results[at] as TensorResult;
        result.sums.push(this.#total(stageRows[at]));
        if (!options.wantsStats || !isLast(item, index)) return;
        [result.paramSquares = 0, result.updateSquares = 0] = this.#total(statRows[at]);
      });
    }
    return results;
  }

  /** Everything that happens to a shard's gradient in front of the first kernel. */
  #prepareGrad(
    { param, grad, values }: Work,
    pointer: Pointer,
    isMeasured: boolean,
    look: Sums | undefined,
    { lossScale, scale, maxValue, look: how }: StageOptions,
  ): Call[] {
    const dtype = arithmetic(param);
    const calls: Call[] = [];
    if (!isMeasured) {
      calls.push(...this.#unscale(grad, pointer, dtype, lossScale));
      if (how !== "not") calls.push(this.#call(how === "norm" ? "gradient_norm" : "gradient_check", dtype, [pointer, this.#row(look)], []));
    }
    if (maxValue !== undefined) calls.push(this.#call("gradient_clamp", dtype, [pointer], [maxValue]));
    const factor = values["maximize"] === true ? -scale : scale;
    if (factor !== 1) calls.push(this.#call("gradient_scale", dtype, [pointer], [factor]));
    return calls;
  }

  /** A kernel with what goes before and behind it: the parameter in the dtype of arithmetic, and the statistics of its change. */
  #stageCalls(
    item: Work,
    stage: Stage,
    last: boolean,
    grad: Pointer,
    row: Sums | undefined,
    stats: Sums | undefined,
    { sums }: TensorResult,
    { wantsStats, seed }: StageOptions,
  ): Call[] {
    const { param, slots, moment, isMasterNew } = item;
    const dtype = arithmetic(param);
    const master = slots.get(MASTER_PARAM);
    const pointer = master ? pointerTo(master) : param.dtype === dtype ? pointerTo(param) : PARAM_SCRATCH;
    const calls: Call[] = [];
    const usesParam = stage.operands.includes("param");
    const needsFill = master ? isMasterNew && sums.length === 0 : usesParam;
    if (needsFill) calls.push(...this.#widen(param, pointer, dtype));
    if (wantsStats && last) calls.push(this.#call("stats_keep", dtype, [pointer, COPY_SCRATCH, this.#row(stats)], []));
    const operands = stage.operands.map((operand): Pointer => {
      if (operand === "param") return pointer;
      if (operand === "grad") return grad;
      if (operand === "sums") return this.#row(row);
      const slot = slots.get(operand);
      return slot ? pointerTo(slot) : ABSENT;
    });
    calls.push(this.#call(stage.kernel, dtype, operands, stage.scalars({ ...moment, sums })));
    if (wantsStats && last) calls.push(this.#call("stats_moved", dtype, [pointer, COPY_SCRATCH, this.#row(stats, 1)], []));
    if (last && (master || param.dtype !== dtype)) calls.push(this.#narrow(item, pointer, dtype, master === undefined ? seed : undefined));
    return calls;
  }

  /** Where a gradient lives through the stages: in place, in scratch where one stage is all, else in memory of its own. */
  #gradHome({ param, grad, stages }: Work): Pointer {
    if (grad.dtype === arithmetic(param)) return pointerTo(grad);
    return stages.length === 1 ? GRAD_SCRATCH : this.#home(grad, arithmetic(param));
  }

  /** In place, or memory of its own in another dtype. */
  #home(tensor: Tensor, dtype: string): Pointer {
    if (tensor.dtype === dtype) return pointerTo(tensor);
    const stride = bytesOf(dtype) as number;
    return { address: this.#lease.alloc(tensor.elements * stride), stride };
  }

  /** Brings a gradient into the dtype of arithmetic and divides it by the loss scale. */
  #unscale(grad: Tensor, target: Pointer, dtype: string, lossScale: number): Call[] {
    // What float32 cannot hold it may hold once it is divided. By a power of two in place, and by the rest as any other: so the
    // bits are those of a float32 gradient, down to where it is subnormal.
    const power = grad.dtype === "F64" && dtype === "F32" ? powerFrom(lossScale) : 1;
    const rest = lossScale / power;
    return [
      ...(power === 1 ? [] : [this.#call("gradient_divide", grad.dtype, [pointerTo(grad)], [power])]),
      ...this.#widen(grad, target, dtype),
      ...(rest === 1 ? [] : [this.#call("gradient_divide", dtype, [target], [rest])]),
    ];
  }

  #widen(tensor: Tensor, target: Pointer, dtype: string): Call[] {
    if (tensor.dtype === dtype) return [];
    return [this.#callNamed(`convert_${tensor.dtype.toLowerCase()}_${dtype.toLowerCase()}`, [pointerTo(tensor), target], [])];
  }

  #narrow({ param, moment }: Work, source: Pointer, dtype: string, seed: number | undefined): Call {
    const conversion = `${dtype.toLowerCase()}_${param.dtype.toLowerCase()}`;
    if (seed === undefined || param.dtype !== "BF16") return this.#callNamed(`convert_${conversion}`, [source, pointerTo(param)], []);
    // The noise depends on the seed, the step, the name and the element alone, so neither workers nor shards change it.
    const key = createHash("sha256").update(`${seed}/${moment.step}/${param.name}`).digest();
    return this.#callNamed(`convert_stochastic_${conversion}`, [source, pointerTo(param), ELEMENT_INDEX], [key.readUInt32LE(0), key.readUInt32LE(4)]);
  }

  #call(kernel: string, dtype: string, pointers: readonly Pointer[], scalars: readonly number[]): Call {
    return this.#callNamed(`${kernel}_${dtype.toLowerCase()}`, pointers, scalars);
  }

  #callNamed(kernel: string, pointers: readonly Pointer[], scalars: readonly number[]): Call {
    return { kernel: this.#pool.kernel(kernel), pointers, scalars };
  }

  async #run(units: readonly Unit[]): Promise<void> {
    this.#waits.seconds += (await this.#pool.run(units, this.#lease)).waited;
  }

  /** One block of memory for the sums of all tensors. */
  #allocSums(tensors: readonly { readonly elements: number; readonly width: number }[]): readonly Sums[] {
    const rows = tensors.map(({ elements, width }) => ({ width, blocks: Math.ceil(elements / SHARD) }));
    const bytes = rows.reduce((sum, { width, blocks }) => sum + width * blocks * SUM_BYTES, 0);
    let address = bytes === 0 ? 0 : this.#lease.alloc(bytes);
    return rows.map((row) => {
      const sums = { ...row, address };
      address += row.width * row.blocks * SUM_BYTES;
      return sums;
    });
  }

  /** A kernel's pointer to its block's row, from the given sum on. */
  #row(sums: Sums | undefined, from = 0): Pointer {
    return sums ? { address: sums.address + from * SUM_BYTES, stride: (sums.width * SUM_BYTES) / SHARD } : ABSENT;
  }

  /** The sums of a whole tensor: block by block, in order. */
  #total(sums: Sums | undefined): number[] {
    const { address = 0, width = 0, blocks = 0 } = sums ?? {};
    const totals = new Array<number>(width).fill(0);
    for (let block = 0; block < blocks; block++) {
      for (let i = 0; i < width; i++) totals[i] = (totals[i] as number) + this.#lease.bytes.readDoubleLE(address + (block * width + i) * SUM_BYTES);
    }
    return totals;
  }
}

const LOOK_SUMS = { not: 0, check: CHECK_SUMS, norm: NORM_SUMS } as const;

/** The least power of two that is not below a number over 1, so that division by it leaves no more than division by the number; else 1. */
const powerFrom = (value: number): number => {
  let power = 1;
  while (power < value) power *= 2;
  return power;
};

const isLast = ({ stages }: Work, index: number): boolean => index === stages.length - 1;

const pointerTo = ({ address, elements, bytes }: Tensor): Pointer => ({ address, stride: elements === 0 ? 0 : bytes / elements });

const gradientSums = ([nonFinite = 0, squareOverflows = 0, zeros = Number.NaN, squares = Number.NaN]: readonly number[]): GradientSums => ({
  nonFinite,
  squareOverflows,
  zeros,
  squares,
});
