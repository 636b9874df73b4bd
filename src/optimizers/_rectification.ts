/** Computes the rectification of RAdam, which AdaBelief shares. */
import { repeatedSquaring } from "../math/power.ts";

/** The rectification applies if rho, the length of the approximated moving average, exceeds this. torch uses 5, the paper 4. */
const MIN_RHO = 5;

/** Computes the factor of a rectified step, or undefined if rho is too small for one. */
export const rectificationOf = (beta2: number, step: number): number | undefined => {
  const power2 = repeatedSquaring(beta2, step);
  const rhoInf = 2 / (1 - beta2) - 1;
  const rho = rhoInf - (2 * step * power2) / (1 - power2);
  if (!(rho > MIN_RHO)) return undefined;
  return Math.sqrt(((rho - 4) * (rho - 2) * rhoInf) / ((rhoInf - 4) * (rhoInf - 2) * rho));
};
