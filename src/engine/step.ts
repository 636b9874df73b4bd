/**
 * One optimizer step from loaded bytes to new bytes: tensors, state, scalars, then stage by stage on the pool, in place. A
 * failure at any point leaves nothing to undo: the reply is written only from a finished step.
 */
import type { Lease } from "../arena/arena.ts";
import type { Parts } from "../codec/parts.ts";
import { compareUtf8 } from "../codec/safetensors.ts";
import { StepdError } from "../errors/errors.ts";
import type { Hyperparameters, Stage, Values } from "../optimizers/registry.ts";
import { groupFinder } from "../planner/groups.ts";
import { type Call, type Pool, SHARD, type Unit } from "../pool/pool.ts";
import type { Plan } from "./plan.ts";
import { addSlots, emptyState, readState, requireFit, type State, writeState } from "./state.ts";
import { loadTensors, type PlainTensors, requireMatch, type Tensor, type Tensors } from "./tensors.ts";

const SUM_BYTES = 8;

/** The first tensors with NaN or infinity that an error names. */
const NAMED_TENSORS = 8;

export interface StepInput {
  readonly plan: Plan;
  readonly params: Tensors;
  readonly grads: Tensors;
  readonly state: Uint8Array | string | null;
  readonly nonFinite: "error" | "skip" | "propagate";
}

export interface StepOutput {
  readonly params: Parts | PlainTensors;
  readonly state: Parts;
  readonly step: number;
  readonly lr: number;
  readonly skipped: boolean;
  /** What metrics count. */
  readonly elements: number;
  readonly computeSeconds: number;
  readonly queueSeconds: number;
}

/** One tensor's step on its way through the stages. */
interface Work extends Pair {
  readonly slots: ReadonlyMap<string, Tensor>;
  readonly stages: readonly Stage[];
  readonly step: number;
  readonly lr: number;
  readonly first: boolean;
  /** Whole-tensor sums of each finished stage. */
  readonly sums: number[][];
}

/** A gradient with its parameter and its hyperparameters. */
interface Pair {
  readonly param: Tensor;
  readonly grad: Tensor;
  readonly values: Values<Hyperparameters>;
}

/** Runs `optimizer.step`. The caller's bytes are overwritten in the lease. */
export const runStep = async (
  { plan, params: givenParams, grads: givenGrads, state: givenState, nonFinite }: StepInput,
  lease: Lease,
  pool: Pool,
): Promise<StepOutput> => {
  const { optimizer, base } = plan;
  const params = loadTensors(givenParams, "/params", lease);
  const grads = loadTensors(givenGrads, "/grads", lease);
  requireMatch(params, grads);
  const state = givenState === null ? emptyState(optimizer) : readState(givenState, lease);
  requireFit(state, optimizer, params.tensors);
  const pairs = pairUp(plan, params.tensors, grads.tensors);

  const start = performance.now();
  const runner = new Runner(lease, pool);
  const reply = (skipped: boolean): StepOutput => ({
    params: params.reply(),
    state: writeState(state, optimizer, lease),
    step: [...state.parameters.values()].reduce((most, { step }) => Math.max(most, step), 0),
    lr: base["lr"] as number,
    skipped,
    elements: pairs.reduce((sum, { param }) => sum + param.elements, 0),
    computeSeconds: (performance.now() - start) / 1000 - runner.queueSeconds,
    queueSeconds: runner.queueSeconds,
  });

  const maxGradNorm = base["max_grad_norm"] as number | null | undefined;
  const clips = typeof maxGradNorm === "number";
  let clip = 1;
  if (clips || nonFinite === "skip") {
    const { nonFiniteTensors, norm } = await runner.measure(pairs);
    if (nonFinite === "skip" && nonFiniteTensors.length > 0) return reply(true);
    if (nonFinite === "error") requireFinite(nonFiniteTensors);
    // timm's form: the norm is over all tensors of the call.
    if (clips) clip = 1 / Math.max(1, norm / maxGradNorm);
  }
  const work = prepare(plan, pairs, state, lease);
  await runner.runStages(work, clip, nonFinite === "error" && !clips);
  for (const { param, step } of work) {
    const parameter = state.parameters.get(param.name);
    if (parameter) parameter.step = step;
  }
  return reply(false);
};

/** Gradients with their parameters, in the order of names, so that nothing depends on the order in the request. */
const pairUp = ({ base, groups }: Plan, params: ReadonlyMap<string, Tensor>, grads: ReadonlyMap<string, Tensor>): readonly Pair[] => {
  const find = groupFinder(groups);
  return [...grads.values()]
    .sort((a, b) => compareUtf8(a.name, b.name))
    .map((grad) => ({ param: params.get(grad.name) as Tensor, grad, values: groups[find(grad.name)]?.values ?? base }));
};

/** Makes the slots that are missing and looks up each tensor's stages. */
const prepare = ({ optimizer }: Plan, pairs: readonly Pair[], state: State, lease: Lease): readonly Work[] => {
  const stages = new Map<Values<Hyperparameters>, readonly Stage[]>();
  const stagesOf = (values: Values<Hyperparameters>): readonly Stage[] => {
    const known = stages.get(values) ?? optimizer.stages(values);
    stages.set(values, known);
    return known;
  };
  const fresh = addSlots(
    state,
    pairs.map(({ param, values }) => ({ param, slots: optimizer.slots(values), lateSlots: optimizer.lateSlots })),
    lease,
  );
  return pairs.map((pair) => {
    const { name } = pair.param;
    const parameter = state.parameters.get(name);
    const step = nextStep(parameter?.step ?? 0, name);
    return {
      ...pair,
      slots: parameter?.slots ?? new Map(),
      stages: stagesOf(pair.values),
      step,
      lr: pair.values["lr"] as number,
      first: step === 1 || fresh.has(name),
      sums: [],
    };
  });
};

const nextStep = (step: number, name: string): number => {
  if (step >= Number.MAX_SAFE_INTEGER) throw StepdError.mismatch("STATE_MISMATCH", "/state", `step/${name} below 2^53 - 1`, String(step), [name]);
  return step + 1;
};

interface NonFinite {
  readonly name: string;
  readonly values: number;
}

const requireFinite = (found: readonly NonFinite[]): void => {
  if (found.length === 0) return;
  const first = found.slice(0, NAMED_TENSORS);
  const named = first.map(({ name, values }) => `${JSON.stringify(name)} (${values} ${values === 1 ? "value" : "values"})`).join(", ");
  const more = found.length > first.length ? ` and ${found.length - first.length} more tensors` : "";
  throw StepdError.mismatch(
    "NON_FINITE_GRADIENT",
    "/grads",
    "finite gradients (or non_finite skip or propagate)",
    `NaN or infinity in ${named}${more}`,
    first.map(({ name }) => name),
  );
};

/** Memory for the sums of one tensor: a row of float64 for each block. */
interface Sums {
  readonly address: number;
  /** Sums in a row. */
  readonly width: number;
  readonly blocks: number;
}

/** A slot that is not in use, for the kernel. */
const ABSENT = { address: 0 } as const;

/** Turns stages into units of the pool and reads their sums. */
class Runner {
  readonly #lease: Lease;
  readonly #pool: Pool;
  /** Seconds spent waiting for other jobs. */
  queueSeconds = 0;

  constructor(lease: Lease, pool: Pool) {
    this.#lease = lease;
    this.#pool = pool;
  }

  /** Counts non-finite gradients and takes the global norm, before anything is changed. */
  async measure(pairs: readonly Pair[]): Promise<{ nonFiniteTensors: readonly NonFinite[]; norm: number }> {
    const sums = this.#allocSums(pairs.map(({ grad }) => ({ elements: grad.elements, width: 2 })));
    const units = pairs.map(
      ({ grad }, index): Unit => ({ elements: grad.elements, calls: [this.#call("gradient_norm", grad, [grad, sums[index] as Sums], [])] }),
    );
    this.queueSeconds += await this.#pool.run(units, this.#lease);
    const totals = sums.map((tensorSums) => this.#total(tensorSums));
    const squares = totals.reduce((sum, [, square = 0]) => sum + square, 0);
    return { nonFiniteTensors: nonFiniteOf(pairs, totals), norm: Math.sqrt(squares) };
  }

  /** Runs all stages of all tensors; with `checks` throws NON_FINITE_GRADIENT after the first, which looks at the gradients as it goes. */
  async runStages(work: readonly Work[], clip: number, checks: boolean): Promise<void> {
    const count = work.reduce((most, { stages }) => Math.max(most, stages.length), 0);
    for (let index = 0; index < count; index++) {
      const isFirst = index === 0;
      const found = this.#allocSums(work.map(({ grad }) => ({ elements: grad.elements, width: isFirst && checks ? 1 : 0 })));
      const results = this.#allocSums(work.map(({ grad, stages }) => ({ elements: grad.elements, width: stages[index]?.sums ?? 0 })));
      const units = work.map((item, at): Unit => {
        const { grad, values, stages } = item;
        const calls: Call[] = [];
        if (isFirst && checks) calls.push(this.#call("gradient_check", grad, [grad, found[at] as Sums], []));
        const factor = values["maximize"] === true ? -clip : clip;
        if (isFirst && factor !== 1) calls.push(this.#call("gradient_scale", grad, [grad], [factor]));
        const stage = stages[index];
        if (stage) calls.push(this.#stageCall(item, stage, results[at] as Sums));
        return { elements: grad.elements, calls };
      });
      this.queueSeconds += await this.#pool.run(units, this.#lease);
      if (isFirst && checks)
        requireFinite(
          nonFiniteOf(
            work,
            found.map((sums) => this.#total(sums)),
          ),
        );
      work.forEach(({ sums }, at) => {
        sums.push(this.#total(results[at] as Sums));
      });
    }
  }

  #stageCall({ param, grad, slots, step, lr, first, sums }: Work, stage: Stage, results: Sums): Call {
    const operands = stage.operands.map((operand) => {
      if (operand === "param") return param;
      if (operand === "grad") return grad;
      if (operand === "sums") return results;
      return slots.get(operand) ?? ABSENT;
    });
    return this.#call(stage.kernel, param, operands, stage.scalars({ step, lr, first, elements: param.elements, sums, scalarSlots: {} }));
  }

  #call(kernel: string, { dtype, elements, bytes }: Tensor, operands: readonly (Tensor | Sums | typeof ABSENT)[], scalars: readonly number[]): Call {
    const stride = elements === 0 ? 0 : bytes / elements;
    return {
      kernel: this.#pool.kernel(`${kernel}_${dtype.toLowerCase()}`),
      pointers: operands.map((operand) => ({ address: operand.address, stride: "width" in operand ? (operand.width * SUM_BYTES) / SHARD : stride })),
      scalars,
    };
  }

  /** One block of memory for the sums of all tensors. */
  #allocSums(tensors: readonly { readonly elements: number; readonly width: number }[]): readonly Sums[] {
    const rows = tensors.map(({ elements, width }) => ({ width, blocks: Math.ceil(elements / SHARD) }));
    const bytes = rows.reduce((sum, { width, blocks }) => sum + width * blocks * SUM_BYTES, 0);
    let address = bytes === 0 ? 0 : this.#lease.alloc(bytes);
    return rows.map((row) => {
      const sums = { ...row, address };
      address += row.width * row.blocks * SUM_BYTES;
      return sums;
    });
  }

  /** The sums of a whole tensor: block by block, in order. */
  #total({ address, width, blocks }: Sums): number[] {
    const totals = new Array<number>(width).fill(0);
    for (let block = 0; block < blocks; block++) {
      for (let i = 0; i < width; i++) totals[i] = (totals[i] as number) + this.#lease.bytes.readDoubleLE(address + (block * width + i) * SUM_BYTES);
    }
    return totals;
  }
}

const nonFiniteOf = (pairs: readonly Pair[], totals: readonly (readonly number[])[]): readonly NonFinite[] =>
  pairs.map(({ grad }, index) => ({ name: grad.name, values: totals[index]?.[0] ?? 0 })).filter(({ values }) => values > 0);
