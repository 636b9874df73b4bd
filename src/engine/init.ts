/** Creates the state before the first step: step 0, and the slots that a step of all parameters would create. */
import type { Lease } from "../arena/arena.ts";
import type { Parts } from "../codec/parts.ts";
import { inTurns, type Run, type Task } from "../codec/turns.ts";
import type { Pool } from "../pool/pool.ts";
import { compile, type Layout, type StateOutput, type StepOptions } from "./layout.ts";
import { match } from "./match.ts";
import { writeOutput } from "./output.ts";
import { type QueueTime, Runner } from "./runner.ts";
import { STEP } from "./state.ts";
import { createSlots } from "./step.ts";
import { readTensors, type TensorFile } from "./tensors.ts";

export const init = async (options: StepOptions, file: TensorFile, lease: Lease, pool: Pool, queueTime: QueueTime, run: Run): Promise<Parts> => {
  const layout = await run(compileInitialLayout(options, file, (name) => pool.kernel(name)));
  const bases = [file.bytes.byteOffset, 0, 0, await inTurns(createSlots(layout, lease)), 0, 0];
  await new Runner(lease, pool, queueTime, bases).run(layout.targets, ({ recipe }) => recipe.fill, true);
  const initialScalar = (target: number, scalar: string): number | undefined =>
    scalar === STEP ? 0 : layout.targets[target]?.recipe.optimizer.scalarSlots?.[scalar];
  return inTurns(writeOutput(layout.output as StateOutput, undefined, bases, initialScalar, lease));
};

function* compileInitialLayout(options: StepOptions, file: TensorFile, kernel: (name: string) => number): Task<Layout> {
  const params = yield* readTensors(file, "/params");
  return yield* compile(options, yield* match({ params, grads: params, state: undefined }), kernel);
}
