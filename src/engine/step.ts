/**
 * One optimizer step from loaded bytes to new bytes: tensors, state, hyperparameters of this step, then stage by stage on the
 * pool, in place. A failure at any point leaves nothing to undo: the reply is written only from a finished step.
 */
import type { Lease } from "../arena/arena.ts";
import type { Parts } from "../codec/parts.ts";
import { compareUtf8 } from "../codec/safetensors.ts";
import { StepdError } from "../errors/errors.ts";
import type { Hyperparameters, Moment, OptimizerDefinition, Stage, Values } from "../optimizers/registry.ts";
import { groupFinder } from "../planner/groups.ts";
import type { Pool } from "../pool/pool.ts";
import type { Plan } from "./plan.ts";
import { type GradientSums, type Measured, Runner, type TensorResult, type Waits, type Work } from "./runner.ts";
import { addSlots, emptyState, MASTER_PARAM, readState, requireFit, type State, slotDtype, writeState } from "./state.ts";
import { loadTensors, type PlainTensors, requireMatch, type Tensor, type TensorSet, type Tensors } from "./tensors.ts";

/** The first tensors that an error or a warning names. */
const NAMED_TENSORS = 8;

/** torch adds this to the norm that it divides by (torch.nn.utils.clip_grad_norm_). */
const CLIP_EPS = 1e-6;

/** Slots that hold squares of gradients: an infinite one never becomes finite again. */
const SQUARES = ["exp_avg_sq", "square_avg", "sum"];

export interface Clip {
  readonly max_norm?: number | undefined;
  readonly max_value?: number | undefined;
  readonly total_norm?: number | undefined;
}

/** The bytes of a step. */
export interface StepInput {
  readonly params: Tensors;
  readonly grads: Tensors;
  readonly state: Uint8Array | string | null;
}

/** What a step is asked to do with them. */
export interface StepOptions {
  readonly plan: Plan;
  readonly clip: Clip;
  readonly lossScale: number;
  readonly nonFinite: "error" | "skip" | "propagate";
  readonly stats: "none" | "global" | "tensor";
  readonly masterWeights: boolean;
  /** Seed of stochastic rounding to BF16. */
  readonly seed: number | undefined;
  /** Whether the new parameters are wanted in BF16 as well. */
  readonly roundsReply: boolean;
}

export interface TensorStats {
  readonly grad_norm: number;
  readonly param_norm: number;
  readonly update_norm: number;
  readonly zeros: number;
  readonly non_finite: number;
  readonly trust_ratio?: number;
}

/** What a reply says of a step beside its tensors. */
export interface StepReport {
  readonly step: number;
  readonly lr: number;
  readonly skipped: boolean;
  readonly stats?: Omit<TensorStats, "trust_ratio"> & { readonly clipped: boolean; readonly tensors?: Readonly<Record<string, TensorStats>> };
  readonly warnings?: readonly string[];
}

export interface StepOutput {
  readonly params: Parts | PlainTensors;
  /** The parameters rounded to BF16. */
  readonly rounded: Parts | PlainTensors | undefined;
  /** Whether the rounded parameters or the state have all that the step changed of the parameters. */
  readonly isRecoverable: boolean;
  readonly state: Parts;
  readonly report: StepReport;
  /** Parameters that have a gradient, by dtype, for metrics. */
  readonly elements: Readonly<Record<string, number>>;
}

/** A gradient with its parameter and the hyperparameters of this step. */
interface Pair {
  readonly param: Tensor;
  readonly grad: Tensor;
  readonly values: Values<Hyperparameters>;
  readonly lr: number;
  /** The tensor's count of steps with this one. */
  readonly step: number;
}

/** Runs `optimizer.step`. The caller's bytes are overwritten in the lease. */
export const runStep = async (options: StepOptions, input: StepInput, lease: Lease, pool: Pool, waits: Waits): Promise<StepOutput> => {
  const { plan, clip, lossScale, nonFinite } = options;
  const { optimizer, base } = plan;
  const params = loadTensors(input.params, "/params", lease);
  const grads = loadTensors(input.grads, "/grads", lease);
  requireMatch(params, grads);
  const state = input.state === null ? emptyState(optimizer) : readState(input.state, lease);
  requireFit(state, optimizer, params.tensors, options.masterWeights);
  const pairs = pairUp(plan, params.tensors, grads.tensors, state);
  if (options.roundsReply) requireRoundable(params);

  const runner = new Runner(lease, pool, waits);
  const lastStep = (): number => [...state.parameters.values()].reduce((most, { step }) => Math.max(most, step), 0);
  const usedLr = plan.at(base, pairs.length > 0 ? pairs.reduce((most, { step }) => Math.max(most, step), 0) - 1 : lastStep()).lr;
  const reply = async (skipped: boolean, rest: Pick<StepReport, "stats" | "warnings"> = {}): Promise<StepOutput> => ({
    params: params.reply(),
    rounded: options.roundsReply ? await runner.round(params) : undefined,
    isRecoverable:
      skipped ||
      pairs.every(({ param }) => (options.roundsReply && param.dtype === "BF16") || state.parameters.get(param.name)?.slots.has(MASTER_PARAM) === true),
    state: writeState(state, optimizer, lease),
    report: { step: lastStep(), lr: usedLr, skipped, ...rest },
    elements: countElements(pairs),
  });

  const maxGradNorm = (base["max_grad_norm"] ?? undefined) as number | undefined;
  requireUse(clip, maxGradNorm);
  const needsNorm = (clip.max_norm !== undefined || maxGradNorm !== undefined) && clip.total_norm === undefined;
  let measured: Measured | undefined;
  if (needsNorm || nonFinite === "skip") {
    measured = await runner.measure(
      pairs.map(({ grad }) => grad),
      pairs.map(({ param }) => slotDtype(param.dtype)),
      lossScale,
    );
    if (nonFinite === "error") requireFinite(pairs, measured.sums);
    if (nonFinite === "skip" && measured.sums.some((sums) => sums.nonFinite > 0)) return reply(true);
  }
  let seen: readonly GradientSums[] = measured?.sums ?? [];
  const scale = clipScale(clip, maxGradNorm, clip.total_norm ?? normOf(seen));

  const work = prepare(options, pairs, state, lease);
  const wantsStats = options.stats !== "none";
  const results = await runner.runStages(work, measured, {
    lossScale,
    scale,
    maxValue: clip.max_value,
    look: wantsStats ? "norm" : nonFinite === "error" ? "check" : "not",
    wantsStats,
    seed: options.seed,
    onLook: (sums) => {
      seen = sums;
      if (nonFinite === "error") requireFinite(pairs, sums);
    },
  });
  commit(optimizer, work, results, state);
  const warnings = [
    ...(scale === 1 && clip.max_value === undefined ? overflowWarnings(optimizer, work, seen) : []),
    ...(scale === 0 ? ["The norm of all gradients is infinite, so that clipping made all of them 0; clip by value, or use a loss scale"] : []),
  ];
  return reply(false, {
    ...(wantsStats && { stats: statsOf(options, work, results, seen, scale) }),
    ...(warnings.length > 0 && { warnings }),
  });
};

/** There is no direct way from F64 to BF16, and two roundings are not to nearest. */
const requireRoundable = (params: TensorSet): void => {
  const double = [...params.tensors.values()].find(({ dtype }) => dtype === "F64");
  if (double) throw StepdError.mismatch("UNSUPPORTED_DTYPE", "/reply/params", "same, where there are parameters in F64", "bf16", [double.name]);
};

/** Gradients with their parameters, in the order of names, so that nothing depends on the order in the request. */
const pairUp = (plan: Plan, params: ReadonlyMap<string, Tensor>, grads: ReadonlyMap<string, Tensor>, state: State): readonly Pair[] => {
  const find = groupFinder(plan.groups);
  return [...grads.values()]
    .sort((a, b) => compareUtf8(a.name, b.name))
    .map((grad) => {
      const taken = state.parameters.get(grad.name)?.step ?? 0;
      if (taken >= Number.MAX_SAFE_INTEGER)
        throw StepdError.mismatch("STATE_MISMATCH", "/state", `step/${grad.name} below 2^53 - 1`, String(taken), [grad.name]);
      const { values, lr } = plan.at(plan.groups[find(grad.name)]?.values ?? plan.base, taken);
      return { param: params.get(grad.name) as Tensor, grad, values, lr, step: taken + 1 };
    });
};

const countElements = (pairs: readonly Pair[]): Record<string, number> => {
  const counts: Record<string, number> = {};
  for (const { param } of pairs) counts[param.dtype] = (counts[param.dtype] ?? 0) + param.elements;
  return counts;
};

const requireUse = ({ max_norm, total_norm }: Clip, maxGradNorm: number | undefined): void => {
  if (total_norm !== undefined && max_norm === undefined && maxGradNorm === undefined) {
    throw StepdError.mismatch("INVALID_PARAMS", "/clip/total_norm", "max_norm beside it, or an optimizer with max_grad_norm", "neither");
  }
};

/** The factor of all gradients: torch's for clip.max_norm, then timm's for LAMB's own max_grad_norm. */
const clipScale = ({ max_norm }: Clip, maxGradNorm: number | undefined, norm: number): number => {
  const scale = max_norm === undefined ? 1 : Math.min(1, max_norm / (norm + CLIP_EPS));
  return maxGradNorm === undefined ? scale : scale / Math.max(1, (norm * scale) / maxGradNorm);
};

/** The norm over all gradients, their squares added in the order of names. */
const normOf = (sums: readonly GradientSums[]): number => Math.sqrt(sums.reduce((sum, { squares }) => sum + squares, 0));

/** Makes the slots that are missing and looks up each tensor's stages. */
const prepare = ({ plan: { optimizer }, masterWeights }: StepOptions, pairs: readonly Pair[], state: State, lease: Lease): readonly Work[] => {
  const stages = new Map<Values<Hyperparameters>, readonly Stage[]>();
  const stagesOf = (values: Values<Hyperparameters>): readonly Stage[] => {
    const known = stages.get(values) ?? optimizer.stages(values);
    stages.set(values, known);
    return known;
  };
  const made = addSlots(
    state,
    optimizer,
    pairs.map(({ param, values }) => wantedSlots(optimizer, values, param, masterWeights)),
    lease,
  );
  return pairs.map(({ param, grad, values, lr, step }) => {
    const parameter = state.parameters.get(param.name);
    const fresh = made.get(param.name) ?? [];
    const moment: Omit<Moment, "sums"> = {
      step,
      lr,
      first: step === 1 || fresh.some((slot) => slot !== MASTER_PARAM),
      elements: param.elements,
      scalarSlots: parameter?.scalars ?? {},
    };
    return { param, grad, values, slots: parameter?.slots ?? new Map(), stages: stagesOf(values), moment, isMasterNew: fresh.includes(MASTER_PARAM) };
  });
};

/** The slots that a parameter has under an optimizer, with the master copy of a narrow one. */
export const wantedSlots = <P extends { readonly dtype: string }>(
  optimizer: OptimizerDefinition,
  values: Values<Hyperparameters>,
  param: P,
  masterWeights: boolean,
) => {
  const hasMaster = masterWeights && slotDtype(param.dtype) !== param.dtype;
  return { param, slots: [...optimizer.slots(values), ...(hasMaster ? [MASTER_PARAM] : [])], initial: optimizer.initial?.(values) ?? {} };
};

/** Counts the step in the state. */
const commit = (optimizer: OptimizerDefinition, work: readonly Work[], results: readonly TensorResult[], state: State): void => {
  work.forEach(({ param, values, moment }, index) => {
    const parameter = state.parameters.get(param.name);
    if (!parameter) return;
    parameter.step = moment.step;
    if (optimizer.nextScalarSlots) parameter.scalars = optimizer.nextScalarSlots(values, { ...moment, sums: results[index]?.sums ?? [] });
  });
};

/** Throws NON_FINITE_GRADIENT naming the first tensors. */
const requireFinite = (pairs: readonly Pair[], sums: readonly GradientSums[]): void => {
  const found = pairs.map(({ grad }, index) => ({ name: grad.name, count: sums[index]?.nonFinite ?? 0 })).filter(({ count }) => count > 0);
  if (found.length === 0) return;
  throw StepdError.mismatch(
    "NON_FINITE_GRADIENT",
    "/grads",
    "finite gradients (or non_finite skip or propagate)",
    `NaN or infinity in ${named(found)}`,
    found.slice(0, NAMED_TENSORS).map(({ name }) => name),
  );
};

const named = (found: readonly { readonly name: string; readonly count: number }[]): string => {
  const first = found.slice(0, NAMED_TENSORS).map(({ name, count }) => `${JSON.stringify(name)} (${count} ${count === 1 ? "value" : "values"})`);
  return first.join(", ") + (found.length > NAMED_TENSORS ? ` and ${found.length - NAMED_TENSORS} more tensors` : "");
};

/** A gradient of over 1.8e19 in float32 makes its average of squares infinite, and the parameter never moves again. */
const overflowWarnings = (optimizer: OptimizerDefinition, work: readonly Work[], sums: readonly GradientSums[]): readonly string[] => {
  const found = work
    .map(({ grad, values }, index) => ({
      name: grad.name,
      count: optimizer.slots(values).some((slot) => SQUARES.includes(slot)) ? (sums[index]?.squareOverflows ?? 0) : 0,
    }))
    .filter(({ count }) => count > 0);
  if (found.length === 0) return [];
  return [
    `The squares of gradients overflow in ${named(found)}: their averages of squares are infinite from now on and these parameters stay where they are; clip the gradients`,
  ];
};

const statsOf = (
  { plan: { optimizer }, stats }: StepOptions,
  work: readonly Work[],
  results: readonly TensorResult[],
  sums: readonly GradientSums[],
  scale: number,
): NonNullable<StepReport["stats"]> => {
  const total = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0);
  const tensors = work.map(({ param, values, moment }, index): [string, TensorStats] => {
    const { zeros = 0, nonFinite = 0, squares = 0 } = sums[index] ?? {};
    const { paramSquares = 0, updateSquares = 0, sums: stageSums = [] } = results[index] ?? {};
    const trustRatio = optimizer.trustRatio?.(values, { ...moment, sums: stageSums });
    return [
      param.name,
      {
        grad_norm: Math.sqrt(squares),
        param_norm: Math.sqrt(paramSquares),
        update_norm: Math.sqrt(updateSquares),
        zeros,
        non_finite: nonFinite,
        ...(trustRatio !== undefined && { trust_ratio: trustRatio }),
      },
    ];
  });
  return {
    grad_norm: normOf(sums),
    param_norm: Math.sqrt(total(results.map(({ paramSquares }) => paramSquares))),
    update_norm: Math.sqrt(total(results.map(({ updateSquares }) => updateSquares))),
    zeros: total(sums.map(({ zeros }) => zeros)),
    non_finite: total(sums.map(({ nonFinite }) => nonFinite)),
    clipped: scale < 1,
    ...(stats === "tensor" && { tensors: Object.fromEntries(tensors) }),
  };
};
