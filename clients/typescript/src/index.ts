/** Client of stepd for Node and browsers. */
export { Client, type ClientOptions, type StepInput, type StepResult, type StepSettings } from "./client.ts";
export type { ErrorName } from "./errors.gen.ts";
export { StepdError, TransportError } from "./errors.ts";
export { ShardedClient, type ShardedInput, type ShardedOptions, type ShardedResult } from "./sharded.ts";
export { State } from "./state.ts";
export { type DType, type Tensor, type Tensors, toTensors } from "./tensors.ts";
export type { Adam, AdamW, Group, LAMB, Optimizer, PlanParams, PlanResult, QHAdam, QHAdamW, QHM, SGD } from "./wire.gen.ts";
