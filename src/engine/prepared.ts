/**
 * A step that was taken before with the same options and the same tensors: all that their values do not change is known. For
 * small models, of which reading headers and pairing names takes far longer than the update. Gives the bits that `runStep`
 * gives, and leaves to it, before anything is changed, whatever is out of the ordinary: all errors and warnings are its.
 */
import type { Lease } from "../arena/arena.ts";
import { Parts } from "../codec/parts.ts";
import { canonicalOrder, readSafetensors, type TensorInfo } from "../codec/safetensors.ts";
import type { Hyperparameters, Stage, Values } from "../optimizers/registry.ts";
import { groupFinder } from "../planner/groups.ts";
import { INLINE_ELEMENTS, type Kernel, type Pool, SHARD } from "../pool/pool.ts";
import { STEP, slotDtype, stateHeader } from "./state.ts";
import type { StepInput, StepOptions, StepOutput } from "./step.ts";

/** Where an operand of a kernel is: in one of the three files, among its sums, or, for a slot that is not in use, nowhere. */
const [PARAMS, GRADS, STATE, SUMS, NOWHERE] = [0, 1, 2, 3, 4] as const;

const SUM_BYTES = 8;

/** Sums of gradient_check: values that are not finite, and squares that are not. */
const CHECK: Stage = { kernel: "gradient_check", operands: ["grad", "sums"], sums: 2, scalars: () => [] };

interface Operand {
  readonly place: number;
  readonly offset: number;
  /** Bytes by which it advances for each element before the shard. */
  readonly stride: number;
}

interface PreparedStage {
  readonly kernel: Kernel;
  readonly operands: readonly Operand[];
  readonly sums: number;
  readonly scalars: Stage["scalars"];
}

/** A tensor with a gradient. */
interface Target {
  readonly values: Values<Hyperparameters>;
  readonly elements: number;
  /** Offset of its count of steps in the state. */
  readonly step: number;
  readonly check: PreparedStage;
  readonly stages: readonly PreparedStage[];
}

/** A file as it has to be. */
class Form {
  readonly #bytes: number;
  /** With the length in front. */
  readonly header: Buffer;

  constructor(file: Buffer) {
    this.#bytes = file.length;
    this.header = Buffer.from(file.subarray(0, 8 + file.readUInt32LE(0)));
  }

  isOf(file: Buffer): boolean {
    return file.length === this.#bytes && file.compare(this.header, 0, this.header.length, 0, this.header.length) === 0;
  }
}

interface Prepared {
  readonly options: StepOptions;
  readonly forms: readonly [params: Form, grads: Form, state: Form];
  readonly targets: readonly Target[];
  /** Offsets of the counts of steps of tensors that have no gradient. */
  readonly resting: readonly number[];
  readonly elements: StepOutput["elements"];
  /** Where kernels on this thread may leave sums. */
  readonly sums: number;
}

export class PreparedStep {
  readonly #prepared: Prepared;

  private constructor(prepared: Prepared) {
    this.#prepared = prepared;
  }

  /** Prepares a step like one that has just succeeded; undefined where there is more to do than to run the stages in place. */
  static like(options: StepOptions, input: StepInput, lease: Lease, pool: Pool): PreparedStep | undefined {
    const [params, grads, state] = [input.params, input.grads, input.state].map((blob) => fileIn(lease, blob));
    if (!isPlain(options) || !params || !grads || !state) return undefined;
    const { optimizer, base, groups } = options.plan;
    const [paramInfos, gradInfos, stateInfos] = [params, grads, state].map((file) => readSafetensors(file, "", "INTERNAL_ERROR").tensors) as [
      Infos,
      Infos,
      Infos,
    ];
    const forms = [new Form(params), new Form(grads), new Form(state)] as const;
    if (gradInfos.length === 0 || gradInfos.reduce((sum, { elements }) => sum + elements, 0) > INLINE_ELEMENTS) return undefined;
    // Written again, the state must be what it is, but for the values.
    if (!stateHeader(optimizer, canonicalOrder(stateInfos)).equals(forms[STATE].header)) return undefined;

    const paramOf = new Map(paramInfos.map((info) => [info.name, info]));
    const stateOf = new Map(stateInfos.map((info) => [info.name, info]));
    const steps = new Map(stateInfos.filter(({ name }) => name.startsWith(`${STEP}/`)).map(({ name, offset }) => [name, offset]));
    const find = groupFinder(groups);
    const targets: Target[] = [];
    const elements: Record<string, number> = {};
    for (const grad of gradInfos) {
      const values = groups[find(grad.name)]?.values ?? base;
      const param = paramOf.get(grad.name) as TensorInfo;
      const key = `${STEP}/${grad.name}`;
      const step = steps.get(key);
      const slotOf = (slot: string): TensorInfo | undefined => stateOf.get(`${slot}/${grad.name}`);
      const isInPlace = param.dtype === grad.dtype && slotDtype(param.dtype) === param.dtype && optimizer.slots(values).every(slotOf);
      if (step === undefined || !isInPlace || values["maximize"] === true) return undefined;
      const inPlace = { [PARAMS]: param, [GRADS]: grad };
      const operandOf = (operand: string): Operand => {
        if (operand === "sums") return { place: SUMS, offset: 0, stride: 0 };
        const place = operand === "param" ? PARAMS : operand === "grad" ? GRADS : STATE;
        const info = place === STATE ? slotOf(operand) : inPlace[place];
        return info ? { place, offset: info.offset, stride: info.bytes / (info.elements || 1) } : { place: NOWHERE, offset: 0, stride: 0 };
      };
      const prepare = ({ kernel, operands, sums, scalars }: Stage): PreparedStage => ({
        kernel: pool.inline(`${kernel}_${param.dtype.toLowerCase()}`),
        operands: operands.map(operandOf),
        sums,
        scalars,
      });
      targets.push({ values, elements: param.elements, step, check: prepare(CHECK), stages: optimizer.stages(values).map(prepare) });
      elements[param.dtype] = (elements[param.dtype] ?? 0) + param.elements;
      steps.delete(key);
    }
    return new PreparedStep({ options, forms, targets, resting: [...steps.values()], elements, sums: pool.inlineScratch });
  }

  /** The step, in place; undefined, with nothing changed, where it is not the one that was prepared. */
  run(input: StepInput, lease: Lease): StepOutput | undefined {
    const { options, forms, targets, resting, elements, sums: sumsAt } = this.#prepared;
    const params = fileIn(lease, input.params);
    const grads = fileIn(lease, input.grads);
    const state = fileIn(lease, input.state);
    if (!params || !forms[PARAMS].isOf(params) || !grads || !forms[GRADS].isOf(grads) || !state || !forms[STATE].isOf(state)) return undefined;
    const places = [params.byteOffset, grads.byteOffset, state.byteOffset, sumsAt, 0];
    const { plan, nonFinite } = options;

    let rested = 0;
    for (const offset of resting) {
      const step = readStep(state, offset);
      if (!isStep(step)) return undefined;
      rested = Math.max(rested, step);
    }
    const moments: { readonly step: number; readonly lr: number }[] = [];
    for (const { values, step } of targets) {
      const taken = readStep(state, step);
      if (!isStep(taken)) return undefined;
      const now = plan.at(values, taken);
      // A schedule that cycles the momentum.
      if (now.values !== values) return undefined;
      moments.push({ step: taken + 1, lr: now.lr });
    }
    if (nonFinite !== "propagate") {
      for (const { check, elements } of targets) if (!run(check, elements, NO_SCALARS, places, lease).every(isZero)) return undefined;
    }

    let newest = 0;
    targets.forEach(({ elements, step: offset, stages }, index) => {
      const { step, lr } = moments[index] as (typeof moments)[number];
      const sums: number[][] = [];
      for (const stage of stages) {
        const scalars = stage.scalars({ step, lr, first: step === 1, elements, scalarSlots: {}, sums });
        sums.push(run(stage, elements, scalars, places, lease));
      }
      state.writeUInt32LE(step % WORD, offset);
      state.writeUInt32LE(Math.floor(step / WORD), offset + 4);
      newest = Math.max(newest, step);
    });
    return {
      params: new Parts([params]),
      rounded: undefined,
      isRecoverable: false,
      state: new Parts([state]),
      report: { step: Math.max(newest, rested), lr: plan.at(plan.base, newest - 1).lr, skipped: false },
      elements,
    };
  }
}

type Infos = readonly TensorInfo[];

/** Whether options ask for nothing beside the stages. */
const isPlain = ({ plan: { optimizer, base }, clip, lossScale, stats, roundsReply }: StepOptions): boolean =>
  Object.values(clip).every((limit) => limit === undefined) &&
  (base["max_grad_norm"] ?? null) === null &&
  lossScale === 1 &&
  stats === "none" &&
  !roundsReply &&
  !optimizer.scalarSlots;

const fileIn = (lease: Lease, blob: StepInput[keyof StepInput]): Buffer | undefined =>
  Buffer.isBuffer(blob) && blob.buffer === lease.bytes.buffer ? blob : undefined;

/** A step is an I64 in two halves. */
const WORD = 2 ** 32;

const readStep = (state: Buffer, offset: number): number => state.readUInt32LE(offset) + state.readInt32LE(offset + 4) * WORD;

/** Whether another step can follow. */
const isStep = (step: number): boolean => step >= 0 && step < Number.MAX_SAFE_INTEGER;

const isZero = (sum: number): boolean => sum === 0;

const NO_SCALARS: readonly number[] = [];

/** Runs a kernel on all of a tensor and returns its sums: block by block, in order, as everywhere. */
const run = ({ kernel, operands, sums }: PreparedStage, elements: number, scalars: readonly number[], places: readonly number[], lease: Lease): number[] => {
  const totals: number[] = [];
  for (let i = 0; i < sums; i++) totals.push(0);
  for (let start = 0; start < elements; start += SHARD) {
    const values: number[] = [];
    for (const { place, offset, stride } of operands) values.push((places[place] as number) + offset + start * stride);
    values.push(Math.min(SHARD, elements - start));
    for (const scalar of scalars) values.push(scalar);
    kernel(...values);
    for (let i = 0; i < sums; i++) totals[i] = (totals[i] as number) + lease.bytes.readDoubleLE((places[SUMS] as number) + i * SUM_BYTES);
  }
  return totals;
};
