/** Computes the averaged parameters of an optimizer that evaluates a model with other parameters than it trains. */
import type { Lease } from "../arena/arena.ts";
import { readSafetensorsInTurns } from "../codec/safetensors.ts";
import { inTurns, type Run, type Task } from "../codec/turns.ts";
import { StepdError } from "../errors/errors.ts";
import { registry } from "../optimizers/registry.ts";
import type { Pool } from "../pool/pool.ts";
import { compile, type Layout, type StepOptions } from "./layout.ts";
import { match } from "./match.ts";
import { type QueueTime, Runner } from "./runner.ts";
import { STEP } from "./state.ts";
import { readProgress } from "./step.ts";
import { encodeTensors, type ReplyTensors, readTensors, type TensorFile } from "./tensors.ts";

/** Overwrites the parameters in the lease. A parameter without steps, or of an optimizer without an average, stays unchanged. */
export const average = async (
  options: StepOptions,
  file: TensorFile,
  state: Buffer,
  lease: Lease,
  pool: Pool,
  queueTime: QueueTime,
  run: Run,
): Promise<ReplyTensors> => {
  const layout = await run(compileAverages(options, file, state, (name) => pool.kernel(name)));
  const { taken } = await inTurns(readProgress(layout, state));
  const targets = layout.targets.filter(({ name, recipe }, index) => {
    if (taken[index] === 0 || recipe.average.length === 0) return false;
    const [missing] = recipe.slotsRequiredLater;
    if (missing === undefined) return true;
    throw StepdError.mismatch("STATE_MISMATCH", "/state", `slot ${missing}/${name} beside ${STEP}/${name}`, "none", [name]);
  });
  await new Runner(lease, pool, queueTime, [file.bytes.byteOffset, 0, state.byteOffset, 0, 0, 0]).run(targets, ({ recipe }) => recipe.average, false);
  return encodeTensors(file);
};

function* compileAverages(options: StepOptions, file: TensorFile, state: Buffer, kernel: (name: string) => number): Task<Layout> {
  requireAverage(options);
  const params = yield* readTensors(file, "/params");
  const matched = yield* match({ params, grads: params, state: yield* readSafetensorsInTurns(state, "/state", "STATE_CORRUPT") });
  return yield* compile({ ...options, master_weights: matched.firstMaster !== undefined }, matched, kernel);
}

/** Throws INVALID_PARAMS if neither the call's optimizer nor that of a group averages parameters. */
const requireAverage = ({ optimizer, groups = [] }: StepOptions): void => {
  const names = [...registry.values()].filter(({ average }) => average).map(({ name }) => name);
  if ([optimizer, ...groups.map((group) => group.optimizer)].some(({ name }) => names.includes(name as string))) return;
  throw StepdError.mismatch("INVALID_PARAMS", "/optimizer/name", `an optimizer that averages parameters: ${names.join(", ")}`, optimizer.name);
};
