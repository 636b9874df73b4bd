/**
 * Computes the bias-correction weights of qhoptim and IPRally: w_t = 1 + beta + ... + beta^(t-1) = (1 - beta^t) / (1 - beta), computed as
 * w <- 1 + beta*w. Their files store the raw moments divided by w*(1 - beta). They store no step count, so it is derived from w.
 */

/** Computes the weight after `steps` steps by doubling: without cancellation, and with the same bits on every machine. */
export const weightAt = (beta: number, steps: number): number => {
  let sum = 0;
  // In round k, partialSum is the sum of the first 2^k powers of beta, and power is beta^(2^k).
  let partialSum = 1;
  let power = beta;
  for (let remaining = steps; remaining > 0; remaining = Math.floor(remaining / 2)) {
    if (remaining % 2 === 1) sum = partialSum + power * sum;
    partialSum += power * partialSum;
    power *= power;
  }
  return sum;
};

/** Bounds the accumulated rounding error of a weight. Each step multiplies both the weight and its error by beta. */
const roundingErrorOf = (weight: number): number => 2 * Number.EPSILON * weight * weight;

/** True if a weight equals the weight after `steps` steps, within its rounding error. */
export const isWeightOf = (weight: number, beta: number, steps: number): boolean => {
  const expected = weightAt(beta, steps);
  return Math.abs(weight - expected) <= roundingErrorOf(expected);
};

/** Returns the step count that a pair of weights implies, from the more precise one. Returns undefined if both have stopped growing. */
export const stepsOf = (weights: readonly [number, number], betas: readonly [number, number]): number | undefined => {
  if (weights[0] === 0 || weights[1] === 0) return 0;
  const candidates = weights.map((weight, index) => {
    const beta = betas[index] as number;
    // The next step adds beta^t to the weight.
    const growth = 1 - weight * (1 - beta);
    return { beta, weight, precision: growth / roundingErrorOf(weight) };
  });
  const [first, second] = candidates as [(typeof candidates)[0], (typeof candidates)[0]];
  const { beta, weight, precision } = first.precision >= second.precision ? first : second;
  // The growth must exceed four times the error to exclude the adjacent step counts.
  if (!(precision > 4)) return undefined;
  return Math.round(Math.log1p(-weight * (1 - beta)) / Math.log(beta));
};
