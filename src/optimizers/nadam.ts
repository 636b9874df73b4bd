import { repeatedSquaring } from "../math/power.ts";
import { realPower } from "../math/real-power.ts";
import { adamStages, eps, familyState, maximize, momentBetas, momentSlots } from "./_adam.ts";
import { defineOptimizer, flag, rate, type StepContext, stateDtype } from "./_define.ts";

/** The base of the momentum's warm-up: Dozat's constant, as in torch. */
const WARMUP_BASE = 0.96;

/** Smaller products count as 0, because 1 - product is 1 in float64. So after many steps, a recomputed product equals a stored one. */
const MIN_PRODUCT = 2 ** -60;

interface MomentumValues {
  readonly betas: readonly [number, number];
  readonly momentum_decay: number;
}

const momentumAt = ({ betas: [beta1], momentum_decay }: MomentumValues, t: number): number => beta1 * (1 - 0.5 * realPower(WARMUP_BASE, t * momentum_decay));

/**
 * Returns the product of mu over all earlier steps: from the state, or recomputed if the state comes from another optimizer. The loop
 * ends within 2,600 rounds for any hyperparameters, because the product becomes negligible or the warm-up ends.
 */
const productBefore = (values: MomentumValues, { step, scalarSlots }: StepContext): number => {
  const stored = scalarSlots["mu_product"];
  if (stored !== undefined) return stored;
  const [beta1] = values.betas;
  let product = 1;
  for (let t = 1; t < step && product >= MIN_PRODUCT; t++) {
    const mu = momentumAt(values, t);
    if (mu === beta1) return product * repeatedSquaring(beta1, step - t);
    product *= mu;
  }
  return product;
};

const productAfter = (values: MomentumValues, context: StepContext): number => {
  const product = productBefore(values, context) * momentumAt(values, context.step);
  return product < MIN_PRODUCT ? 0 : product;
};

/**
 * NAdam: Adam with Nesterov momentum and a momentum warm-up, as in torch.
 *
 *   mu_t = beta1 * (1 - 0.96^(t*momentum_decay) / 2),  P_t = mu_1 * ... * mu_t
 *   p <- p - lr * ((1-mu_t) / (1-P_t) * g + mu_{t+1} / (1-P_{t+1}) * m) / (sqrt(v / (1-beta2^t)) + eps)
 *
 * The scalar slot mu_product stores P in float64. torch stores it in float32 and rounds it at every step.
 */
export default defineOptimizer({
  name: "nadam",
  title: "NAdam",
  revision: 2,
  family: "adam",
  formula:
    "m, v as in adam; mu_t = beta1*(1 - 0.96^(t*momentum_decay)/2); P = mu_1*...*mu_t; p -= lr * ((1-mu_t)/(1-P)*g + mu_{t+1}/(1-P*mu_{t+1})*m) / (sqrt(v/(1-beta2^t)) + eps)",
  references: ["Dozat, 2016, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ", "peer: torch.optim.NAdam"],
  hyperparameters: {
    lr: rate(2e-3, "Learning rate; with a schedule, its base rate"),
    betas: momentBetas([0.9, 0.999]),
    eps: eps(1e-8),
    weight_decay: rate(0, "Weight decay (L2): weight_decay times the parameter is added to the gradient"),
    decoupled_weight_decay: flag("Decouple the weight decay: subtract lr*weight_decay times the parameter, instead of adding to the gradient"),
    momentum_decay: rate(4e-3, "Speed of the momentum's warm-up"),
    maximize,
    state_dtype: stateDtype,
  },
  variants: {
    nadam: { weight_decay: 0.01 },
    "nadam, decoupled": { weight_decay: 0.01, decoupled_weight_decay: true, momentum_decay: 0.1, maximize: true },
  },
  slots: () => momentSlots,
  ...familyState,
  scalarSlots: { mu_product: 1 },
  nextScalarSlots: (values, context) => ({ mu_product: productAfter(values, context) }),
  stages: ({ weight_decay, decoupled_weight_decay, ...values }) =>
    adamStages({
      ...values,
      ...(decoupled_weight_decay ? { decay: ({ lr }: StepContext) => lr * weight_decay } : { l2: weight_decay }),
      blend: (context, _, c2) => {
        const product = productAfter(values, context);
        const next = momentumAt(values, context.step + 1);
        return { mean: next / (1 - product * next), grad: (1 - momentumAt(values, context.step)) / (1 - product), square: 1 / c2, gradSquare: 0 };
      },
    }),
});
