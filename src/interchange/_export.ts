/** Exports a state to a file of torch, qhoptim or optax. Slots are converted in place and sent from the arena without a copy. */
import type { Lease } from "../arena/arena.ts";
import type { Parts } from "../codec/parts.ts";
import { compareCanonical, writeHeaderInTurns } from "../codec/safetensors.ts";
import { ITEMS_PER_YIELD, sorted, type Task } from "../codec/turns.ts";
import { OPTIMIZER_KEY, type ParameterState, STEP, type State, type StateEntry, scalarSlotsOf, writeEntries } from "../engine/state.ts";
import { StepdError } from "../errors/errors.ts";
import type { OptimizerDefinition } from "../optimizers/registry.ts";
import { rescale } from "./_elements.ts";
import { COUNT, type Convention, type ForeignFormat, firstNames, keyWriter, requireBetas, type StorageLayout, storageLayoutOf, WEIGHTS } from "./_formats.ts";
import { weightAt } from "./_weights.ts";

/** float32 represents every integer up to this one exactly. */
const MAX_FLOAT32_COUNT = 2 ** 24;

const INT32_MAX = 2 ** 31 - 1;

export interface Exported {
  readonly state: Parts;
  /** Sentences that name what the conversion loses. */
  readonly lost: readonly string[];
}

/** Collects the losses of a conversion: sentences, each with the parameters that it concerns. */
class Losses {
  readonly #bySentence = new Map<string, string[]>();

  add(sentence: string, parameter: string): void {
    const parameters = this.#bySentence.get(sentence) ?? [];
    this.#bySentence.set(sentence, parameters);
    parameters.push(parameter);
  }

  get sentences(): readonly string[] {
    return [...this.#bySentence].map(([sentence, parameters]) => `${sentence}: ${firstNames(parameters)}`);
  }
}

/** Writes a state in a foreign format. Throws STATE_MISMATCH and INVALID_PARAMS. */
export function* exportState({ optimizer: base, parameters }: State, convention: Convention, lease: Lease): Task<Exported> {
  const format = convention.format as ForeignFormat;
  const layouts = new Map<OptimizerDefinition, StorageLayout>();
  const layoutOf = ({ optimizer }: Pick<ParameterState, "optimizer">): StorageLayout => {
    const layout = layouts.get(optimizer) ?? storageLayoutOf(format, optimizer, "/to");
    layouts.set(optimizer, layout);
    return layout;
  };
  if (parameters.size === 0) layoutOf({ optimizer: base });
  const keyOf = keyWriter(convention);
  const losses = new Losses();
  const entries: StateEntry[] = [];
  const metadata: Record<string, string> = { format, optimizer: base.name };
  let done = 0;
  for (const [name, parameter] of parameters) {
    if (++done % ITEMS_PER_YIELD === 0) yield;
    const before = entries.length;
    const { optimizer } = parameter;
    const layout = layoutOf(parameter);
    const betas = layout.isCorrected ? requireBetas(convention, "/to") : undefined;
    if (optimizer !== base) metadata[OPTIMIZER_KEY + name] = optimizer.name;
    for (const [slot, { dtype, shape, address }] of parameter.slots) {
      const foreign = layout.slots.get(slot);
      if (foreign === undefined) losses.add(`${format} has nothing that corresponds to ${slot}`, name);
      else if (isNotCreatedYet(optimizer, layout, parameter, slot)) losses.add(`${format} has no ${slot} before the first step of ${optimizer.name}`, name);
      else entries.push({ name: keyOf(name, foreign), dtype, shape, content: address });
    }
    entries.push(...scalarsOf(name, parameter, { format, layout, betas, keyOf, losses }));
    if (entries.length === before) losses.add(`${format} has no entry for a parameter that has no slots there`, name);
  }
  if (format === "optax" && parameters.size > 0) entries.push(countOf(parameters, losses));
  yield;
  const rounded = yield* convertSlots(parameters, layoutOf, convention, lease);
  const ordered = yield* sorted(entries, compareCanonical);
  const header = yield* writeHeaderInTurns(metadata, ordered);
  return { state: yield* writeEntries(header, ordered, lease), lost: [...losses.sentences, ...rounded] };
}

/** True for a buffer of sgd or lars before the first step. torch creates it at that step, so exported zeros would look like a step's result. */
const isNotCreatedYet = ({ lateSlots }: OptimizerDefinition, { scalars, isCountShared }: StorageLayout, { step }: ParameterState, slot: string): boolean =>
  step === 0 && lateSlots.includes(slot) && !isCountShared && !(STEP in scalars);

interface ExportOptions {
  readonly format: ForeignFormat;
  readonly layout: StorageLayout;
  readonly betas: readonly [number, number] | undefined;
  keyOf(parameter: string, slot: string): string;
  readonly losses: Losses;
}

const f32 = (name: string, value: number): StateEntry => {
  const content = Buffer.alloc(4);
  content.writeFloatLE(value);
  return { name, dtype: "F32", shape: [], content };
};

const f64 = (name: string, value: number): StateEntry => {
  const content = Buffer.alloc(8);
  content.writeDoubleLE(value);
  return { name, dtype: "F64", shape: [], content };
};

/** Builds a parameter's scalar entries in the foreign format: step, weights and scalar slots. */
const scalarsOf = (
  name: string,
  { optimizer, step, scalars }: ParameterState,
  { format, layout, betas, keyOf, losses }: ExportOptions,
): readonly StateEntry[] => {
  const entries: StateEntry[] = [];
  if (STEP in layout.scalars) {
    if (step > MAX_FLOAT32_COUNT)
      losses.add(`${format} counts steps in float32, where ${step} is ${Math.fround(step)} and nothing counts on beyond ${MAX_FLOAT32_COUNT}`, name);
    entries.push(f32(keyOf(name, STEP), step));
  } else if (!layout.isCountShared && !betas) losses.add(`${format} keeps no step of ${optimizer.name}; the way back needs from.step ${step}`, name);
  if (betas) entries.push(...WEIGHTS.map((key, index) => f64(keyOf(name, key), weightAt(betas[index] as number, step))));
  for (const slot of scalarSlotsOf(optimizer)) {
    const value = scalars[slot];
    if (!(slot in layout.scalars)) {
      if (value !== undefined) losses.add(`${format} has nothing that corresponds to ${slot}`, name);
    } else if (value === undefined) losses.add(`${format} needs ${slot}, which the state has only after a step of ${optimizer.name}`, name);
    else if (layout.scalars[slot]?.[0] === "F64") entries.push(f64(keyOf(name, slot), value));
    else {
      if (Math.fround(value) !== value) losses.add(`${format} keeps ${slot} in float32: it is rounded`, name);
      entries.push(f32(keyOf(name, slot), value));
    }
  }
  return entries;
};

/** Builds the entry of optax's single step count. A parameter without a step gets the others' count, as if its gradients had been zero. */
const countOf = (parameters: ReadonlyMap<string, ParameterState>, losses: Losses): StateEntry => {
  const taken = [...parameters].filter(([, { step }]) => step > 0);
  const [first] = taken;
  const count = first?.[1].step ?? 0;
  const other = taken.find(([, { step }]) => step !== count);
  if (first && other) {
    throw StepdError.mismatch(
      "STATE_MISMATCH",
      "/state",
      "the same step for all parameters, because optax has one count",
      `${first[1].step} for ${firstNames([first[0]])} and ${other[1].step} for ${firstNames([other[0]])}`,
      [first[0], other[0]],
    );
  }
  if (count > 0)
    for (const [name, { step }] of parameters) if (step === 0) losses.add(`optax has one count, so that these go on from step ${count} in place of 0`, name);
  if (count > INT32_MAX) losses.add(`optax counts steps in int32, where ${count} is ${INT32_MAX}`, first?.[0] ?? "");
  const content = Buffer.alloc(4);
  content.writeInt32LE(Math.min(count, INT32_MAX));
  return { name: COUNT, dtype: "I32", shape: [], content };
};

/** Converts the slots' values to the foreign format, in place. Returns the losses as sentences. */
function* convertSlots(
  parameters: ReadonlyMap<string, ParameterState>,
  layoutOf: (parameter: ParameterState) => StorageLayout,
  convention: Convention,
  lease: Lease,
): Task<readonly string[]> {
  let changed = 0;
  let read = 0;
  let elements = 0;
  for (const parameter of parameters.values()) {
    const { step, slots } = parameter;
    const { negated, isCorrected, slots: held } = layoutOf(parameter);
    const betas = isCorrected ? requireBetas(convention, "/to") : undefined;
    if (++read % ITEMS_PER_YIELD === 0) yield;
    for (const [slot, tensor] of slots) {
      if (!held.has(slot)) continue;
      if (negated.includes(slot)) yield* rescale(lease, tensor, -1, false);
      if (!betas || step === 0) continue;
      const beta = betas[slot === "exp_avg" ? 0 : 1];
      changed += yield* rescale(lease, tensor, weightAt(beta, step) * (1 - beta), true);
      elements += tensor.elements;
    }
  }
  return changed > 0 ? [`qhoptim keeps bias-corrected moments: ${changed} of ${elements} values are rounded so that the way back gives another last bit`] : [];
}
