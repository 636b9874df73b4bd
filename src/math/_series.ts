/** Computes the coefficients of the power series of sine, cosine and the exponential. */

/** The list 1/0!, 1/1!, 1/2!, ... */
const INVERSE_FACTORIALS: readonly number[] = Array.from({ length: 20 }, (_, n) => {
  let factorial = 1;
  for (let factor = 2; factor <= n; factor++) factorial *= factor;
  return 1 / factorial;
});

export const inverseFactorial = (n: number): number => INVERSE_FACTORIALS[n] as number;
