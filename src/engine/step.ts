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
import { Runner, type TensorResult, type Waits, type Work } from "./runner.ts";
import { addSlots, emptyState, MASTER_PARAM, readState, requireFit, type State, slotDtype, writeState } from "./state.ts";
import { loadTensors, type PlainTensors, requireMatch, type Tensor, type TensorSet, type Tensors } from "./tensors.ts";
import { type Pair, type StepOptions, type StepReport, update } from "./update.ts";

/** The bytes of a step. */
export interface StepInput {
  readonly params: Tensors;
  readonly grads: Tensors;
  readonly state: Uint8Array | string | null;
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
interface StepPair extends Pair {
  readonly values: Values<Hyperparameters>;
  readonly lr: number;
  /** The tensor's count of steps with this one. */
  readonly step: number;
}

/** Runs `optimizer.step`. The caller's bytes are overwritten in the lease. */
export const runStep = async (options: StepOptions, input: StepInput, lease: Lease, pool: Pool, waits: Waits): Promise<StepOutput> => {
  const { plan } = options;
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
  const reply = async (skipped: boolean, said: Pick<StepReport, "stats" | "warnings"> = {}): Promise<StepOutput> => ({
    params: params.reply(),
    rounded: options.roundsReply ? await runner.round(params) : undefined,
    isRecoverable:
      skipped ||
      pairs.every(({ param }) => (options.roundsReply && param.dtype === "BF16") || state.parameters.get(param.name)?.slots.has(MASTER_PARAM) === true),
    state: writeState(state, optimizer, lease),
    report: { step: lastStep(), lr: usedLr, skipped, ...said },
    elements: countElements(pairs),
  });

  const updated = await update(options, pairs, () => prepare(options, pairs, state, lease), runner);
  if (!updated) return reply(true);
  commit(optimizer, updated.work, updated.results, state);
  return reply(false, updated.said);
};

/** There is no direct way from F64 to BF16, and two roundings are not to nearest. */
const requireRoundable = (params: TensorSet): void => {
  const double = [...params.tensors.values()].find(({ dtype }) => dtype === "F64");
  if (double) throw StepdError.mismatch("UNSUPPORTED_DTYPE", "/reply/params", "same, where there are parameters in F64", "bf16", [double.name]);
};

/** Gradients with their parameters, in the order of names, so that nothing depends on the order in the request. */
const pairUp = (plan: Plan, params: ReadonlyMap<string, Tensor>, grads: ReadonlyMap<string, Tensor>, state: State): readonly StepPair[] => {
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

/** Elements of parameters by dtype. */
export const countElements = (pairs: readonly { readonly param: Pick<Tensor, "dtype" | "elements"> }[]): Record<string, number> => {
  const counts: Record<string, number> = {};
  for (const { param } of pairs) counts[param.dtype] = (counts[param.dtype] ?? 0) + param.elements;
  return counts;
};

/** Makes the slots that are missing and looks up each tensor's stages. */
const prepare = ({ plan: { optimizer }, masterWeights }: StepOptions, pairs: readonly StepPair[], state: State, lease: Lease): readonly Work[] => {
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
