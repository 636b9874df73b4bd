import { adamStage, eps, familySlots, maximize, momentBetas, momentSlots } from "./_adam.ts";
import { defineOptimizer, flag, type Moment, power, rate } from "./_define.ts";

/** How fast the momentum warms up: mu_t = beta1 * (1 - 0.96^(t * momentum_decay) / 2). Dozat's constants, as torch has them. */
const WARMUP_LOG = -0.040821994520255166; // the natural logarithm of 0.96

/** e^x for x <= 0 by its series, after halving x until it is small: only + and *, so the same bits on every machine. */
const exponential = (x: number): number => {
  let halvings = 0;
  let small = x;
  while (small < -0.5 && halvings < 64) {
    small /= 2;
    halvings++;
  }
  let term = 1;
  let sum = 1;
  for (let k = 1; k < 20; k++) {
    term *= small / k;
    sum += term;
  }
  for (; halvings > 0; halvings--) sum *= sum;
  return sum;
};

interface Momentum {
  readonly betas: readonly [number, number];
  readonly momentum_decay: number;
}

/** mu_t as a function of t. */
const momentums = ({ betas: [beta1], momentum_decay }: Momentum): ((t: number) => number) => {
  const warmup = exponential(WARMUP_LOG * momentum_decay);
  return (t) => beta1 * (1 - 0.5 * power(warmup, t));
};

/** The product of mu over all steps before this one: kept in the state, or made anew where a state of another optimizer goes on. */
const productBefore = (values: Momentum, { step, scalarSlots }: Pick<Moment, "step" | "scalarSlots">): number => {
  const kept = scalarSlots["mu_product"];
  if (kept !== undefined) return kept;
  const mu = momentums(values);
  let product = 1;
  for (let t = 1; t < step && product !== 0; t++) product *= mu(t);
  return product;
};

/**
 * NAdam: Adam with Nesterov's momentum and a warm-up of it, as in torch.
 *
 *   mu_t = beta1 * (1 - 0.96^(t*momentum_decay) / 2),  P_t = mu_1 * ... * mu_t
 *   p <- p - lr * ((1-mu_t) / (1-P_t) * g + mu_{t+1} / (1-P_{t+1}) * m) / (sqrt(v / (1-beta2^t)) + eps)
 *
 * P is kept in the scalar slot mu_product; torch keeps it in float32 and rounds it at every step.
 */
export default defineOptimizer({
  name: "nadam",
  title: "NAdam",
  revision: 1,
  family: "adam",
  formula:
    "m, v as in adam; mu_t = beta1*(1 - 0.96^(t*momentum_decay)/2); P = mu_1*...*mu_t; p -= lr * ((1-mu_t)/(1-P)*g + mu_{t+1}/(1-P*mu_{t+1})*m) / (sqrt(v/(1-beta2^t)) + eps)",
  references: ["Dozat, 2016, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ", "peer: torch.optim.NAdam"],
  hyperparameters: {
    lr: rate(2e-3, "Learning rate; with a schedule, its base"),
    betas: momentBetas([0.9, 0.999]),
    eps: eps(1e-8),
    weight_decay: rate(0, "Times the parameter, added to the gradient"),
    decoupled_weight_decay: flag("Take lr*weight_decay times the parameter from it instead"),
    momentum_decay: rate(4e-3, "How fast the momentum warms up"),
    maximize,
  },
  slots: () => momentSlots,
  allSlots: familySlots,
  lateSlots: [],
  scalarSlots: { mu_product: 1 },
  nextScalarSlots: (values, at) => ({ mu_product: productBefore(values, at) * momentums(values)(at.step) }),
  stages: ({ weight_decay, decoupled_weight_decay, momentum_decay, ...values }) => {
    const mu = momentums({ ...values, momentum_decay });
    return [
      adamStage({
        kernel: decoupled_weight_decay ? "adamw" : "adam",
        ...values,
        decay: ({ lr }) => (decoupled_weight_decay ? lr * weight_decay : weight_decay),
        blend: (at, _, c2) => {
          const product = productBefore({ ...values, momentum_decay }, at) * mu(at.step);
          const next = mu(at.step + 1);
          return { mean: next / (1 - product * next), grad: (1 - mu(at.step)) / (1 - product), square: 1 / c2, gradSquare: 0 };
        },
      }),
    ];
  },
});
