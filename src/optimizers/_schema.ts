/** Builds the JSON Schema of an optimizer's wire object from its definition. */
import type { OptimizerDefinition } from "./_define.ts";

export const optimizerSchema = ({ name, title, formula, hyperparameters }: OptimizerDefinition) => {
  const required = Object.keys(hyperparameters).filter((key) => !("default" in (hyperparameters[key] ?? {})));
  return {
    title,
    description: formula,
    type: "object",
    required: ["name", ...required],
    additionalProperties: false,
    properties: { name: { const: name }, ...hyperparameters },
  };
};
