/**
 * The state of an optimizer as a safetensors file: keys `<slot>/<parameter>` and `step/<parameter>` (the first / splits),
 * and in the metadata the format, the optimizer and its revision. The slots are used in place; a new file is the canonical
 * header and views of wherever the slots are.
 */
import type { Lease } from "../arena/arena.ts";
import { bytesOf, elementsOf } from "../codec/dtype.ts";
import { Parts } from "../codec/parts.ts";
import { canonicalOrder, readSafetensors, type TensorDescription, writeHeader } from "../codec/safetensors.ts";
import { StepdError } from "../errors/errors.ts";
import { type OptimizerDefinition, registry } from "../optimizers/registry.ts";
import { isSameShape, loadBlob, type Tensor } from "./tensors.ts";

export const STATE_FORMAT = "stepd.state/1";

export const STEP = "step";
const FIELD = "/state";

/** Bytes of a step (I64) and of a scalar slot (F64). */
const SCALAR_BYTES = 8;

/** The float32 copy that is kept of a parameter in a narrower dtype. */
export const MASTER_PARAM = "master_param";

/** What is kept for one parameter. */
export interface ParameterState {
  /** Steps taken; -1 while a file is being read and its step has not come yet. */
  step: number;
  /** By slot. */
  readonly slots: Map<string, Tensor>;
  /** Slots that are one float64 number. */
  scalars: Readonly<Record<string, number>>;
}

export interface State {
  readonly optimizer: OptimizerDefinition;
  readonly revision: number;
  readonly bytes: number;
  readonly parameters: Map<string, ParameterState>;
}

const corrupt = (expected: string, found: string): StepdError => StepdError.mismatch("STATE_CORRUPT", FIELD, expected, found);

export const emptyState = (optimizer: OptimizerDefinition): State => ({ optimizer, revision: optimizer.revision, bytes: 0, parameters: new Map() });

/** Reads a state as it is, for whichever optimizer it says. Throws STATE_CORRUPT. */
export const readState = (blob: Uint8Array | string, lease: Lease): State => {
  const file = loadBlob(blob, FIELD, "STATE_CORRUPT", lease);
  const { metadata, tensors } = readSafetensors(file, FIELD, "STATE_CORRUPT");
  const format = metadata.get("format");
  if (format !== STATE_FORMAT) throw corrupt(`__metadata__.format ${STATE_FORMAT}`, format === undefined ? "none" : JSON.stringify(format));
  const name = metadata.get("optimizer") ?? "";
  const optimizer = registry.get(name);
  if (!optimizer) throw corrupt("__metadata__.optimizer to be an optimizer of this server", JSON.stringify(name));
  const revision = metadata.get("revision") ?? "";
  if (!/^[1-9]\d{0,8}$/.test(revision)) throw corrupt("__metadata__.revision to be a whole number from 1", JSON.stringify(revision));

  const scalarSlots = Object.keys(optimizer.scalarSlots ?? {});
  const known = [...optimizer.allSlots, MASTER_PARAM, ...scalarSlots, STEP];
  const parameters = new Map<string, ParameterState>();
  for (const { name: key, dtype, shape, elements, bytes, offset } of tensors) {
    const slash = key.indexOf("/");
    const slot = key.slice(0, slash);
    const parameter = key.slice(slash + 1);
    if (slash < 0 || !known.includes(slot)) throw corrupt(`keys <slot>/<parameter> with a slot among ${known.join(", ")}`, JSON.stringify(key));
    const state = parameters.get(parameter) ?? { step: -1, slots: new Map(), scalars: {} };
    parameters.set(parameter, state);
    const requireScalar = (expected: string): void => {
      if (dtype !== expected || shape.length > 0) throw corrupt(`${key} to be an ${expected} scalar`, `${dtype} [${shape}]`);
    };
    if (slot === STEP) {
      requireScalar("I64");
      const step = file.readBigInt64LE(offset);
      if (step < 0n || step > BigInt(Number.MAX_SAFE_INTEGER)) throw corrupt(`${key} from 0 to 2^53 - 1`, String(step));
      state.step = Number(step);
    } else if (scalarSlots.includes(slot)) {
      requireScalar("F64");
      state.scalars = { ...state.scalars, [slot]: file.readDoubleLE(offset) };
    } else state.slots.set(slot, { name: parameter, dtype, shape, elements, bytes, address: file.byteOffset + offset });
  }
  for (const [parameter, { step }] of parameters) {
    if (step < 0) throw corrupt(`a key step/${parameter} beside the slots of ${JSON.stringify(parameter)}`, "none");
  }
  return { optimizer, revision: Number(revision), bytes: file.length, parameters };
};

/** Checks that a state can go on under an optimizer with these parameters. Throws STATE_MISMATCH. */
export const requireFit = (state: State, optimizer: OptimizerDefinition, params: ReadonlyMap<string, Tensor>, masterWeights: boolean): void => {
  const mismatch = (expected: string, found: string, tensor?: string): StepdError =>
    StepdError.mismatch("STATE_MISMATCH", FIELD, expected, found, tensor === undefined ? undefined : [tensor]);
  if (state.optimizer.family !== optimizer.family) {
    const family = [...registry.values()].filter(({ family }) => family === optimizer.family).map(({ name }) => name);
    throw mismatch(`a state of ${family.join(", ")}`, `a state of ${state.optimizer.name}`);
  }
  if (state.optimizer.name === optimizer.name && state.revision > optimizer.revision) {
    throw mismatch(`a state of ${optimizer.name} revision ${optimizer.revision} or older`, `revision ${state.revision}`);
  }
  for (const [name, { slots }] of state.parameters) {
    const param = params.get(name);
    if (!param) throw mismatch("state of tensors that params has", `state of ${JSON.stringify(name)}`, name);
    if (slots.has(MASTER_PARAM) && !masterWeights) throw mismatch("master_weights: true, because the state has master copies", "false", name);
    if (slots.has(MASTER_PARAM) && slotDtype(param.dtype) === param.dtype) {
      throw mismatch(`a BF16 or F16 parameter beside ${MASTER_PARAM}/${name}`, param.dtype, name);
    }
    for (const [slot, { dtype, shape }] of slots) {
      const expected = slotDtype(param.dtype);
      if (dtype !== expected || !isSameShape(shape, param.shape)) {
        throw mismatch(`${slot}/${name} to be ${expected} [${param.shape}] for a parameter in ${param.dtype}`, `${dtype} [${shape}]`, name);
      }
    }
  }
};

/** A parameter that is to be stepped, or to have a state made for it, with the slots in use. */
export interface Wanted {
  readonly param: Tensor;
  readonly slots: readonly string[];
  /** What slots start from where that is not 0. */
  readonly initial: Readonly<Record<string, number>>;
}

/**
 * Makes sure that parameters have the slots in use, at their starting values where they have no state yet. A slot that steps
 * were taken without is an error unless the optimizer lets it start late. Returns the slots made, by parameter.
 */
export const addSlots = (
  state: State,
  { lateSlots, scalarSlots = {} }: OptimizerDefinition,
  wanted: Iterable<Wanted>,
  lease: Lease,
): ReadonlyMap<string, readonly string[]> => {
  interface Missing extends TensorDescription {
    readonly param: Tensor;
    readonly slot: string;
    readonly start: number;
  }
  const missing: Missing[] = [];
  const made = new Map<string, string[]>();
  for (const { param, slots, initial } of wanted) {
    const parameter = state.parameters.get(param.name) ?? { step: 0, slots: new Map(), scalars: scalarSlots };
    state.parameters.set(param.name, parameter);
    // After its first step a parameter that lacks a scalar slot came from another optimizer of the family, which knows how to go on.
    if (parameter.step === 0) parameter.scalars = { ...scalarSlots, ...parameter.scalars };
    for (const slot of slots) {
      if (parameter.slots.has(slot)) continue;
      if (parameter.step > 0 && slot !== MASTER_PARAM && !lateSlots.includes(slot)) {
        throw StepdError.mismatch("STATE_MISMATCH", FIELD, `slot ${slot}/${param.name}, after ${parameter.step} steps`, "none", [param.name]);
      }
      missing.push({ param, slot, start: initial[slot] ?? 0, name: `${slot}/${param.name}`, dtype: slotDtype(param.dtype), shape: param.shape });
      made.set(param.name, [...(made.get(param.name) ?? []), slot]);
    }
  }
  // One block in the order of the file, so that it goes out in one piece.
  const bytesOfSlot = ({ param, dtype }: Missing): number => param.elements * (bytesOf(dtype) as number);
  const total = missing.reduce((sum, slot) => sum + bytesOfSlot(slot), 0);
  let address = total === 0 ? 0 : lease.allocZeros(total);
  for (const entry of canonicalOrder(missing)) {
    const { param, slot, start, dtype } = entry;
    const bytes = bytesOfSlot(entry);
    if (start !== 0) fill(lease, address, param.elements, dtype, start);
    state.parameters.get(param.name)?.slots.set(slot, { ...param, dtype, bytes, address });
    address += bytes;
  }
  return made;
};

const fill = (lease: Lease, address: number, elements: number, dtype: string, value: number): void => {
  const one = Buffer.alloc(bytesOf(dtype) as number);
  if (dtype === "F64") one.writeDoubleLE(value);
  else one.writeFloatLE(value);
  lease.bytes.fill(one, address, address + elements * one.length);
};

/** Slots are in float32, or in float64 for parameters in float64. */
export const slotDtype = (param: string): string => (param === "F64" ? "F64" : "F32");

/** A step or a scalar slot in the file. */
const scalarBytes = (value: number, dtype: "I64" | "F64"): Buffer => {
  const bytes = Buffer.allocUnsafe(SCALAR_BYTES);
  if (dtype === "I64") bytes.writeBigInt64LE(BigInt(value));
  else bytes.writeDoubleLE(value);
  return bytes;
};

/** The header of a state file whose entries are in canonical order. */
export const stateHeader = (optimizer: OptimizerDefinition, ordered: readonly TensorDescription[]): Buffer =>
  writeHeader({ format: STATE_FORMAT, optimizer: optimizer.name, revision: String(optimizer.revision) }, ordered);

/** What a file holds under one key: a scalar's bytes, or a slot by its address in the arena. */
export interface Entry extends TensorDescription {
  readonly content: Buffer | number;
}

/** The canonical file of a state, under the name of an optimizer. */
export const writeState = (state: State, optimizer: OptimizerDefinition, lease: Lease): Parts => {
  const entries: Entry[] = [];
  for (const [name, { step, slots, scalars }] of state.parameters) {
    entries.push({ name: `${STEP}/${name}`, dtype: "I64", shape: [], content: scalarBytes(step, "I64") });
    for (const slot of Object.keys(optimizer.scalarSlots ?? {})) {
      const value = scalars[slot];
      if (value !== undefined) entries.push({ name: `${slot}/${name}`, dtype: "F64", shape: [], content: scalarBytes(value, "F64") });
    }
    for (const [slot, { dtype, shape, address }] of slots) entries.push({ name: `${slot}/${name}`, dtype, shape, content: address });
  }
  const ordered = canonicalOrder(entries);
  return writeEntries(stateHeader(optimizer, ordered), ordered, lease);
};

/** The file of a header and the entries that it describes, in their order. */
export const writeEntries = (header: Buffer, ordered: readonly Entry[], lease: Lease): Parts => {
  const pieces: Uint8Array[] = [];
  // Scalars that follow each other become one piece, and so do slots that are neighbours in the arena.
  let scalars: Buffer[] = [header];
  let start = 0;
  let end = 0;
  const flush = (): void => {
    if (scalars.length > 0) pieces.push(Buffer.concat(scalars));
    if (end > start) pieces.push(lease.view(start, end - start));
    scalars = [];
    start = 0;
    end = 0;
  };
  for (const { content, dtype, shape } of ordered) {
    if (typeof content !== "number") {
      if (end > start) flush();
      scalars.push(content);
      continue;
    }
    if (scalars.length > 0 || content !== end) {
      flush();
      start = content;
    }
    end = content + elementsOf(shape) * (bytesOf(dtype) as number);
  }
  flush();
  return new Parts(pieces);
};
