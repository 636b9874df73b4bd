/**
 * The weights of qhoptim and IPRally: w_t = 1 + beta + ... + beta^(t-1) = (1 - beta^t) / (1 - beta), computed as w <- 1 + beta*w.
 * Their stored moments are the raw ones divided by w*(1 - beta). They store no step count, so it must be derived from w.
 */

/** The relative rounding error of an addition. */
const EPSILON = Number.EPSILON;

/** The weight after `steps` steps, by doubling: without cancellation, and with the same bits on every machine. */
export const weightAt = (beta: number, steps: number): number => {
  let sum = 0;
  // In round k: the sum of the first 2^k powers of beta, and beta^(2^k).
  let partialSum = 1;
  let power = beta;
  for (let remaining = steps; remaining > 0; remaining = Math.floor(remaining / 2)) {
    if (remaining % 2 === 1) sum = partialSum + power * sum;
    partialSum += power * partialSum;
    power *= power;
  }
  return sum;
};

/** A bound of the accumulated rounding error. Each step shrinks the earlier error by beta, as it does the weight. */
const errorOf = (weight: number): number => 2 * EPSILON * weight * weight;

/** True if a weight equals the one after `steps` steps, within its rounding error. */
export const isWeightOf = (weight: number, beta: number, steps: number): boolean => {
  const expected = weightAt(beta, steps);
  return Math.abs(weight - expected) <= errorOf(expected);
};

/** The step count that a pair of weights implies, from the more precise one. Undefined if both have stopped growing. */
export const stepsOf = (weights: readonly [number, number], betas: readonly [number, number]): number | undefined => {
  if (weights[0] === 0 || weights[1] === 0) return 0;
  const candidates = weights.map((weight, index) => {
    const beta = betas[index] as number;
    // beta^t, the amount that the next step adds to the weight.
    const growth = 1 - weight * (1 - beta);
    return { beta, weight, precision: growth / errorOf(weight) };
  });
  const [first, second] = candidates as [(typeof candidates)[0], (typeof candidates)[0]];
  const { beta, weight, precision } = first.precision >= second.precision ? first : second;
  // The growth must exceed four times the error, so that the adjacent step counts are excluded.
  if (!(precision > 4)) return undefined;
  return Math.round(Math.log1p(-weight * (1 - beta)) / Math.log(beta));
};
