/**
 * Defines the shared parts of the schedule-free optimizers. The caller's parameters are y, at which gradients are computed. The slot z
 * takes the plain steps, and x is the weighted average of z:
 *
 *   y = (1-beta)*z + beta*x,  x <- x + c*(z - x),  c = weight_t / (weight_1 + ... + weight_t)
 *
 * x needs no memory, because y and z determine it. optimizer.average computes it.
 */
import { realPower } from "../math/real-power.ts";
import { number, type Stage, type StepContext } from "./_define.ts";

/** These limits keep the sum of weights finite in float64 for any learning rate and step. */
const MAX_LR_POWER = 4;
const MAX_STEP_POWER = 8;

export const averaging = {
  warmup_steps: number(0, "Number of steps in which the learning rate grows linearly from 0", 0),
  r: { ...number(0, "Power of the step number in the weight of each step in the average", 0), maximum: MAX_STEP_POWER },
  weight_lr_power: { ...number(2, "Power of the largest learning rate so far in the weight of each step in the average", 0), maximum: MAX_LR_POWER },
} as const;

interface AveragingValues {
  readonly warmup_steps: number;
  readonly r: number;
  readonly weight_lr_power: number;
}

interface Average {
  /** The learning rate of this step, with the warm-up. */
  readonly lr: number;
  readonly lr_max: number;
  readonly weight_sum: number;
  /** The weight of this step's z in the average. */
  readonly weight: number;
}

const averageOf = ({ warmup_steps, r, weight_lr_power }: AveragingValues, { step, lr: scheduled, scalarSlots }: StepContext): Average => {
  const lr = step - 1 < warmup_steps ? scheduled * (step / warmup_steps) : scheduled;
  const lr_max = Math.max(lr, scalarSlots["lr_max"] ?? 0);
  const weight = realPower(step, r) * (lr_max === 0 && weight_lr_power > 0 ? 0 : realPower(lr_max || 1, weight_lr_power));
  const weight_sum = (scalarSlots["weight_sum"] ?? 0) + weight;
  return { lr, lr_max, weight_sum, weight: weight_sum === 0 ? 0 : weight / weight_sum };
};

/** The scalars that end the lists of both kernels: average, gain, lr, isFirst. */
export const averagingScalars = (values: AveragingValues, beta: number, context: StepContext): readonly number[] => {
  const { lr, weight } = averageOf(values, context);
  return [weight, lr * (1 - beta * (1 - weight)), lr, context.isFirst ? 1 : 0];
};

export const averagingSlots = {
  lateSlots: [],
  scalarSlots: { lr_max: 0, weight_sum: 0 },
  hasDoubleScalars: true,
  nextScalarSlots: (values: AveragingValues, context: StepContext) => {
    const { lr_max, weight_sum } = averageOf(values, context);
    return { lr_max, weight_sum };
  },
} as const;

/** Describes the kernel of optimizer.average: x = y + (1 - 1/beta) * (z - y). */
export const averageBy = (beta: number): Stage => ({
  kernel: "schedule_free_average",
  operands: ["param", "z"],
  sums: 0,
  scalars: () => [1 - 1 / beta],
});

/** Rejects beta 0: y would equal z, and x could not be computed from them. */
export const checkBeta = (field: string, beta: number) =>
  beta === 0 ? { field, expected: "more than 0, because the average is computed from it", found: "0" } : undefined;
