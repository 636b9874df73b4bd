import { choice, defineOptimizer, flag, number, rate, type Stage, type StepContext, stateDtype } from "./_define.ts";

interface Settings {
  readonly weight_decay: number;
  readonly trust_coefficient: number;
  readonly eps: number;
  readonly trust_denominator: "sum" | "decayed_grad";
  readonly trust_clip: boolean;
  readonly always_adapt: boolean;
}

const isAdapted = ({ weight_decay, always_adapt, trust_denominator }: Settings): boolean =>
  weight_decay !== 0 || always_adapt || trust_denominator === "decayed_grad";

/** Computes trust_coefficient * |p| / denominator, or 1 if a norm is 0. */
const trustRatio = (settings: Settings, { sums, lr }: Pick<StepContext, "sums" | "lr">): number => {
  if (!isAdapted(settings)) return 1;
  const { weight_decay, trust_coefficient, eps, trust_denominator, trust_clip } = settings;
  const [paramNorm = 0, gradNorm = 0] = (sums[0] ?? []).map(Math.sqrt);
  const denominator = trust_denominator === "sum" ? gradNorm + weight_decay * paramNorm + eps : gradNorm + eps;
  const ratio = paramNorm > 0 && gradNorm > 0 ? (trust_coefficient * paramNorm) / denominator : 1;
  // lr and ratio may both be 0, so they are compared before the division.
  return !trust_clip ? ratio : ratio < lr ? ratio / lr : 1;
};

/**
 * LARS: SGD with momentum. Each tensor's gradient is scaled by the ratio of the parameter's norm to the gradient's norm.
 *
 *   ratio = trust_coefficient * |p| / (|g| + weight_decay*|p| + eps)   (trust_denominator "sum", timm)
 *   ratio = trust_coefficient * |p| / (|g + weight_decay*p| + eps)     (trust_denominator "decayed_grad", optax)
 *   d = ratio * (g + weight_decay*p);  buf <- momentum*buf + (1-dampening)*d, at the first step buf <- d
 *   p <- p - lr * (nesterov ? d + momentum*buf : buf)
 *
 * ratio is 1 if a norm is 0. With lr_in_momentum (optax), lr multiplies d, so a schedule acts on the buffer. optax stores the buffer
 * with the opposite sign.
 */
export default defineOptimizer({
  name: "lars",
  title: "LARS",
  revision: 2,
  family: "lars",
  formula:
    "d = ratio*(g + weight_decay*p), ratio = trust_coefficient*|p|/(|g| + weight_decay*|p| + eps) (1 where a norm is 0); buf = momentum*buf + (1-dampening)*d (first step: buf = d); p -= lr * (nesterov ? d + momentum*buf : buf)",
  references: [
    "You, Gitman & Ginsburg, 2017, https://arxiv.org/abs/1708.03888",
    "peers: timm.optim.Lars; optax.lars (trust_denominator decayed_grad, lr_in_momentum, eps 0)",
  ],
  hyperparameters: {
    lr: rate(1, "Learning rate; with a schedule, its base rate"),
    momentum: rate(0.9, "Decay rate of momentum_buffer; 0 keeps no buffer"),
    dampening: number(0, "Fraction of each new gradient that is not added to the buffer"),
    weight_decay: rate(0, "Weight decay (L2): weight_decay times the parameter is added to the gradient"),
    nesterov: flag("Nesterov momentum: step along the scaled gradient plus momentum times the buffer"),
    trust_coefficient: rate(1e-3, "Factor of the trust ratio"),
    eps: rate(1e-8, "Added to the trust ratio's denominator"),
    trust_denominator: choice(["sum", "decayed_grad"], "sum", "Sum of the norms (timm), or norm of the decayed gradient (optax)"),
    trust_clip: flag("Keep ratio/lr at most 1, as LARC and timm do"),
    always_adapt: flag("Apply the trust ratio even if weight_decay is 0; otherwise trust_denominator sum uses 1 then"),
    lr_in_momentum: flag("Apply lr before the momentum buffer (optax) instead of after it (timm)"),
    state_dtype: stateDtype,
  },
  variants: {
    lars: { weight_decay: 0.01, nesterov: true },
    "lars of optax": { trust_denominator: "decayed_grad", lr_in_momentum: true, eps: 0, weight_decay: 0.01 },
    "lars without momentum, clipped": { momentum: 0, trust_clip: true, always_adapt: true },
    "lars with dampening": { dampening: 0.1, weight_decay: 0.01 },
  },
  slots: ({ momentum }) => (momentum === 0 ? [] : ["momentum_buffer"]),
  allSlots: ["momentum_buffer"],
  moments: { momentum_buffer: "signed" },
  lateSlots: ["momentum_buffer"],
  wholeTensors: true,
  fills: { momentum_buffer: null },
  hasNoStepInTorch: true,
  check: ({ nesterov, momentum, dampening }) => {
    if (!nesterov) return undefined;
    if (momentum === 0) return { field: "nesterov", expected: "false where momentum is 0", found: "true" };
    if (dampening !== 0) return { field: "nesterov", expected: "false where dampening is not 0", found: "true" };
    return undefined;
  },
  trustRatio,
  stages: (values) => {
    const { momentum, dampening, weight_decay, nesterov, trust_denominator, lr_in_momentum } = values;
    const norms: Stage = {
      kernel: "lars_norms",
      operands: ["param", "grad", "sums"],
      sums: 2,
      scalars: () => [trust_denominator === "decayed_grad" ? weight_decay : 0],
    };
    return [
      ...(isAdapted(values) ? [norms] : []),
      {
        kernel: "lars_apply",
        operands: ["param", "grad", momentum === 0 ? "absent" : "momentum_buffer"],
        sums: 0,
        scalars: (context) => {
          const ratio = trustRatio(values, context);
          const gain = lr_in_momentum ? context.lr * ratio : ratio;
          return [
            weight_decay,
            gain,
            lr_in_momentum ? 1 : context.lr,
            context.isFirst ? 0 : momentum,
            context.isFirst ? 1 : 1 - dampening,
            nesterov ? momentum : 0,
          ];
        },
      },
    ];
  },
});
