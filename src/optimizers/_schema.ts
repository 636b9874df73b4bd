/** Derives from an optimizer's definition: the JSON Schema of its wire object, and the size of its state. */
import type { Hyperparameters, OptimizerDefinition, Values } from "./_define.ts";

/** Every optimizer has this option. */
const ema = {
  type: ["object", "null"],
  default: null,
  required: ["decay"],
  additionalProperties: false,
  properties: { decay: { type: "number", minimum: 0, maximum: 1, description: "Weight of the old average; 1 - decay is that of the new parameter" } },
  description: "Average of the parameters over the steps, in the slot ema: {decay}, as torch's AveragedModel computes it; null keeps no average",
} as const;

export const optimizerSchema = ({ name, title, formula, hyperparameters }: OptimizerDefinition) => {
  const required = Object.keys(hyperparameters).filter((key) => !("default" in (hyperparameters[key] ?? {})));
  return {
    title,
    description: formula,
    type: "object",
    required: ["name", ...required],
    additionalProperties: false,
    properties: { name: { const: name }, ...hyperparameters, ema },
  };
};

/** Returns the number of slots that have a value for each element of a matrix. */
export const slotsPerElement = ({ slots, shapes }: OptimizerDefinition, values: Values<Hyperparameters>): number =>
  slots(values).filter((slot) => !shapes?.slotShape || String(shapes.slotShape(slot, [2, 2])) === "2,2").length;
