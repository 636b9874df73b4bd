/** Exports the public parts of optimizers/: the registry by name, the definition's types, and the JSON Schema of a definition. */
export type { Hyperparameters, OptimizerDefinition, Rows, Stage, StepContext, Values } from "./_define.ts";
export { registry } from "./_registry.gen.ts";
export { optimizerSchema, slotsPerElement } from "./_schema.ts";
