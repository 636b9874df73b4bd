/**
 * Defines the shared parts of Adam and its variants: hyperparameters, slots, and the scalars of their two kernels.
 *
 * The formulas are those of the papers, with the constants moved out of the loop:
 *   lr / c1 * m / (sqrt(v) / sqrt(c2) + eps)  =  (lr * sqrt(c2) / c1) * m / (sqrt(v) + eps * sqrt(c2)),  c1 = 1 - beta1^t, c2 = 1 - beta2^t
 * This form needs one division and one root per element, and it rounds less often.
 */

import { repeatedSquaring } from "../math/power.ts";
import { betas, choice, flag, rate, type Stage, type StepContext } from "./_define.ts";

export const lr = rate(1e-3, "Learning rate; with a schedule, its base rate");
export const eps = (initial: number) => rate(initial, "Added to the root of the second moment, after the bias correction");
export const amsgrad = flag("Divide by the running maximum of exp_avg_sq (slot max_exp_avg_sq)");
export const maximize = flag("Go up the gradient instead of down");
export const epsRoot = rate(0, "Added under the root, as in optax");
export const nesterov = flag("Use Nesterov's form of the first moment, as in optax");
export const momentBetas = (initial: readonly [number, number]) => betas(initial, "Decay rates of exp_avg and exp_avg_sq");
export const decayScale = choice(
  ["lr", "schedule", "none"],
  "lr",
  "Factor of weight_decay: lr (torch), the schedule's factor lr_t/lr (the AdamW paper's fully decoupled form; lr_t/max_lr with one_cycle and cyclic), or 1 (IPRally's QHAdamW)",
);

export const biasCorrection = choice(
  ["moments", "step_size", "none"],
  "moments",
  "Correct the moments (paper), the step size alone, so that eps is added to the uncorrected root (Keras, and Flower's FedAdam), or nothing",
);
export const caution = flag("Zero the elements of the update whose sign differs from the gradient's, and scale up the others (timm)");

/** `caution` divides by the fraction of elements whose signs agree, but at least by this constant, as in timm. */
const MIN_AGREEMENT = 1e-3;

/** Computes the divisor of the elements that `caution` keeps. Their count is the sum of the last stage. */
export const agreement = ({ sums, elements }: StepContext): number => Math.max((sums.at(-1)?.[0] ?? 0) / elements, MIN_AGREEMENT);

export const momentSlots = ["exp_avg", "exp_avg_sq"] as const;
export const familySlots = [...momentSlots, "max_exp_avg_sq"] as const;

/** All optimizers of the family have these slot fields in their definitions. */
export const familyState = {
  allSlots: familySlots,
  moments: { exp_avg: "signed", exp_avg_sq: "square", max_exp_avg_sq: "square" },
  lateSlots: [],
  squareSlots: ["exp_avg_sq"],
  fills: { max_exp_avg_sq: "exp_avg_sq" },
} as const;

/** Rejects lr 0 with weight_decay_scale "schedule", because the schedule's factor is lr_t/lr. */
export const checkDecay = ({ weight_decay, weight_decay_scale, lr }: Parameters<typeof decoupledDecay>[0]) =>
  weight_decay !== 0 && weight_decay_scale === "schedule" && lr === 0
    ? { field: "lr", expected: 'more than 0 where weight_decay_scale is "schedule"', found: "0" }
    : undefined;

/** Rejects Nesterov's form together with other bias corrections, because its two terms have different corrections. */
export const checkNesterov = ({ nesterov, bias_correction }: { readonly nesterov: boolean; readonly bias_correction: BiasCorrection }) =>
  nesterov && bias_correction !== "moments"
    ? { field: "bias_correction", expected: '"moments" where nesterov is true', found: JSON.stringify(bias_correction) }
    : undefined;

export const l2OrDecay = rate(0, "Weight decay; decoupled_weight_decay selects its form");
export const decouples = (initial: boolean) =>
  flag("Subtract lr*weight_decay times the parameter from it, instead of adding weight_decay times the parameter to the gradient", initial);

/** Computes the scalars l2 and decay from the two hyperparameters above. */
export const decayScalars = (values: { readonly weight_decay: number; readonly decoupled_weight_decay: boolean }, lr: number): readonly [number, number] =>
  values.decoupled_weight_decay ? [0, lr * values.weight_decay] : [values.weight_decay, 0];

/** Computes the fraction of the parameter that decoupled weight decay subtracts in a step. */
export const decoupledDecay = (values: { weight_decay: number; weight_decay_scale: "lr" | "schedule" | "none"; lr: number }, context: StepContext): number => {
  if (values.weight_decay === 0) return 0;
  if (values.weight_decay_scale === "lr") return context.lr * values.weight_decay;
  if (values.weight_decay_scale === "none" || context.lr === values.lr) return values.weight_decay;
  return (context.lr / values.lr) * values.weight_decay;
};

type BiasCorrection = (typeof biasCorrection.enum)[number];

/** Computes 1 - beta1^t and 1 - beta2^t, or ones without bias correction. */
export const biasOf = (form: BiasCorrection, [beta1, beta2]: readonly [number, number], step: number): readonly [number, number] =>
  form === "none" ? [1, 1] : [1 - repeatedSquaring(beta1, step), 1 - repeatedSquaring(beta2, step)];

/** The factors of the general kernel. For plain Adam, `mean` is 1/c1, `square` is 1/c2, and the others are 0. */
interface Blend {
  /** The factors of exp_avg (`mean`) and of the gradient (`grad`) in the numerator. */
  readonly mean: number;
  readonly grad: number;
  /** The factors of exp_avg_sq (`square`) and of the squared gradient (`gradSquare`) under the root. */
  readonly square: number;
  readonly gradSquare: number;
}

interface AdamStage {
  readonly betas: readonly [number, number];
  readonly eps: number;
  readonly eps_root?: number;
  readonly amsgrad?: boolean;
  readonly bias_correction?: BiasCorrection;
  readonly caution?: boolean;
  /** The coupled weight decay, which is added to the gradient. */
  readonly l2?: number;
  /** The decoupled weight decay: the fraction of the parameter to subtract. */
  readonly decay?: (context: StepContext) => number;
  /** The factors, if the numerator or the root differs from plain Adam's. */
  readonly blend?: ((context: StepContext, c1: number, c2: number) => Blend) | undefined;
}

/**
 * Builds the stages of an Adam-like step. Plain Adam with 1 - beta below 0.5 runs the `adam` kernel, all others the general `qhadam`
 * kernel. With `caution`, one pass writes the update over the gradient, and `lamb_apply` applies it.
 */
export const adamStages = (stage: AdamStage): readonly Stage[] => {
  const { betas, eps, eps_root = 0, amsgrad = false, bias_correction = "moments", caution = false, l2 = 0, decay = () => 0, blend } = stage;
  const [weight1, weight2] = [1 - betas[0], 1 - betas[1]];
  const operands = ["param", "grad", ...momentSlots, amsgrad ? "max_exp_avg_sq" : "absent"];
  const isInMoments = bias_correction === "moments";
  const isPlainAdam = !caution && !blend && eps_root === 0 && weight1 < 0.5 && weight2 < 0.5;
  if (isPlainAdam) {
    return [
      {
        kernel: "adam",
        operands,
        sums: 0,
        scalars: (context) => {
          const [c1, c2] = biasOf(bias_correction, betas, context.step);
          const root2 = Math.sqrt(c2);
          return [l2, decay(context), weight1, weight2, (context.lr * root2) / c1, isInMoments ? eps * root2 : eps];
        },
      },
    ];
  }
  const stepSizeOf = ({ lr, step }: StepContext): number => {
    if (isInMoments) return lr;
    const [c1, c2] = biasOf(bias_correction, betas, step);
    return (lr * Math.sqrt(c2)) / c1;
  };
  const factorsOf = (context: StepContext): Blend => {
    const [c1, c2] = isInMoments ? biasOf(bias_correction, betas, context.step) : [1, 1];
    return blend?.(context, c1, c2) ?? { mean: 1 / c1, grad: 0, square: 1 / c2, gradSquare: 0 };
  };
  const scalars = (context: StepContext): readonly number[] => {
    const { mean, grad, square, gradSquare } = factorsOf(context);
    return [l2, decay(context), weight1, weight2, stepSizeOf(context), mean, grad, square, gradSquare, eps_root, eps];
  };
  if (!caution) return [{ kernel: "qhadam", operands, sums: 0, scalars }];
  return [
    { kernel: "qhadam_cautious", operands: [...operands, "sums"], sums: 1, scalars },
    { kernel: "lamb_apply", operands: ["param", "grad"], sums: 0, scalars: (context) => [decay(context), stepSizeOf(context) / agreement(context)] },
  ];
};

/** Computes the factors of Nesterov's numerator as in optax: beta1 * m / (1 - beta1^(t+1)) + (1 - beta1) * g / c1. */
export const nesterovBlend =
  (beta1: number) =>
  (context: StepContext, c1: number, c2: number): Blend => ({
    mean: beta1 / (1 - repeatedSquaring(beta1, context.step + 1)),
    grad: (1 - beta1) / c1,
    square: 1 / c2,
    gradSquare: 0,
  });

/** Computes the factors of QHAdam. Returns undefined for nus (1, 1): QHAdam then equals Adam and runs Adam's kernel. */
export const quasiHyperbolicBlend = ([nu1, nu2]: readonly [number, number]) =>
  nu1 === 1 && nu2 === 1
    ? undefined
    : (_: StepContext, c1: number, c2: number): Blend => ({ mean: nu1 / c1, grad: 1 - nu1, square: nu2 / c2, gradSquare: 1 - nu2 });
