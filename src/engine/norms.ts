/** Computes the sums of squares for optimizer.norms: for each tensor, one of its gradient and one of its parameter. */
import type { Lease } from "../arena/arena.ts";
import { type Mapping, mappingOf } from "../codec/members.ts";
import { ITEMS_PER_YIELD, mapInTurns, type Run, type Task } from "../codec/turns.ts";
import type { NormsParams, Slices } from "../generated/wire.gen.ts";
import type { Pool } from "../pool/pool.ts";
import { aligned } from "./layout.ts";
import { match } from "./match.ts";
import { GRADIENT_SQUARES, type NormsRecipe, Recipes } from "./recipe.ts";
import { gradientSums, normOf } from "./report.ts";
import { isRepeatable, type QueueTime, Runner, sumBytes, type Target } from "./runner.ts";
import { type SliceOffsets, sliceOffsets } from "./slices.ts";
import { readTensors, type TensorFile } from "./tensors.ts";

/** The sums over one tensor, computed in float64. */
export interface TensorNorms {
  /** The gradient's sum of squares, after division by the loss scale. */
  readonly grad_squares: number;
  readonly param_squares?: number;
  /** The gradient's sums of squares by shard, of a slice. */
  readonly grad_shard_squares?: readonly number[];
  readonly param_shard_squares?: readonly number[];
  readonly zeros: number;
  readonly non_finite: number;
}

export interface Norms {
  readonly tensors: Mapping<TensorNorms>;
  /** The norm over all gradients. Squares are added in the order of the names' UTF-8 bytes. */
  readonly grad_norm: number;
  readonly warnings?: readonly string[];
}

interface NormsTarget extends Target {
  readonly recipe: NormsRecipe;
}

interface NormsLayout {
  readonly targets: readonly NormsTarget[];
  readonly workBytes: number;
  readonly slices: SliceOffsets;
}

export const norms = async (
  gradFile: TensorFile,
  paramFile: TensorFile | undefined,
  { loss_scale: lossScale = 1, slices: given }: Pick<NormsParams, "loss_scale" | "slices">,
  lease: Lease,
  pool: Pool,
  queueTime: QueueTime,
  run: Run,
): Promise<Norms> => {
  const { targets, workBytes, slices } = await run(compileNormsLayout(gradFile, paramFile, lossScale, given, (name) => pool.kernel(name)));
  const bases = [paramFile?.bytes.byteOffset ?? 0, gradFile.bytes.byteOffset, 0, 0, 0, workBytes === 0 ? 0 : lease.alloc(workBytes)];
  const runner = new Runner(lease, pool, queueTime, bases);
  await runner.run(targets, ({ recipe }) => recipe.measure.calls, isRepeatable(lossScale));
  if (paramFile) await runner.run(targets, ({ recipe }) => recipe.squares.calls, true);
  const sums = await mapInTurns(targets, (target) => gradientSums(runner.total(target, target.recipe.measure.sums)));
  const tensors = mappingOf(targets, (target, index): readonly [string, TensorNorms] => {
    const { squares = 0, zeros = 0, nonFinite = 0 } = sums[index] ?? {};
    const [paramSquares = 0] = runner.total(target, target.recipe.squares.sums);
    const { measure, squares: ofParam } = target.recipe;
    const shards = slices.has(target.name) && {
      grad_shard_squares: runner.shardSums(target, measure.sums, GRADIENT_SQUARES),
      ...(paramFile && { param_shard_squares: runner.shardSums(target, ofParam.sums, 0) }),
    };
    return [target.name, { grad_squares: squares, ...(paramFile && { param_squares: paramSquares }), ...shards, zeros, non_finite: nonFinite }];
  });
  return {
    tensors,
    grad_norm: normOf(sums),
    ...(targets.length === 0 && { warnings: ["No parameter has a gradient, so all norms are 0; grads has no tensors"] }),
  };
};

function* compileNormsLayout(
  gradFile: TensorFile,
  paramFile: TensorFile | undefined,
  lossScale: number,
  slices: Slices | undefined,
  kernel: (name: string) => number,
): Task<NormsLayout> {
  const grads = yield* readTensors(gradFile, "/grads");
  // The parameter's dtype decides the arithmetic dtype, as in a step.
  const params = paramFile ? yield* readTensors(paramFile, "/params") : grads;
  const recipes = new Recipes(kernel);
  const known = new Map<string, NormsRecipe>();
  const targets: NormsTarget[] = [];
  let workBytes = 0;
  const { pairs } = yield* match({ params, grads, state: undefined });
  for (const { param, grad } of pairs) {
    const key = `${param.dtype} ${grad.dtype}`;
    const recipe = known.get(key) ?? recipes.norms(param.dtype, grad.dtype, lossScale);
    known.set(key, recipe);
    const { name, elements } = grad;
    const wideGradOffset = workBytes;
    workBytes += aligned(elements * recipe.wideGradStride);
    targets.push({ name, elements, offsets: [param.offset, grad.offset, wideGradOffset], sums: workBytes, recipe });
    workBytes += sumBytes(elements, recipe.columns);
    if (targets.length % ITEMS_PER_YIELD === 0) yield;
  }
  return { targets, workBytes, slices: yield* sliceOffsets(slices, grads.tensors, "/grads") };
}
