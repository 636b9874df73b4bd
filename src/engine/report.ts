/** Reports on a step: statistics, warnings, and the error for non-finite gradients. Computes the clipping factor. */
import { type Mapping, mappingOf } from "../codec/members.ts";
import { StepdError } from "../errors/errors.ts";
import type { StepContext } from "../optimizers/registry.ts";
import type { Layout } from "./layout.ts";
import type { ReduceReport } from "./reduce.ts";

/** An error or a warning names at most this many tensors. */
const MAX_NAMED_TENSORS = 8;

/** clip_grad_norm_ of torch.nn.utils adds the same constant to the norm before it divides by it. */
const CLIP_EPS = 1e-6;

export interface TensorStats {
  readonly grad_norm: number;
  readonly param_norm: number;
  readonly update_norm: number;
  readonly zeros: number;
  readonly non_finite: number;
  readonly trust_ratio?: number;
}

/** The fields of a step's reply, except its tensors. */
export interface StepReport {
  readonly step: number;
  readonly lr: number;
  readonly skipped: boolean;
  readonly stats?: Omit<TensorStats, "trust_ratio"> & { readonly clipped: boolean; readonly tensors?: Mapping<TensorStats> };
  readonly warnings?: readonly string[];
  /** The report of the reduction that made the gradients. */
  readonly reduce?: ReduceReport;
}

/** A gradient's counts and sums over all elements. */
export interface GradientSums {
  readonly nonFinite: number;
  /** The number of values whose square is not finite. */
  readonly squareOverflows: number;
  readonly zeros: number;
  /** The sum of squares; NaN if the step did not compute it. */
  readonly squares: number;
}

export const gradientSums = ([nonFinite = 0, squareOverflows = 0, zeros = Number.NaN, squares = Number.NaN]: readonly number[]): GradientSums => ({
  nonFinite,
  squareOverflows,
  zeros,
  squares,
});

/** One tensor's result of a step. */
export interface TensorResult {
  /** The context that the optimizer's formulas read, with the sums of each stage. */
  readonly context: StepContext;
  /** Two sums of squares: one of the parameter before the step, one of its change. */
  readonly stats: readonly number[];
}

/** Computes the norm over all gradients. `sums` must be in name order, because the order of additions changes the bits. */
export const normOf = (sums: readonly GradientSums[]): number => Math.sqrt(sums.reduce((sum, { squares }) => sum + squares, 0));

/** Computes the clipping factor: torch's formula for clip.max_norm, then timm's formula for the optimizer's own max_grad_norm. */
export const clipScale = ({ options: { clip }, maxGradNorm }: Layout, sums: readonly GradientSums[]): number => {
  // A caller may give total_norm as the string "Infinity" or "NaN".
  const norm = Number(clip?.total_norm ?? normOf(sums));
  const scale = clip?.max_norm === undefined ? 1 : Math.min(1, clip.max_norm / (norm + CLIP_EPS));
  return maxGradNorm === null ? scale : scale / Math.max(1, (norm * scale) / maxGradNorm);
};

/**
 * Throws NON_FINITE_GRADIENT if a gradient of this call is not finite, or if others_non_finite reports one in another call. `field` is
 * the JSON pointer of the gradients.
 */
export const requireFinite = ({ options, targets }: Layout, sums: readonly GradientSums[], field: string): void => {
  if (sums.every(({ nonFinite }) => nonFinite === 0)) {
    if (!options.others_non_finite) return;
    const expected = "false, or non_finite skip or propagate";
    throw StepdError.mismatch("NON_FINITE_GRADIENT", "/others_non_finite", expected, "true: a gradient in another call of the step is NaN or infinite");
  }
  const found = targets.map(({ name }, index) => ({ name, count: sums[index]?.nonFinite ?? 0 })).filter(({ count }) => count > 0);
  throw StepdError.mismatch(
    "NON_FINITE_GRADIENT",
    field,
    "finite gradients (or non_finite skip or propagate)",
    `NaN or infinity in ${describeCounts(found)}`,
    found.slice(0, MAX_NAMED_TENSORS).map(({ name }) => name),
  );
};

/** The number of non-finite or overflowing values of a tensor. */
export interface ValueCount {
  readonly name: string;
  readonly count: number;
}

const describeCounts = (found: readonly ValueCount[]): string => {
  const first = found.slice(0, MAX_NAMED_TENSORS).map(({ name, count }) => `${JSON.stringify(name)} (${count} ${count === 1 ? "value" : "values"})`);
  return first.join(", ") + (found.length > MAX_NAMED_TENSORS ? ` and ${found.length - MAX_NAMED_TENSORS} more tensors` : "");
};

/** Returns the warnings of a finished step, and its statistics if the call requests them. */
export const reportOf = (
  layout: Layout,
  results: readonly TensorResult[],
  sums: readonly GradientSums[],
  nonFinite: readonly ValueCount[],
  scale: number,
): Pick<StepReport, "stats" | "warnings"> => {
  const { clip, stats = "none" } = layout.options;
  const warnings = [
    ...(layout.targets.length === 0 ? ["No parameter has a gradient, so the step changed nothing; grads has no tensors"] : []),
    ...(scale === 1 && clip?.max_value === undefined ? overflowWarnings(layout, sums) : []),
    ...(nonFinite.length > 0
      ? [`New parameters are NaN or infinite: ${describeCounts(nonFinite)}; look at lr, eps and the dtype, and go on from the state before`]
      : []),
    ...(scale === 0 ? ["The norm of all gradients is infinite, so that clipping made all of them 0; clip by value, or use a loss scale"] : []),
  ];
  // Warnings are sorted, so that a client that shards the step can merge its calls' warnings into the same order.
  return { ...(stats !== "none" && { stats: statsOf(layout, results, sums, scale) }), ...(warnings.length > 0 && { warnings: warnings.sort() }) };
};

/** Warns of gradients whose squares overflow, above 1.8e19 in float32. Their averages stay infinite, so the parameters never change again. */
const overflowWarnings = ({ targets }: Layout, sums: readonly GradientSums[]): readonly string[] => {
  if (sums.every(({ squareOverflows }) => squareOverflows === 0)) return [];
  const found = targets
    .map(({ name, recipe: { optimizer, values } }, index) => ({
      name,
      count: optimizer.slots(values).some((slot) => optimizer.squareSlots?.includes(slot)) ? (sums[index]?.squareOverflows ?? 0) : 0,
    }))
    .filter(({ count }) => count > 0);
  if (found.length === 0) return [];
  return [
    `The squares of gradients overflow in ${describeCounts(found)}: their averages of squares are infinite from now on and these parameters stay where they are; clip the gradients`,
  ];
};

const statsOf = (
  { options, targets }: Layout,
  results: readonly TensorResult[],
  sums: readonly GradientSums[],
  scale: number,
): NonNullable<StepReport["stats"]> => {
  const tensors = mappingOf(targets, ({ name, recipe }, index): readonly [string, TensorStats] => {
    const { zeros = 0, nonFinite = 0, squares = 0 } = sums[index] ?? {};
    const { context, stats: [paramSquares = 0, updateSquares = 0] = [] } = results[index] as TensorResult;
    const trustRatio = recipe.optimizer.trustRatio?.(recipe.values, context);
    return [
      name,
      {
        grad_norm: Math.sqrt(squares),
        param_norm: Math.sqrt(paramSquares),
        update_norm: Math.sqrt(updateSquares),
        zeros,
        non_finite: nonFinite,
        ...(trustRatio !== undefined && { trust_ratio: trustRatio }),
      },
    ];
  });
  const total = <T>(items: readonly T[], value: (item: T) => number): number => items.reduce((sum, item) => sum + value(item), 0);
  return {
    grad_norm: normOf(sums),
    param_norm: Math.sqrt(total(results, ({ stats }) => stats[0] ?? 0)),
    update_norm: Math.sqrt(total(results, ({ stats }) => stats[1] ?? 0)),
    zeros: total(sums, ({ zeros }) => zeros),
    non_finite: total(sums, ({ nonFinite }) => nonFinite),
    clipped: scale < 1,
    ...(options.stats === "tensor" && { tensors }),
  };
};
