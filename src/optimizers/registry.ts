/** What other rooms see of the optimizers: all of them by name, what a definition is, and its JSON Schema. */
export type { Hyperparameters, Moment, OptimizerDefinition, Stage, Values } from "./_define.ts";
export { registry } from "./_registry.gen.ts";
export { optimizerSchema } from "./_schema.ts";
