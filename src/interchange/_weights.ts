/**
 * The weights of qhoptim and IPRally: w_t = 1 + beta + ... + beta^(t-1) = (1 - beta^t) / (1 - beta), added up as w <- 1 + beta*w.
 * Their moments are the raw ones divided by w*(1 - beta), and w is all that tells how many steps were taken.
 */

/** What an addition rounds by, relative to its result. */
const EPSILON = Number.EPSILON;

/** The weight after so many steps, by doubling: without cancellation, and the same bits on every machine. */
export const weightAt = (beta: number, steps: number): number => {
  let sum = 0;
  // The sum of the first 2^k powers, and beta^(2^k).
  let run = 1;
  let last = beta;
  for (let rest = steps; rest > 0; rest = Math.floor(rest / 2)) {
    if (rest % 2 === 1) sum = run + last * sum;
    run += last * run;
    last *= last;
  }
  return sum;
};

/** What each step's rounding has added up to at most, since beta takes the same share of it away as of the weight. */
const errorOf = (weight: number): number => 2 * EPSILON * weight * weight;

/** Whether a weight is what so many steps give, as far as its rounding tells. */
export const isWeightOf = (weight: number, beta: number, steps: number): boolean => {
  const expected = weightAt(beta, steps);
  return Math.abs(weight - expected) <= errorOf(expected);
};

/** The steps that a pair of weights stands for, by the one that tells it better; undefined where both have stopped growing. */
export const stepsOf = (weights: readonly [number, number], betas: readonly [number, number]): number | undefined => {
  if (weights[0] === 0 || weights[1] === 0) return 0;
  const told = weights.map((weight, index) => {
    const beta = betas[index] as number;
    // beta^t, which is also what the next step adds to the weight.
    const growth = 1 - weight * (1 - beta);
    return { beta, weight, clearness: growth / errorOf(weight) };
  });
  const [first, second] = told as [(typeof told)[0], (typeof told)[0]];
  const { beta, weight, clearness } = first.clearness >= second.clearness ? first : second;
  // Four times the error, so that the next whole number is out of its reach.
  if (!(clearness > 4)) return undefined;
  return Math.round(Math.log1p(-weight * (1 - beta)) / Math.log(beta));
};
