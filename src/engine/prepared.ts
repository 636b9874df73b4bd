/**
 * A step that was taken before with the same options and the same tensors: all that their values do not change is known. To read
 * headers, pair names and write headers takes 20 us a tensor, most of the main thread's time for many tensors and of a small
 * step's. What comes of it is what `runStep` gives, which also takes whatever is not as it was, with nothing changed.
 */
import type { Lease } from "../arena/arena.ts";
import { Parts } from "../codec/parts.ts";
import { canonicalOrder, compareUtf8, readSafetensors, type TensorInfo } from "../codec/safetensors.ts";
import type { Moment, Stage } from "../optimizers/registry.ts";
import { groupFinder } from "../planner/groups.ts";
import type { Pool } from "../pool/pool.ts";
import { DirectStages, type Target } from "./direct.ts";
import { Runner, type Waits, type Work } from "./runner.ts";
import { MASTER_PARAM, STEP, stateHeader } from "./state.ts";
import { countElements, type StepInput, type StepOutput, wantedSlots } from "./step.ts";
import type { Tensor } from "./tensors.ts";
import { type StepOptions, type Updated, update } from "./update.ts";

/** The three files of a step, in the arena. */
interface Files {
  readonly params: Buffer;
  readonly grads: Buffer;
  readonly state: Buffer;
}

/** Of a header with its length in front, which is below 2^32 (the reader has seen to it). */
const headerBytes = (file: Buffer): number => 8 + file.readUInt32LE(0);

/** What is made of headers takes about ten times as much as they do (measured with scalars of short names, the worst). */
const TIMES_HEADERS = 10;

const bytesOf = (headers: readonly number[]): number => TIMES_HEADERS * headers.reduce((sum, length) => sum + length, 0);

/** A file as it has to be. */
class Form {
  /** With the length in front. */
  readonly header: Buffer;
  readonly #bytes: number;

  constructor(file: Buffer) {
    this.header = Buffer.from(file.subarray(0, headerBytes(file)));
    this.#bytes = file.length;
  }

  isOf(file: Buffer): boolean {
    return file.length === this.#bytes && file.compare(this.header, 0, this.header.length, 0, this.header.length) === 0;
  }
}

type Forms = { readonly [File in keyof Files]: Form };

export class PreparedStep {
  /** Bytes that it takes, about. */
  readonly bytes: number;
  readonly #options: StepOptions;
  readonly #forms: Forms;
  /** In the order of names. */
  readonly #targets: readonly Target[];
  /** Offsets of the counts of steps of tensors that have no gradient. */
  readonly #resting: readonly number[];
  readonly #elements: StepOutput["elements"];
  readonly #isRecoverable: boolean;
  readonly #direct: DirectStages | undefined;

  private constructor(options: StepOptions, forms: Forms, targets: readonly Target[], resting: readonly number[], pool: Pool) {
    this.#options = options;
    this.#forms = forms;
    this.#targets = targets;
    this.#resting = resting;
    this.bytes = bytesOf(Object.values(forms).map(({ header }) => header.length));
    this.#elements = countElements(targets);
    this.#isRecoverable = targets.every(({ slots }) => slots.some(([slot]) => slot === MASTER_PARAM));
    this.#direct = DirectStages.of(options, targets, pool);
  }

  /** Prepares a step like one that has just succeeded; undefined where the result is not in the places of what came, or more than `most` bytes would be kept. */
  static like(options: StepOptions, input: StepInput, lease: Lease, pool: Pool, most: number): PreparedStep | undefined {
    const params = fileIn(lease, input.params);
    const grads = fileIn(lease, input.grads);
    const state = fileIn(lease, input.state);
    if (options.roundsReply || !params || !grads || !state || bytesOf([params, grads, state].map(headerBytes)) > most) return undefined;
    const { plan, masterWeights } = options;
    const { optimizer, base, groups } = plan;
    const forms: Forms = { params: new Form(params), grads: new Form(grads), state: new Form(state) };
    const infos = (file: Buffer): readonly TensorInfo[] => readSafetensors(file, "", "INTERNAL_ERROR").tensors;
    const entries = infos(state);
    // Written again, the state must be what it is, but for the values.
    if (!stateHeader(optimizer, canonicalOrder(entries)).equals(forms.state.header)) return undefined;

    const paramOf = new Map(infos(params).map((info) => [info.name, info]));
    const entryOf = new Map(entries.map((info) => [info.name, info]));
    const steps = new Map(entries.filter(({ name }) => name.startsWith(`${STEP}/`)).map(({ name, offset }) => [name, offset]));
    const find = groupFinder(groups);
    const stages = new Map([base, ...groups.map(({ values }) => values)].map((values) => [values, optimizer.stages(values)]));
    const targets: Target[] = [];
    for (const grad of infos(grads).toSorted((a, b) => compareUtf8(a.name, b.name))) {
      const { name } = grad;
      const param = paramOf.get(name) as TensorInfo;
      const values = groups[find(name)]?.values ?? base;
      const step = steps.get(`${STEP}/${name}`);
      const kept = (slot: string) => [slot, entryOf.get(`${slot}/${name}`)] as const;
      const slots = [...optimizer.allSlots, MASTER_PARAM].map(kept).filter((slot): slot is [string, TensorInfo] => slot[1] !== undefined);
      const scalars = Object.keys(optimizer.scalarSlots ?? {}).map(kept);
      const has = new Set(slots.map(([slot]) => slot));
      const hasAll = wantedSlots(optimizer, values, param, masterWeights).slots.every((slot) => has.has(slot)) && scalars.every(([, info]) => info);
      if (step === undefined || !hasAll) return undefined;
      const scalarOffsets = scalars.map(([slot, info]) => [slot, (info as TensorInfo).offset] as const);
      targets.push({ param, grad, slots, values, stages: stages.get(values) as readonly Stage[], step, scalars: scalarOffsets });
      steps.delete(`${STEP}/${name}`);
    }
    return targets.length === 0 ? undefined : new PreparedStep(options, forms, targets, [...steps.values()], pool);
  }

  /** The step, in place; undefined, with nothing changed, where it is not the one that was prepared. Throws what `runStep` throws for values. */
  run(input: StepInput, lease: Lease, pool: Pool, waits: Waits): StepOutput | Promise<StepOutput> | undefined {
    const params = fileIn(lease, input.params);
    const grads = fileIn(lease, input.grads);
    const state = fileIn(lease, input.state);
    if (!params || !this.#forms.params.isOf(params) || !grads || !this.#forms.grads.isOf(grads) || !state || !this.#forms.state.isOf(state)) return undefined;
    const files: Files = { params, grads, state };
    let rested = 0;
    for (const offset of this.#resting) {
      const step = readStep(state, offset);
      if (!isStep(step)) return undefined;
      rested = Math.max(rested, step);
    }
    const moments: Pick<Moment, "step" | "lr">[] = [];
    for (const { values, step } of this.#targets) {
      const taken = readStep(state, step);
      if (!isStep(taken)) return undefined;
      const lr = this.#rateAt(values, taken);
      if (lr === undefined) return undefined;
      moments.push({ step: taken + 1, lr });
    }
    const newest = moments.reduce((most, { step }) => Math.max(most, step), 0);
    if (!this.#direct?.run(moments, [params.byteOffset, grads.byteOffset, state.byteOffset], lease)) {
      return this.#take(this.#workOf(files, moments), files, newest, rested, new Runner(lease, pool, waits));
    }
    this.#targets.forEach(({ step }, index) => {
      writeStep(state, step, (moments[index] as Moment).step);
    });
    return this.#output(files, newest, rested, {});
  }

  /** Undefined where the schedule cycles the momentum, or has ended: that is for `runStep` to say. */
  #rateAt(values: Target["values"], taken: number): number | undefined {
    try {
      const now = this.#options.plan.at(values, taken);
      return now.values === values ? now.lr : undefined;
    } catch {
      return undefined;
    }
  }

  async #take(work: readonly Work[], files: Files, newest: number, rested: number, runner: Runner): Promise<StepOutput> {
    const { nextScalarSlots } = this.#options.plan.optimizer;
    const updated = await update(this.#options, work, () => work, runner);
    if (!updated) return this.#output(files, newest, rested, undefined);
    this.#targets.forEach(({ values, step, scalars }, index) => {
      const { moment } = work[index] as Work;
      writeStep(files.state, step, moment.step);
      if (!nextScalarSlots) return;
      const next = nextScalarSlots(values, { ...moment, sums: updated.results[index]?.sums ?? [] });
      for (const [slot, offset] of scalars) files.state.writeDoubleLE(next[slot] as number, offset);
    });
    return this.#output(files, newest, rested, updated.said);
  }

  /** `newest` is the largest count of steps with this one; without `said` it is skipped. */
  #output({ params, state }: Files, newest: number, rested: number, said: Updated["said"] | undefined): StepOutput {
    const { plan } = this.#options;
    return {
      params: new Parts([params]),
      rounded: undefined,
      isRecoverable: !said || this.#isRecoverable,
      state: new Parts([state]),
      report: { step: Math.max(said ? newest : newest - 1, rested), lr: plan.at(plan.base, newest - 1).lr, skipped: !said, ...said },
      elements: this.#elements,
    };
  }

  #workOf({ params, grads, state }: Files, moments: readonly Pick<Moment, "step" | "lr">[]): readonly Work[] {
    return this.#targets.map(({ param, grad, slots, values, stages, scalars }, index): Work => {
      const { step, lr } = moments[index] as Moment;
      return {
        param: within(params, param),
        grad: within(grads, grad),
        slots: new Map(slots.map(([slot, info]) => [slot, within(state, info)])),
        values,
        stages,
        moment: {
          step,
          lr,
          first: step === 1,
          elements: param.elements,
          scalarSlots: Object.fromEntries(scalars.map(([slot, offset]) => [slot, state.readDoubleLE(offset)])),
        },
        isMasterNew: false,
      };
    });
  }
}

const fileIn = (lease: Lease, blob: StepInput[keyof StepInput]): Buffer | undefined =>
  Buffer.isBuffer(blob) && blob.buffer === lease.bytes.buffer ? blob : undefined;

/** A tensor of a file in the arena. */
const within = (file: Buffer, { name, dtype, shape, elements, bytes, offset }: TensorInfo): Tensor => ({
  name,
  dtype,
  shape,
  elements,
  bytes,
  address: file.byteOffset + offset,
});

/** A step is an I64 in two halves. */
const WORD = 2 ** 32;

const readStep = (state: Buffer, offset: number): number => state.readUInt32LE(offset) + state.readInt32LE(offset + 4) * WORD;

const writeStep = (state: Buffer, offset: number, step: number): void => {
  state.writeUInt32LE(step % WORD, offset);
  state.writeUInt32LE(Math.floor(step / WORD), offset + 4);
};

/** Whether another step can follow. */
const isStep = (step: number): boolean => step >= 0 && step < Number.MAX_SAFE_INTEGER;
