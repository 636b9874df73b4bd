/** Client of stepd for Node and browsers. */
export type {
  CachedShard,
  CachedStepInput,
  NormsInput,
  ReducedStepInput,
  Reduction,
  StepCached,
  StepInput,
  StepReply,
  StepResult,
  StepSettings,
} from "./calls.ts";
export { type AverageInput, Client, type Conversion, type ConvertInput, type ServerInfo } from "./client.ts";
export type { ErrorName } from "./errors.gen.ts";
export { StepdError, TransportError } from "./errors.ts";
export { Ledger, type LedgerInput, type LedgerOptions } from "./ledger.ts";
export type { Distances, DistancesInput, ReduceInput, ReduceResult, ReduceSettings, Update } from "./reduce.ts";
export { type ResidentInput, type ResidentOptions, type ResidentResult, ResidentRun, type Stepper } from "./resident.ts";
export { ShardedClient, type ShardedInput, type ShardedOptions, type ShardedReducedInput, type ShardedResult } from "./sharded.ts";
export { State } from "./state.ts";
export { type DType, type Tensor, type Tensors, toTensors, type UpdateTensor, type UpdateTensors } from "./tensors.ts";
export type { CallOptions, ClientOptions, Fetch } from "./transport.ts";
export type {
  Cached,
  Convention,
  DescribeResult,
  EvaluateParams,
  EvaluateResult,
  Group,
  InspectResult,
  ListResult,
  NormsResult,
  Optimizer,
  PlanParams,
  PlanResult,
  Receipt,
  Schedule,
  Stats,
} from "./wire.gen.ts";
