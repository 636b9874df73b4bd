/** What a step says of its gradients, beside its tensors: an error, warnings, statistics. */
import { type Mapping, mappingOf } from "../codec/members.ts";
import { StepdError } from "../errors/errors.ts";
import type { StepContext } from "../optimizers/registry.ts";
import type { Layout } from "./layout.ts";

/** The first tensors that an error or a warning names. */
const NAMED_TENSORS = 8;

/** torch adds this to the norm that it divides by (torch.nn.utils.clip_grad_norm_). */
const CLIP_EPS = 1e-6;

export interface TensorStats {
  readonly grad_norm: number;
  readonly param_norm: number;
  readonly update_norm: number;
  readonly zeros: number;
  readonly non_finite: number;
  readonly trust_ratio?: number;
}

/** What a reply says of a step beside its tensors. */
export interface StepReport {
  readonly step: number;
  readonly lr: number;
  readonly skipped: boolean;
  readonly stats?: Omit<TensorStats, "trust_ratio"> & { readonly clipped: boolean; readonly tensors?: Mapping<TensorStats> };
  readonly warnings?: readonly string[];
}

/** Sums over a whole gradient. */
export interface GradientSums {
  readonly nonFinite: number;
  /** Values that are finite, or not, whose square is not. */
  readonly squareOverflows: number;
  readonly zeros: number;
  /** Sum of squares; NaN where it was not asked for. */
  readonly squares: number;
}

export const gradientSums = ([nonFinite = 0, squareOverflows = 0, zeros = Number.NaN, squares = Number.NaN]: readonly number[]): GradientSums => ({
  nonFinite,
  squareOverflows,
  zeros,
  squares,
});

/** What a tensor's step came to. */
export interface TensorResult {
  /** With the sums of each stage. */
  readonly moment: StepContext;
  /** Sums of squares of the parameter before the step, and of its change. */
  readonly stats: readonly number[];
}

/** The norm over all gradients, their squares added in the order of names. */
export const normOf = (sums: readonly GradientSums[]): number => Math.sqrt(sums.reduce((sum, { squares }) => sum + squares, 0));

/** The factor of all gradients: torch's for clip.max_norm, then timm's for the optimizer's own limit. */
export const clipScale = ({ options: { clip }, maxGradNorm }: Layout, sums: readonly GradientSums[]): number => {
  // The name of a number beyond JSON becomes that number.
  const norm = Number(clip?.total_norm ?? normOf(sums));
  const scale = clip?.max_norm === undefined ? 1 : Math.min(1, clip.max_norm / (norm + CLIP_EPS));
  return maxGradNorm === undefined ? scale : scale / Math.max(1, (norm * scale) / maxGradNorm);
};

/** Throws NON_FINITE_GRADIENT naming the first tensors, or others_non_finite where all gradients of this call are finite. */
export const requireFinite = ({ options, targets }: Layout, sums: readonly GradientSums[]): void => {
  if (sums.every(({ nonFinite }) => nonFinite === 0)) {
    if (!options.others_non_finite) return;
    const expected = "false, or non_finite skip or propagate";
    throw StepdError.mismatch("NON_FINITE_GRADIENT", "/others_non_finite", expected, "true: a gradient in another call of the step is NaN or infinite");
  }
  const found = targets.map(({ name }, index) => ({ name, count: sums[index]?.nonFinite ?? 0 })).filter(({ count }) => count > 0);
  throw StepdError.mismatch(
    "NON_FINITE_GRADIENT",
    "/grads",
    "finite gradients (or non_finite skip or propagate)",
    `NaN or infinity in ${named(found)}`,
    found.slice(0, NAMED_TENSORS).map(({ name }) => name),
  );
};

/** Values of a tensor that something is wrong with. */
export interface Count {
  readonly name: string;
  readonly count: number;
}

const named = (found: readonly Count[]): string => {
  const first = found.slice(0, NAMED_TENSORS).map(({ name, count }) => `${JSON.stringify(name)} (${count} ${count === 1 ? "value" : "values"})`);
  return first.join(", ") + (found.length > NAMED_TENSORS ? ` and ${found.length - NAMED_TENSORS} more tensors` : "");
};

/** Statistics and warnings of a finished step, as far as the call asked for them and there is something to warn of. */
export const reportOf = (
  layout: Layout,
  results: readonly TensorResult[],
  sums: readonly GradientSums[],
  nonFinite: readonly Count[],
  scale: number,
): Pick<StepReport, "stats" | "warnings"> => {
  const { clip, stats = "none" } = layout.options;
  const warnings = [
    ...(layout.targets.length === 0 ? ["No parameter has a gradient, so the step changed nothing; grads has no tensors"] : []),
    ...(scale === 1 && clip?.max_value === undefined ? overflowWarnings(layout, sums) : []),
    ...(nonFinite.length > 0
      ? [`New parameters are NaN or infinite: ${named(nonFinite)}; look at lr, eps and the dtype, and go on from the state before`]
      : []),
    ...(scale === 0 ? ["The norm of all gradients is infinite, so that clipping made all of them 0; clip by value, or use a loss scale"] : []),
  ];
  // By their text, so that a client that shards the step can put those of its calls into the same order.
  return { ...(stats !== "none" && { stats: statsOf(layout, results, sums, scale) }), ...(warnings.length > 0 && { warnings: warnings.sort() }) };
};

/** A gradient of over 1.8e19 in float32 makes its average of squares infinite, and the parameter never moves again. */
const overflowWarnings = ({ plan: { optimizer }, targets }: Layout, sums: readonly GradientSums[]): readonly string[] => {
  if (sums.every(({ squareOverflows }) => squareOverflows === 0)) return [];
  const found = targets
    .map(({ name, recipe: { values } }, index) => ({
      name,
      count: optimizer.slots(values).some((slot) => optimizer.squareSlots?.includes(slot)) ? (sums[index]?.squareOverflows ?? 0) : 0,
    }))
    .filter(({ count }) => count > 0);
  if (found.length === 0) return [];
  return [
    `The squares of gradients overflow in ${named(found)}: their averages of squares are infinite from now on and these parameters stay where they are; clip the gradients`,
  ];
};

const statsOf = (
  { options, plan: { optimizer }, targets }: Layout,
  results: readonly TensorResult[],
  sums: readonly GradientSums[],
  scale: number,
): NonNullable<StepReport["stats"]> => {
  const tensors = mappingOf(targets, ({ name, recipe }, index): readonly [string, TensorStats] => {
    const { zeros = 0, nonFinite = 0, squares = 0 } = sums[index] ?? {};
    const { moment, stats: [paramSquares = 0, updateSquares = 0] = [] } = results[index] as TensorResult;
    const trustRatio = optimizer.trustRatio?.(recipe.values, moment);
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
