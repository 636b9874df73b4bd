import { repeatedSquaring } from "../math/power.ts";
import { agreement, caution, eps, epsRoot, familyState, lr, momentBetas, momentSlots } from "./_adam.ts";
import { choice, defineOptimizer, flag, optional, rate, type Stage, type StepContext, stateDtype } from "./_define.ts";

/**
 * LAMB scales Adam's direction for each tensor by the ratio of the parameter's norm to the update's norm.
 *
 *   m, v as in Adam;  r = (m / (1-beta1^t)) / (sqrt(v / (1-beta2^t)) + eps);  u = r + weight_decay * p
 *   trust_ratio = |p| / |u|, or 1 if either is 0, clamped to [trust_min, trust_max]
 *   p <- p - lr * trust_ratio * u
 *
 * Norms are Euclidean norms of one tensor; the parameter's norm is taken before the step. The paper, timm, optax, apex, DeepSpeed
 * and albert define different variants. docs/lamb.md lists the settings that reproduce each variant.
 */
export default defineOptimizer({
  name: "lamb",
  title: "LAMB",
  revision: 2,
  family: "adam",
  formula:
    "m, v as in adam; u = mhat/(sqrt(vhat) + eps) + weight_decay*p; p -= lr * trust_ratio * u, trust_ratio = |p|/|u| (1 where either is 0) within [trust_min, trust_max]",
  references: ["You et al., 2020, https://arxiv.org/abs/1904.00962", "peers: timm.optim.Lamb; optax.lamb"],
  hyperparameters: {
    lr,
    betas: momentBetas([0.9, 0.999]),
    eps: eps(1e-6),
    weight_decay: rate(0.01, "Weight decay; weight_decay_mode selects its form"),
    weight_decay_mode: choice(
      ["in_update", "decoupled"],
      "in_update",
      "Add weight_decay times the parameter to the update before its norm, or subtract lr times it from the parameter before the norms",
    ),
    bias_correction: choice(
      ["moments", "step_size", "none"],
      "moments",
      "Correct the moments (paper), the step size outside the ratio (DeepSpeed), or nothing (albert)",
    ),
    adapt: choice(["always", "decayed_only"], "always", "When the trust ratio applies; decayed_only uses 1 if weight_decay is 0 (timm, apex)"),
    trust_min: optional("Lower bound of the trust ratio"),
    trust_max: optional("Upper bound of the trust ratio"),
    max_grad_norm: optional("Divide all gradients by max(1, norm/max_grad_norm), the norm over all tensors; null does not clip (timm: 1.0)"),
    grad_averaging: flag("Multiply the new gradient by 1-beta1 in exp_avg; false adds it unscaled", true),
    eps_root: epsRoot,
    caution,
    state_dtype: stateDtype,
  },
  variants: {
    lamb: {},
    "lamb, decoupled and bounded": { weight_decay_mode: "decoupled", trust_max: 10, bias_correction: "step_size", grad_averaging: false },
    "lamb with caution": { caution: true },
    "lamb with max_grad_norm": { max_grad_norm: 1 },
  },
  slots: () => momentSlots,
  ...familyState,
  wholeTensors: true,
  normLimit: "max_grad_norm",
  check: ({ trust_min, trust_max }) =>
    trust_min !== null && trust_max !== null && trust_min > trust_max
      ? { field: "trust_min", expected: `at most trust_max, ${trust_max}`, found: String(trust_min) }
      : undefined,
  trustRatio: (values, context) => trustRatio(values, context.sums),
  stages: (values) => {
    const {
      betas: [beta1, beta2],
      weight_decay,
      bias_correction,
    } = values;
    const inUpdate = values.weight_decay_mode === "in_update" ? weight_decay : 0;
    const decay = ({ lr }: StepContext): number => (values.weight_decay_mode === "decoupled" ? lr * weight_decay : 0);
    // The bias corrections are moved out of the root and the division, as in _adam.ts.
    const moments = (context: StepContext): readonly number[] => {
      const isCorrected = bias_correction === "moments";
      const c1 = isCorrected ? 1 - repeatedSquaring(beta1, context.step) : 1;
      const c2 = isCorrected ? 1 - repeatedSquaring(beta2, context.step) : 1;
      const root2 = Math.sqrt(c2);
      return [values.grad_averaging ? 1 : 0, 1 - beta1, 1 - beta2, root2 / c1, values.eps_root * c2, values.eps * root2];
    };
    const apply: Stage = {
      kernel: "lamb_apply",
      operands: ["param", "grad"],
      sums: 0,
      scalars: (context) => {
        const stepSize =
          bias_correction === "step_size"
            ? (context.lr * Math.sqrt(1 - repeatedSquaring(beta2, context.step))) / (1 - repeatedSquaring(beta1, context.step))
            : context.lr;
        return [decay(context), stepSize * trustRatio(values, context.sums)];
      },
    };
    if (!values.caution) {
      return [
        {
          kernel: "lamb_moments",
          operands: ["param", "grad", ...momentSlots, "sums"],
          sums: 2,
          scalars: (context) => [decay(context), inUpdate, ...moments(context)],
        },
        apply,
      ];
    }
    return [
      { kernel: "lamb_cautious", operands: ["grad", ...momentSlots, "sums"], sums: 1, scalars: moments },
      {
        kernel: "lamb_decayed",
        operands: ["param", "grad", "sums"],
        sums: 2,
        scalars: (context) => [decay(context), inUpdate, 1 / agreement(context)],
      },
      apply,
    ];
  },
});

interface TrustOptions {
  readonly weight_decay: number;
  readonly adapt: "always" | "decayed_only";
  readonly trust_min: number | null;
  readonly trust_max: number | null;
}

/** Computes the trust ratio from the last stage with two sums: the squared norms of parameter and update. */
const trustRatio = ({ weight_decay, adapt, trust_min, trust_max }: TrustOptions, sums: StepContext["sums"]): number => {
  if (adapt === "decayed_only" && weight_decay === 0) return 1;
  const [paramNorm = 0, updateNorm = 0] = (sums.findLast(({ length }) => length === 2) ?? []).map(Math.sqrt);
  const ratio = paramNorm > 0 && updateNorm > 0 ? paramNorm / updateNorm : 1;
  return Math.min(Math.max(ratio, trust_min ?? 0), trust_max ?? Infinity);
};
