/**
 * An update of loaded tensors in place: the gradients are measured where that is asked for, the stages run, and what came of it
 * is looked at. Where the tensors come from and where they go is the caller's.
 */
import { StepdError } from "../errors/errors.ts";
import type { OptimizerDefinition } from "../optimizers/registry.ts";
import type { Plan } from "./plan.ts";
import type { GradientSums, Measured, Runner, TensorResult, Work } from "./runner.ts";
import { slotDtype } from "./state.ts";
import type { Tensor } from "./tensors.ts";

/** The first tensors that an error or a warning names. */
const NAMED_TENSORS = 8;

/** torch adds this to the norm that it divides by (torch.nn.utils.clip_grad_norm_). */
const CLIP_EPS = 1e-6;

/** Slots that hold squares of gradients: an infinite one never becomes finite again. */
const SQUARES = ["exp_avg_sq", "square_avg", "sum"];

export interface Clip {
  readonly max_norm?: number | undefined;
  readonly max_value?: number | undefined;
  readonly total_norm?: number | undefined;
}

/** What a step is asked to do with its tensors. */
export interface StepOptions {
  readonly plan: Plan;
  readonly clip: Clip;
  readonly lossScale: number;
  readonly nonFinite: "error" | "skip" | "propagate";
  readonly stats: "none" | "global" | "tensor";
  readonly masterWeights: boolean;
  /** Seed of stochastic rounding to BF16. */
  readonly seed: number | undefined;
  /** Whether the new parameters are wanted in BF16 as well. */
  readonly roundsReply: boolean;
}

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
  readonly stats?: Omit<TensorStats, "trust_ratio"> & { readonly clipped: boolean; readonly tensors?: Readonly<Record<string, TensorStats>> };
  readonly warnings?: readonly string[];
}

/** A gradient with its parameter. */
export interface Pair {
  readonly param: Tensor;
  readonly grad: Tensor;
}

/** What came of an update. */
export interface Updated {
  readonly work: readonly Work[];
  readonly results: readonly TensorResult[];
  readonly said: Pick<StepReport, "stats" | "warnings">;
}

/**
 * Runs all stages. `makeWork` is called once the gradients are known to be wanted. Returns undefined where the step is skipped;
 * throws INVALID_PARAMS, NON_FINITE_GRADIENT.
 */
export const update = async (options: StepOptions, pairs: readonly Pair[], makeWork: () => readonly Work[], runner: Runner): Promise<Updated | undefined> => {
  const { clip, lossScale, nonFinite } = options;
  const { optimizer, base } = options.plan;
  const maxGradNorm = (base["max_grad_norm"] ?? undefined) as number | undefined;
  requireUse(clip, maxGradNorm);
  const needsNorm = (clip.max_norm !== undefined || maxGradNorm !== undefined) && clip.total_norm === undefined;
  let measured: Measured | undefined;
  if (needsNorm || nonFinite === "skip") {
    measured = await runner.measure(
      pairs.map(({ grad }) => grad),
      pairs.map(({ param }) => slotDtype(param.dtype)),
      lossScale,
    );
    if (nonFinite === "error") requireFinite(pairs, measured.sums);
    if (nonFinite === "skip" && measured.sums.some((sums) => sums.nonFinite > 0)) return undefined;
  }
  let seen: readonly GradientSums[] = measured?.sums ?? [];
  const scale = clipScale(clip, maxGradNorm, clip.total_norm ?? normOf(seen));

  const work = makeWork();
  const wantsStats = options.stats !== "none";
  const results = await runner.runStages(work, measured, {
    lossScale,
    scale,
    maxValue: clip.max_value,
    look: wantsStats ? "norm" : nonFinite === "error" ? "check" : "not",
    wantsStats,
    seed: options.seed,
    onLook: (sums) => {
      seen = sums;
      if (nonFinite === "error") requireFinite(pairs, sums);
    },
  });
  const warnings = [
    ...(pairs.length === 0 ? ["No parameter has a gradient, so the step changed nothing; grads has no tensors"] : []),
    ...(scale === 1 && clip.max_value === undefined ? overflowWarnings(optimizer, work, seen) : []),
    ...(scale === 0 ? ["The norm of all gradients is infinite, so that clipping made all of them 0; clip by value, or use a loss scale"] : []),
  ];
  const said = {
    ...(wantsStats && { stats: statsOf(options, work, results, seen, scale) }),
    ...(warnings.length > 0 && { warnings }),
  };
  return { work, results, said };
};

const requireUse = ({ max_norm, total_norm }: Clip, maxGradNorm: number | undefined): void => {
  if (total_norm !== undefined && max_norm === undefined && maxGradNorm === undefined) {
    throw StepdError.mismatch("INVALID_PARAMS", "/clip/total_norm", "max_norm beside it, or an optimizer with max_grad_norm", "neither");
  }
};

/** The factor of all gradients: torch's for clip.max_norm, then timm's for LAMB's own max_grad_norm. */
const clipScale = ({ max_norm }: Clip, maxGradNorm: number | undefined, norm: number): number => {
  const scale = max_norm === undefined ? 1 : Math.min(1, max_norm / (norm + CLIP_EPS));
  return maxGradNorm === undefined ? scale : scale / Math.max(1, (norm * scale) / maxGradNorm);
};

/** The norm over all gradients, their squares added in the order of names. */
const normOf = (sums: readonly GradientSums[]): number => Math.sqrt(sums.reduce((sum, { squares }) => sum + squares, 0));

/** Throws NON_FINITE_GRADIENT naming the first tensors. */
const requireFinite = (pairs: readonly Pair[], sums: readonly GradientSums[]): void => {
  if (sums.every(({ nonFinite }) => nonFinite === 0)) return;
  const found = pairs.map(({ grad }, index) => ({ name: grad.name, count: sums[index]?.nonFinite ?? 0 })).filter(({ count }) => count > 0);
  throw StepdError.mismatch(
    "NON_FINITE_GRADIENT",
    "/grads",
    "finite gradients (or non_finite skip or propagate)",
    `NaN or infinity in ${named(found)}`,
    found.slice(0, NAMED_TENSORS).map(({ name }) => name),
  );
};

const named = (found: readonly { readonly name: string; readonly count: number }[]): string => {
  const first = found.slice(0, NAMED_TENSORS).map(({ name, count }) => `${JSON.stringify(name)} (${count} ${count === 1 ? "value" : "values"})`);
  return first.join(", ") + (found.length > NAMED_TENSORS ? ` and ${found.length - NAMED_TENSORS} more tensors` : "");
};

/** A gradient of over 1.8e19 in float32 makes its average of squares infinite, and the parameter never moves again. */
const overflowWarnings = (optimizer: OptimizerDefinition, work: readonly Work[], sums: readonly GradientSums[]): readonly string[] => {
  if (sums.every(({ squareOverflows }) => squareOverflows === 0)) return [];
  const found = work
    .map(({ grad, values }, index) => ({
      name: grad.name,
      count: optimizer.slots(values).some((slot) => SQUARES.includes(slot)) ? (sums[index]?.squareOverflows ?? 0) : 0,
    }))
    .filter(({ count }) => count > 0);
  if (found.length === 0) return [];
  return [
    `The squares of gradients overflow in ${named(found)}: their averages of squares are infinite from now on and these parameters stay where they are; clip the gradients`,
  ];
};

const statsOf = (
  { plan: { optimizer }, stats }: StepOptions,
  work: readonly Work[],
  results: readonly TensorResult[],
  sums: readonly GradientSums[],
  scale: number,
): NonNullable<StepReport["stats"]> => {
  const total = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0);
  const tensors = work.map(({ param, values, moment }, index): [string, TensorStats] => {
    const { zeros = 0, nonFinite = 0, squares = 0 } = sums[index] ?? {};
    const { paramSquares = 0, updateSquares = 0, sums: stageSums = [] } = results[index] ?? {};
    const trustRatio = optimizer.trustRatio?.(values, { ...moment, sums: stageSums });
    return [
      param.name,
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
  return {
    grad_norm: normOf(sums),
    param_norm: Math.sqrt(total(results.map(({ paramSquares }) => paramSquares))),
    update_norm: Math.sqrt(total(results.map(({ updateSquares }) => updateSquares))),
    zeros: total(sums.map(({ zeros }) => zeros)),
    non_finite: total(sums.map(({ nonFinite }) => nonFinite)),
    clipped: scale < 1,
    ...(stats === "tensor" && { tensors: Object.fromEntries(tensors) }),
  };
};
