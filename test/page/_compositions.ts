/** Composes schedules as the Schedules panel does: each schedule that torch has alone, and two sequences. */
import { initialValues, type Part, TORCH_CLASSES } from "../../page/schedules/compose.ts";

export const RATE = 0.01;
const STEPS = 40;

export const part = (name: string, steps = STEPS): Part => ({ id: 0, name, steps, values: initialValues(name, steps, RATE) });

export const compositions: readonly (readonly Part[])[] = [
  ...Object.keys(TORCH_CLASSES).map((name) => [part(name)]),
  [part("linear", 10), part("cosine", 30)],
  [part("constant", 5), part("exponential", 20), part("polynomial", 15)],
];

/** The steps to compare. torch's OneCycleLR refuses a step after its last. */
export const stepsOf = (parts: readonly Part[]): number => parts.reduce((sum, { steps }) => sum + steps, 0) - 1;
