import { choice, defineOptimizer, flag, rate, type Stage, stateDtype } from "./_define.ts";

/** The coefficients of Jordan's polynomial. */
const COEFFICIENTS = [3.4445, -4.775, 2.0315] as const;

/** torch limits the number of iterations, too. */
const MAX_ITERATIONS = 99;

/** A shard of a product has this many rows. The bits of a row do not depend on it. */
const ROWS_PER_SHARD = 32;

/** An ordinary kernel spends about as much time on an element as a product on this many multiplications. */
const MULTIPLICATIONS_PER_ELEMENT = 4;

interface Sizes {
  readonly rows: number;
  readonly columns: number;
  readonly long: number;
  readonly short: number;
  /** True if the matrix has more columns than rows. The iteration then runs on its transpose. */
  readonly isWide: boolean;
}

const sizesOf = ([rows = 0, columns = 0]: readonly number[]): Sizes => {
  const isWide = columns > rows;
  return { rows, columns, long: isWide ? columns : rows, short: isWide ? rows : columns, isWide };
};

interface Product {
  readonly rows: number;
  readonly inner: number;
  readonly columns: number;
}

/** The sizes of the three products of an iteration: Y'Y, (Y'Y)^2, and Y times the polynomial. */
const productsOf = ({ long, short }: Sizes): readonly [Product, Product, Product] => [
  { rows: short, inner: long, columns: short },
  { rows: short, inner: short, columns: short },
  { rows: long, inner: short, columns: short },
];

/** Builds the stage of `target = scale * left*right + addScale * add`, row by row. `leftRow` and `leftStep` are the strides of `left`. */
const product = (
  { rows, inner, columns }: Product,
  [left, right, add, target]: readonly [string, string, string, string],
  [leftRow, leftStep]: readonly [number, number],
  [scale, addScale]: readonly [number, number],
): Stage => ({
  kernel: "muon_product",
  operands: [left, right, add, target, "panel"],
  sums: 0,
  rows: { count: rows, perShard: ROWS_PER_SHARD, strides: [leftRow, 0, columns, columns, 0], work: (inner * columns) / MULTIPLICATIONS_PER_ELEMENT },
  scalars: () => [inner, columns, leftRow, leftStep, scale, addScale],
});

/** Builds the stage that copies a matrix of `rows` x `columns`, or its transpose, times a factor. */
const copy = (source: string, target: string, rows: number, columns: number, isTransposed: boolean, factor: Stage["scalars"]): Stage => {
  const [row, step] = isTransposed ? [1, rows] : [columns, 1];
  return {
    kernel: "muon_copy",
    operands: [source, target],
    sums: 0,
    rows: { count: rows, perShard: ROWS_PER_SHARD, strides: [row, columns], work: columns },
    scalars: (context) => [columns, row, step, ...factor(context)],
  };
};

/**
 * Muon: momentum whose matrix is orthogonalized by Newton-Schulz iterations, for the matrices of hidden layers.
 *
 *   buf <- momentum*buf + (1-momentum)*g;  u = nesterov ? momentum*buf + (1-momentum)*g : buf
 *   X = u / max(|u|, eps);  ns_steps times X <- a*X + (b*XX' + c*(XX')^2) X
 *   p <- p - (lr*weight_decay*p + lr*scale*X)
 *
 * With R rows and C columns, scale is sqrt(max(1, R/C)) for "original", 0.2*sqrt(max(R, C)) for "match_rms_adamw", and sqrt(R/C) for
 * "spectral_unclamped". torch iterates in bfloat16. stepd iterates in float32, and in float64 for F64 parameters, so it is closer to
 * the exact polynomial. A matrix with more columns than rows is transposed for the iteration.
 */
export default defineOptimizer({
  name: "muon",
  title: "Muon",
  revision: 2,
  family: "muon",
  formula:
    "buf = lerp(buf, g, 1-momentum); u = nesterov ? lerp(g, buf, momentum) : buf; X = u/max(|u|, eps); ns_steps times: A = X*X', X = a*X + (b*A + c*A*A)*X; p -= lr*weight_decay*p + lr*scale*X, scale by adjust_lr_fn from R rows and C columns: original sqrt(max(1, R/C)), match_rms_adamw 0.2*sqrt(max(R, C)), spectral_unclamped sqrt(R/C)",
  references: [
    "Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/",
    "match_rms_adamw: Liu et al., 2025, https://arxiv.org/abs/2502.16982",
    "peer: torch.optim.Muon, which iterates in bfloat16",
  ],
  hyperparameters: {
    lr: rate(1e-3, "Learning rate; with a schedule, its base rate"),
    weight_decay: rate(0.1, "Decoupled weight decay: lr*weight_decay times the parameter is subtracted from the parameter"),
    momentum: { ...rate(0.95, "Decay rate of momentum_buffer"), maximum: 1 },
    nesterov: flag("Use Nesterov's form: orthogonalize the mean of gradient and buffer, instead of the buffer", true),
    ns_steps: { ...rate(5, "Number of Newton-Schulz iterations, a whole number; each takes three matrix products"), maximum: MAX_ITERATIONS },
    ns_coefficients: {
      type: "array",
      items: { type: "number", minimum: -1e3, maximum: 1e3 },
      minItems: 3,
      maxItems: 3,
      default: COEFFICIENTS,
      description: "Coefficients a, b and c of the iteration",
    },
    eps: rate(1e-7, "Smallest divisor of the update before the iterations"),
    adjust_lr_fn: choice(
      ["original", "match_rms_adamw", "spectral_unclamped"],
      "original",
      "Factor of lr by shape: sqrt(max(1, rows/columns)), 0.2*sqrt(max(rows, columns)), or sqrt(rows/columns)",
    ),
    state_dtype: stateDtype,
  },
  variants: {
    muon: {},
    "muon without Nesterov, as AdamW": { nesterov: false, ns_steps: 4, adjust_lr_fn: "match_rms_adamw", weight_decay: 0 },
  },
  slots: () => ["momentum_buffer"],
  allSlots: ["momentum_buffer"],
  moments: { momentum_buffer: "signed" },
  lateSlots: [],
  wholeTensors: true,
  hasNoStepInTorch: true,
  check: ({ ns_steps }) =>
    Number.isInteger(ns_steps) ? undefined : { field: "ns_steps", expected: `a whole number from 0 to ${MAX_ITERATIONS}`, found: String(ns_steps) },
  shapes: {
    buffers: (_, shape) => {
      const { long, short } = sizesOf(shape);
      return { other: long * short, gram: short * short, polynomial: short * short };
    },
  },
  matrices: {
    flops: ({ ns_steps }, shape) => productsOf(sizesOf(shape)).reduce((sum, { rows, inner, columns }) => sum + 2 * ns_steps * rows * inner * columns, 0),
  },
  stages: ({ weight_decay, momentum, nesterov, ns_steps, ns_coefficients: [a, b, c], eps, adjust_lr_fn }, shape) => {
    const sizes = sizesOf(shape);
    const { rows, columns, long, short, isWide } = sizes;
    const [gram, square, step] = productsOf(sizes);
    const adjust = {
      original: Math.sqrt(Math.max(1, rows / columns)),
      match_rms_adamw: 0.2 * Math.sqrt(Math.max(rows, columns)),
      spectral_unclamped: Math.sqrt(rows / columns),
    }[adjust_lr_fn];
    const stages: Stage[] = [
      { kernel: "muon_momentum", operands: ["grad", "momentum_buffer", "sums"], sums: 1, scalars: () => [1 - momentum, nesterov ? momentum : 1] },
      copy("grad", "other", long, short, isWide, ({ sums }) => {
        const norm = Math.max(Math.sqrt(sums[0]?.[0] ?? 0), eps);
        return [norm > 0 ? 1 / norm : 0];
      }),
    ];
    let [now, next] = ["other", "grad"];
    for (let iteration = 0; iteration < ns_steps; iteration++) {
      stages.push(
        product(gram, [now, now, "absent", "gram"], [1, short], [1, 0]),
        product(square, ["gram", "gram", "gram", "polynomial"], [short, 1], [c, b]),
        product(step, [now, "polynomial", now, next], [short, 1], [1, a]),
      );
      [now, next] = [next, now];
    }
    if (isWide) {
      stages.push(copy(now, next, rows, columns, true, () => [1]));
      [now, next] = [next, now];
    }
    stages.push({ kernel: "lamb_apply", operands: ["param", now], sums: 0, scalars: ({ lr }) => [lr * weight_decay, lr * adjust] });
    return stages;
  },
});
