/**
 * What Adam and its descendants share: hyperparameters, slots and the scalars of their two kernels.
 *
 * The formulas are those of the papers with the constants moved out of the loop:
 *   lr / c1 * m / (sqrt(v) / sqrt(c2) + eps)  =  (lr * sqrt(c2) / c1) * m / (sqrt(v) + eps * sqrt(c2)),  c1 = 1 - beta1^t, c2 = 1 - beta2^t
 * which has one division and one root an element, and fewer roundings.
 */

import { repeatedSquaring } from "../math/power.ts";
import { betas, choice, flag, type Moment, rate, type Stage } from "./_define.ts";

export const lr = rate(1e-3, "Learning rate; with a schedule, its base");
export const eps = (initial: number) => rate(initial, "Added to the root of the second moment, after the bias correction");
export const amsgrad = flag("Divide by the running maximum of exp_avg_sq (slot max_exp_avg_sq)");
export const maximize = flag("Go up the gradient instead of down");
export const epsRoot = rate(0, "Added under the root, as in optax");
export const nesterov = flag("Use Nesterov's form of the first moment, as in optax");
export const momentBetas = (initial: readonly [number, number]) => betas(initial, "Decay rates of exp_avg and exp_avg_sq");
export const decayScale = choice(
  ["lr", "schedule", "none"],
  "lr",
  "What multiplies weight_decay: lr (torch), the schedule's factor lr_t/lr (the AdamW paper's fully decoupled form; lr_t/max_lr with one_cycle and cyclic), or nothing (IPRally's QHAdamW)",
);

export const momentSlots = ["exp_avg", "exp_avg_sq"] as const;
export const familySlots = [...momentSlots, "max_exp_avg_sq"] as const;

/** What all of the family say of the slots in their states. */
export const familyState = { allSlots: familySlots, lateSlots: [], squareSlots: ["exp_avg_sq"], fills: { max_exp_avg_sq: "exp_avg_sq" } } as const;

/** A schedule's factor is a part of lr, so that there must be one. */
export const checkDecay = ({ weight_decay, weight_decay_scale, lr }: Parameters<typeof decoupledDecay>[0]) =>
  weight_decay !== 0 && weight_decay_scale === "schedule" && lr === 0
    ? { field: "lr", expected: 'more than 0 where weight_decay_scale is "schedule"', found: "0" }
    : undefined;

/** The factor of the parameter that a decoupled step takes away. */
export const decoupledDecay = (values: { weight_decay: number; weight_decay_scale: "lr" | "schedule" | "none"; lr: number }, at: Moment): number => {
  if (values.weight_decay === 0) return 0;
  if (values.weight_decay_scale === "lr") return at.lr * values.weight_decay;
  if (values.weight_decay_scale === "none" || at.lr === values.lr) return values.weight_decay;
  return (at.lr / values.lr) * values.weight_decay;
};

/** What goes into the general kernel; plain Adam has mean 1/c1, square 1/c2 and zeros. */
interface Blend {
  /** Factors of exp_avg and of the gradient in the numerator. */
  readonly mean: number;
  readonly grad: number;
  /** Factors of exp_avg_sq and of the squared gradient under the root. */
  readonly square: number;
  readonly gradSquare: number;
}

interface AdamStage {
  readonly betas: readonly [number, number];
  readonly eps: number;
  readonly eps_root?: number;
  readonly amsgrad?: boolean;
  /** Weight decay that is added to the gradient. */
  readonly l2?: number;
  /** The factor of the parameter that is taken from it beside the step. */
  readonly decay?: (at: Moment) => number;
  /** Present where the numerator or the root is not plain Adam's. */
  readonly blend?: ((at: Moment, c1: number, c2: number) => Blend) | undefined;
}

/** The one stage of an Adam-like step: the lean kernel where the formula is plain Adam's and both weights are under 0.5, else the general one. */
export const adamStage = ({ betas: [beta1, beta2], eps, eps_root = 0, amsgrad = false, l2 = 0, decay = () => 0, blend }: AdamStage): Stage => {
  const operands = ["param", "grad", ...momentSlots, amsgrad ? "max_exp_avg_sq" : "absent"];
  const isLean = !blend && eps_root === 0 && 1 - beta1 < 0.5 && 1 - beta2 < 0.5;
  if (isLean) {
    return {
      kernel: "adam",
      operands,
      sums: 0,
      scalars: (at) => {
        const c1 = 1 - repeatedSquaring(beta1, at.step);
        const root2 = Math.sqrt(1 - repeatedSquaring(beta2, at.step));
        return [l2, decay(at), 1 - beta1, 1 - beta2, (at.lr * root2) / c1, eps * root2];
      },
    };
  }
  return {
    kernel: "qhadam",
    operands,
    sums: 0,
    scalars: (at) => {
      const c1 = 1 - repeatedSquaring(beta1, at.step);
      const c2 = 1 - repeatedSquaring(beta2, at.step);
      const { mean, grad, square, gradSquare } = blend?.(at, c1, c2) ?? { mean: 1 / c1, grad: 0, square: 1 / c2, gradSquare: 0 };
      return [l2, decay(at), 1 - beta1, 1 - beta2, at.lr, mean, grad, square, gradSquare, eps_root, eps];
    },
  };
};

/** Nesterov's numerator as optax writes it: beta1 * m / (1 - beta1^(t+1)) + (1 - beta1) * g / c1. */
export const nesterovBlend =
  (beta1: number) =>
  (at: Moment, c1: number, c2: number): Blend => ({
    mean: beta1 / (1 - repeatedSquaring(beta1, at.step + 1)),
    grad: (1 - beta1) / c1,
    square: 1 / c2,
    gradSquare: 0,
  });

/** The quasi-hyperbolic means; undefined for nus (1, 1), where QHAdam is Adam and runs its code. */
export const quasiHyperbolicBlend = ([nu1, nu2]: readonly [number, number]) =>
  nu1 === 1 && nu2 === 1 ? undefined : (_: Moment, c1: number, c2: number): Blend => ({ mean: nu1 / c1, grad: 1 - nu1, square: nu2 / c2, gradSquare: 1 - nu2 });
