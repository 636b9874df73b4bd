/** Builds the JSON Schema of an optimizer's wire object from its definition. */
import type { OptimizerDefinition } from "./_define.ts";

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
