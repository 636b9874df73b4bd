import { realPower } from "../math/real-power.ts";
import { maximize } from "./_adam.ts";
import { defineOptimizer, rate, type StepContext } from "./_define.ts";

interface Settings {
  readonly lambd: number;
  readonly alpha: number;
}

/** Computes the rate of the step after `taken` steps. */
const etaAfter = ({ lambd, alpha }: Settings, lr: number, taken: number): number => lr / realPower(1 + lambd * lr * taken, alpha);

/** Returns the rate of this step: the stored one, or one computed from lr if the state has none. */
const etaOf = (values: Settings, { step, lr, scalarSlots }: StepContext): number => (step === 1 ? lr : (scalarSlots["eta"] ?? etaAfter(values, lr, step - 1)));

/** Computes the weight of the parameter in the average after `taken` steps. */
const muAfter = (t0: number, taken: number): number => 1 / Math.max(1, taken - t0);

/**
 * ASGD: SGD with a rate that decreases, and an average of the parameters (slot ax), as in torch.
 *
 *   g <- g + weight_decay*p
 *   p <- p - (lambd*eta*p + eta*g)          ax <- ax + mu*(p - ax)
 *   eta <- lr / (1 + lambd*lr*t)^alpha      mu <- 1 / max(1, t - t0)
 *
 * The first step has eta = lr and mu = 1. As in torch, eta is stored, so another lr takes effect one step later. torch stores eta and
 * mu in float32, stepd in float64. A model is evaluated with ax.
 */
export default defineOptimizer({
  name: "asgd",
  title: "ASGD",
  revision: 1,
  family: "asgd",
  formula: "g += weight_decay*p; p -= lambd*eta*p + eta*g; ax = lerp(ax, p, mu); eta = lr/(1 + lambd*lr*t)^alpha; mu = 1/max(1, t - t0)",
  references: ["Polyak & Juditsky, 1992, https://doi.org/10.1137/0330046", "peer: torch.optim.ASGD"],
  hyperparameters: {
    lr: rate(1e-2, "Learning rate; with a schedule, its base rate"),
    lambd: rate(1e-4, "Decay of the parameter and of the rate"),
    alpha: { ...rate(0.75, "Exponent of the rate's decrease"), maximum: 1e3 },
    t0: rate(1e6, "The step after which parameters are averaged"),
    weight_decay: rate(0, "Weight decay (L2): weight_decay times the parameter is added to the gradient"),
    maximize,
  },
  variants: {
    asgd: { weight_decay: 0.01 },
    "asgd, averaging": { lambd: 0.1, t0: 1, maximize: true },
  },
  slots: () => ["ax"],
  allSlots: ["ax"],
  lateSlots: [],
  scalarSlots: { eta: 0, mu: 1 },
  nextScalarSlots: ({ t0, ...values }, { lr, step }) => ({ eta: etaAfter(values, lr, step), mu: muAfter(t0, step) }),
  stages: ({ weight_decay, t0, ...values }) => [
    {
      kernel: "asgd",
      operands: ["param", "grad", "ax"],
      sums: 0,
      scalars: (context) => {
        const eta = etaOf(values, context);
        const mu = context.step === 1 ? 1 : (context.scalarSlots["mu"] ?? muAfter(t0, context.step - 1));
        return [weight_decay, values.lambd * eta, eta, mu];
      },
    },
  ],
});
