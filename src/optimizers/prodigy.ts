import { repeatedSquaring } from "../math/power.ts";
import { eps, momentBetas } from "./_adam.ts";
import { defineOptimizer, flag, optional, positive, rate, type StepContext } from "./_define.ts";

interface Values {
  readonly betas: readonly [number, number];
  readonly beta3: number | null;
  readonly use_bias_correction: boolean;
  readonly d0: number;
  readonly d_coef: number;
  readonly growth_rate: number | null;
}

/** The estimates of the distance to the solution, which all tensors share. Before the first step, d and d_max are 0 and stand for d0. */
interface Estimates {
  readonly d: number;
  readonly d_max: number;
  readonly d_numerator: number;
  readonly k: number;
}

const estimatesOf = ({ d0 }: Values, { scalarSlots: { d = 0, d_max = 0, d_numerator = 0, k = 0 } }: StepContext): Estimates => ({
  d: d || d0,
  d_max: d_max || d0,
  d_numerator,
  k,
});

const beta3Of = ({ beta3, betas: [, beta2] }: Values): number => beta3 ?? Math.sqrt(beta2);

/** The step size of an update, from the estimate before it. */
const stepSize = (values: Values, context: StepContext): number => {
  const {
    betas: [beta1, beta2],
    use_bias_correction,
  } = values;
  const { d, k } = estimatesOf(values, context);
  const correction = use_bias_correction ? Math.sqrt(1 - repeatedSquaring(beta2, k + 1)) / (1 - repeatedSquaring(beta1, k + 1)) : 1;
  return d * context.lr * correction;
};

/** True if no tensor has a learning rate, and had a gradient, other than 0. The step then changes neither parameters nor estimates. */
const isIdle = ({ allSums }: StepContext): boolean => (allSums[0]?.[1] ?? 0) === 0;

/** Computes the estimates after the first stage. As in the peer, NaN never becomes an estimate. */
const nextEstimates = (values: Values, context: StepContext): Estimates => {
  const before = estimatesOf(values, context);
  if (isIdle(context)) return before;
  const [change = 0, denominator = 0] = context.allSums[0] ?? [];
  const d_numerator = beta3Of(values) * before.d_numerator + change;
  const found = (values.d_coef * d_numerator) / denominator;
  const estimate = Number.isNaN(found) ? 0 : found;
  const d = before.d === values.d0 ? Math.max(before.d, estimate) : before.d;
  const d_max = Math.max(before.d_max, estimate);
  return { d: Math.min(d_max, values.growth_rate === null ? Infinity : d * values.growth_rate), d_max, d_numerator, k: before.k + 1 };
};

/**
 * Prodigy: Adam whose step size follows an estimate d of the distance from the start p0 to the solution.
 *
 *   rate = d * lr, with use_bias_correction times sqrt(1-beta2^k) / (1-beta1^k)
 *   m <- beta1*m + (1-beta1)*d*g          v <- beta2*v + (1-beta2)*d^2*g^2          s <- beta3*s + d/d0 * rate*g
 *   numerator <- beta3*numerator + d/d0 * rate * <g, p0 - p>,  over all tensors
 *   d_hat = d_coef * numerator / |s|_1, over all tensors;  d_max <- max(d_max, d_hat);  d <- min(d_max, d*growth_rate)
 *   p <- p - (rate*weight_decay*p + rate * m / (sqrt(v) + d*eps))
 *
 * With safeguard_warmup, s takes d/d0 * d*g. Without decouple, weight_decay times the parameter is added to the gradient. d, d_max,
 * d_numerator and the number of steps k are equal for all tensors. optax always corrects the bias.
 */
export default defineOptimizer({
  name: "prodigy",
  title: "Prodigy",
  revision: 1,
  family: "prodigy",
  formula:
    "rate = d*lr (use_bias_correction: times sqrt(1-beta2^k)/(1-beta1^k)); m = beta1*m + (1-beta1)*d*g; v = beta2*v + (1-beta2)*d^2*g^2; s = beta3*s + d/d0*rate*g; over all tensors: numerator = beta3*numerator + d/d0*rate*<g, p0 - p>, d_hat = d_coef*numerator/|s|_1, d_max = max(d_max, d_hat), d = min(d_max, d*growth_rate); p -= rate*weight_decay*p + rate * m/(sqrt(v) + d*eps)",
  references: ["Mishchenko & Defazio, 2023, https://arxiv.org/abs/2306.06101", "peers: prodigyopt.Prodigy; optax.contrib.prodigy (use_bias_correction true)"],
  hyperparameters: {
    lr: rate(1, "Factor of the estimated step size; with a schedule, its base rate"),
    betas: momentBetas([0.9, 0.999]),
    beta3: { ...optional("Decay rate of s and of the numerator; null takes the root of the second of betas"), maximum: 1 },
    eps: eps(1e-8),
    weight_decay: rate(0, "Weight decay; decouple selects its form"),
    decouple: flag("Subtract rate*weight_decay times the parameter from it; false adds weight_decay times the parameter to the gradient", true),
    use_bias_correction: flag("Correct the bias of the moments in the step size (optax: always)"),
    safeguard_warmup: flag("Leave lr out of s, for schedules that begin with small rates"),
    d0: positive(1e-6, "Estimate of the distance before the first step"),
    d_coef: rate(1, "Factor of the estimate"),
    growth_rate: { ...optional("Largest factor by which d grows in a step; null for no limit"), minimum: 1 },
  },
  variants: {
    prodigy: { d0: 0.01 },
    "prodigy with coupled decay": { d0: 0.01, weight_decay: 0.01, decouple: false, use_bias_correction: true, growth_rate: 1.02 },
    "prodigy without first moment": { d0: 0.01, betas: [0, 0.99], weight_decay: 0.1, safeguard_warmup: true, beta3: 0.9, d_coef: 2 },
  },
  slots: ({ betas: [beta1] }) => [...(beta1 > 0 ? ["exp_avg"] : []), "exp_avg_sq", "s", "p0"],
  allSlots: ["exp_avg", "exp_avg_sq", "s", "p0"],
  lateSlots: [],
  squareSlots: ["exp_avg_sq"],
  scalarSlots: { d: 0, d_max: 0, d_numerator: 0, k: 0 },
  hasDoubleScalars: true,
  wholeTensors: true,
  shared: { count: "k", hyperparameters: ["betas", "beta3", "use_bias_correction", "d0", "d_coef", "growth_rate"] },
  nextScalarSlots: (values, context) => ({ ...nextEstimates(values, context) }),
  stages: (values) => {
    const {
      betas: [beta1, beta2],
      weight_decay,
      decouple,
      safeguard_warmup,
      d0,
    } = values;
    return [
      {
        kernel: "prodigy_moments",
        operands: ["param", "grad", beta1 > 0 ? "exp_avg" : "absent", "exp_avg_sq", "s", "p0", "sums"],
        sums: 2,
        scalars: (context) => {
          const l2 = decouple ? 0 : weight_decay;
          const first = context.isFirst ? 1 : 0;
          // As in the peer, a tensor with a learning rate of 0 keeps its moments, and does not count.
          if (context.lr === 0) return [l2, 1, 0, 1, 0, 1, 0, 0, 0, first];
          const { d } = estimatesOf(values, context);
          const size = stepSize(values, context);
          const scale = d / d0;
          return [l2, beta1, d * (1 - beta1), beta2, d * d * (1 - beta2), beta3Of(values), scale * (safeguard_warmup ? d : size), scale * size, 1, first];
        },
      },
      {
        kernel: "prodigy_apply",
        operands: ["param", beta1 > 0 ? "exp_avg" : "grad", "exp_avg_sq"],
        sums: 0,
        scalars: (context) => {
          const { d } = nextEstimates(values, context);
          const size = isIdle(context) ? 0 : stepSize(values, context);
          return [decouple ? size * weight_decay : 0, beta1 > 0 ? size : size * d, d * values.eps];
        },
      },
    ];
  },
});
