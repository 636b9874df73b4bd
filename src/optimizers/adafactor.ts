import { realPower } from "../math/real-power.ts";
import { defineOptimizer, flag, number, rate, type Stage } from "./_define.ts";

/** A tile of columns is small enough for its sums to stay in the processor's first-level cache. The bits of a sum do not depend on it. */
const TILE_COLUMNS = 256;

/** About this many elements form a shard of a stage over rows or tiles. */
const SHARD_ELEMENTS = 65536;

interface Sizes {
  /** The number of matrices, over all axes before the last two. */
  readonly batch: number;
  readonly rows: number;
  readonly columns: number;
}

const sizesOf = (shape: readonly number[]): Sizes => {
  const [rows = 0, columns = 0] = shape.slice(-2);
  return { batch: shape.slice(0, -2).reduce((product, size) => product * size, 1), rows, columns };
};

/** Builds the stages that compute the update of a tensor with at least two axes, over its gradient. */
const matrixStages = ({ batch, rows, columns }: Sizes, eps: number, weight: (step: number) => number): readonly Stage[] => {
  const tile = Math.min(columns, TILE_COLUMNS);
  const perShard = (elements: number): number => Math.max(1, Math.floor(SHARD_ELEMENTS / Math.max(1, elements)));
  return [
    {
      kernel: "adafactor_rows",
      operands: ["grad", "row_var"],
      sums: 0,
      rows: { count: columns > 0 ? batch * rows : 0, perShard: perShard(columns), strides: [columns, 1], work: columns },
      scalars: ({ step }) => [columns, weight(step)],
    },
    {
      kernel: "adafactor_columns",
      operands: ["grad", "row_var", "col_var", "means", "panel", "index"],
      sums: 0,
      rows: {
        count: rows > 0 ? batch * Math.ceil(columns / TILE_COLUMNS) : 0,
        perShard: perShard(rows * tile),
        strides: [0, 0, 0, 0],
        work: rows * tile,
      },
      scalars: ({ step }) => [rows, columns, TILE_COLUMNS, weight(step)],
    },
    {
      kernel: "adafactor_matrix",
      operands: ["grad", "row_var", "col_var", "means", "index", "sums"],
      sums: 1,
      scalars: () => [rows, columns, eps],
    },
  ];
};

/** The root mean square of a tensor, from its sum of squares. */
const rms = (squares: number | undefined, elements: number): number => Math.sqrt((squares ?? 0) / Math.max(1, elements));

/**
 * Adafactor: a second moment of one number for each row and column of a matrix, in place of one for each element.
 *
 *   w = t^beta2_decay
 *   row_var <- lerp(row_var, mean of g^2 over the row, w)        col_var <- lerp(col_var, mean of g^2 over the column, w)
 *   v = row_var * col_var / max(mean of row_var, eps1)           below two axes: v = variance <- lerp(variance, g^2, w)
 *   u = g / sqrt(max(v, eps1^2))
 *   p <- p - (lr*weight_decay*p + max(eps2, rms(p)) * min(lr, 1/sqrt(t)) * u / max(1, rms(u)/d))
 *
 * Rows and columns are the last two axes, as in torch; optax takes the two longest, if both have at least min_dim_size_to_factor. The
 * paper and optax add eps1 to g^2 instead, and optax limits lr only by its schedule.
 */
export default defineOptimizer({
  name: "adafactor",
  title: "Adafactor",
  revision: 1,
  family: "adafactor",
  formula:
    "w = t^beta2_decay; from two axes on: row_var = lerp(row_var, mean of g^2 by row, w), col_var = lerp(col_var, mean of g^2 by column, w), v = row_var*col_var/max(mean(row_var), eps1); else v = variance = lerp(variance, g^2, w); u = g/sqrt(max(v, eps1^2)); p -= lr*weight_decay*p + max(eps2, rms(p))*min(lr, 1/sqrt(t)) * u/max(1, rms(u)/d)",
  references: ["Shazeer & Stern, 2018, https://arxiv.org/abs/1804.04235", "peers: torch.optim.Adafactor; optax.adafactor, with lr at most 1/sqrt(t)"],
  hyperparameters: {
    lr: rate(1e-2, "Upper bound of the relative step size 1/sqrt(t), and factor of weight_decay; with a schedule, its base rate"),
    beta2_decay: { ...number(-0.8, "The second moment's weight of the new gradient at step t is t^beta2_decay"), maximum: 0 },
    eps: {
      type: "array",
      items: { type: ["number", "null"], minimum: 0, maximum: 1e38 },
      minItems: 2,
      maxItems: 2,
      default: [null, 1e-3],
      description:
        "eps1, the smallest divisor of the update: null is 2^-23 for parameters below F64, and 2^-52 for F64; and eps2, the smallest root mean square of the parameter, a number",
    },
    d: { ...number(1, "Largest root mean square of an update; a larger update is scaled down"), minimum: 1 },
    weight_decay: rate(0, "Decoupled weight decay: lr*weight_decay times the parameter is subtracted from the parameter"),
    maximize: flag("Go up the gradient instead of down"),
  },
  variants: {
    adafactor: {},
    "adafactor, explicit eps": { eps: [1e-3, 0.5], d: 2 },
    "adafactor with decay, maximizing": { weight_decay: 0.1, maximize: true, beta2_decay: -0.3, d: 1.5 },
  },
  slots: () => ["row_var", "col_var", "variance"],
  allSlots: ["row_var", "col_var", "variance"],
  lateSlots: [],
  check: ({ eps: [, eps2] }) => (eps2 === null ? { field: "eps/1", expected: "a number", found: "null" } : undefined),
  squareSlots: ["row_var", "col_var", "variance"],
  wholeTensors: true,
  shapes: {
    buffers: (_, shape): Readonly<Record<string, number>> => (shape.length > 1 ? { means: sizesOf(shape).batch } : {}),
    slotShape: (slot, shape) => {
      if (slot === "variance") return shape.length > 1 ? undefined : shape;
      if (shape.length < 2) return undefined;
      return slot === "row_var" ? shape.with(-1, 1) : shape.with(-2, 1);
    },
  },
  stages: ({ beta2_decay, eps: [eps1, eps2], d, weight_decay }, shape) => {
    // Below 0, the kernels take the dtype's own.
    const eps = eps1 ?? -1;
    const weight = (step: number): number => realPower(step, beta2_decay);
    const vectorStage: Stage = {
      kernel: "adafactor_vector",
      operands: ["grad", "variance", "sums"],
      sums: 1,
      scalars: ({ step }) => [eps, weight(step)],
    };
    return [
      { kernel: "stats_squares", operands: ["param", "sums"], sums: 1, scalars: () => [] },
      ...(shape.length > 1 ? matrixStages(sizesOf(shape), eps, weight) : [vectorStage]),
      {
        kernel: "lamb_apply",
        operands: ["param", "grad"],
        sums: 0,
        scalars: ({ lr, step, elements, sums }) => {
          const relative = Math.max(eps2 ?? 0, rms(sums[0]?.[0], elements)) * Math.min(lr, 1 / Math.sqrt(step));
          return [lr * weight_decay, relative / Math.max(1, rms(sums.at(-1)?.[0], elements) / d)];
        },
      },
    ];
  },
});
