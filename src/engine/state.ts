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
import { loadBlob, type Tensor } from "./tensors.ts";

export const STATE_FORMAT = "stepd.state/1";

const STEP = "step";
const STEP_BYTES = 8;
const FIELD = "/state";

/** What is kept for one parameter. */
export interface ParameterState {
  /** Steps taken; -1 while a file is being read and its step has not come yet. */
  step: number;
  /** By slot. */
  readonly slots: Map<string, Tensor>;
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

  const parameters = new Map<string, ParameterState>();
  for (const { name: key, dtype, shape, elements, bytes, offset } of tensors) {
    const slash = key.indexOf("/");
    const slot = key.slice(0, slash);
    const parameter = key.slice(slash + 1);
    if (slash < 0 || (slot !== STEP && !optimizer.allSlots.includes(slot))) {
      throw corrupt(`keys <slot>/<parameter> with a slot among ${[...optimizer.allSlots, STEP].join(", ")}`, JSON.stringify(key));
    }
    const state = parameters.get(parameter) ?? { step: -1, slots: new Map() };
    parameters.set(parameter, state);
    const address = file.byteOffset + offset;
    if (slot !== STEP) {
      state.slots.set(slot, { name: parameter, dtype, shape, elements, bytes, address });
      continue;
    }
    if (dtype !== "I64" || shape.length > 0) throw corrupt(`${key} to be an I64 scalar`, `${dtype} [${shape}]`);
    const step = file.readBigInt64LE(offset);
    if (step < 0n || step > BigInt(Number.MAX_SAFE_INTEGER)) throw corrupt(`${key} from 0 to 2^53 - 1`, String(step));
    state.step = Number(step);
  }
  for (const [parameter, { step }] of parameters) {
    if (step < 0) throw corrupt(`a key step/${parameter} beside the slots of ${JSON.stringify(parameter)}`, "none");
  }
  return { optimizer, revision: Number(revision), bytes: file.length, parameters };
};

/** Checks that a state can go on under an optimizer with these parameters. Throws STATE_MISMATCH. */
export const requireFit = (state: State, optimizer: OptimizerDefinition, params: ReadonlyMap<string, Tensor>): void => {
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
    for (const [slot, { dtype, shape }] of slots) {
      if (dtype !== param.dtype || String(shape) !== String(param.shape)) {
        throw mismatch(`${slot}/${name} to be ${param.dtype} [${param.shape}] as in params`, `${dtype} [${shape}]`, name);
      }
    }
  }
};

/**
 * Makes sure that a parameter has the slots in use: all zeros where it has no state yet. A slot that steps were taken
 * without is an error unless the optimizer lets it start late. Returns which parameters got a slot.
 */
export const addSlots = (
  state: State,
  wanted: Iterable<{ readonly param: Tensor; readonly slots: readonly string[]; readonly lateSlots: readonly string[] }>,
  lease: Lease,
): ReadonlySet<string> => {
  const missing: { readonly param: Tensor; readonly slot: string; readonly parameter: ParameterState }[] = [];
  const fresh = new Set<string>();
  for (const { param, slots, lateSlots } of wanted) {
    const parameter = state.parameters.get(param.name) ?? { step: 0, slots: new Map() };
    state.parameters.set(param.name, parameter);
    for (const slot of slots) {
      if (parameter.slots.has(slot)) continue;
      if (parameter.step > 0 && !lateSlots.includes(slot)) {
        throw StepdError.mismatch("STATE_MISMATCH", FIELD, `slot ${slot}/${param.name}, after ${parameter.step} steps`, "none", [param.name]);
      }
      missing.push({ param, slot, parameter });
      fresh.add(param.name);
    }
  }
  if (missing.length === 0) return fresh;
  // One block in the order of the file, so that it goes out in one piece.
  let address = lease.allocZeros(missing.reduce((sum, { param }) => sum + param.bytes, 0));
  const inOrder = canonicalOrder(
    missing.map((entry) => ({ ...entry, name: `${entry.slot}/${entry.param.name}`, dtype: entry.param.dtype, shape: entry.param.shape })),
  );
  for (const { param, slot, parameter } of inOrder) {
    parameter.slots.set(slot, { ...param, address });
    address += param.bytes;
  }
  return fresh;
};

/** The canonical file of a state, under the name of an optimizer. */
export const writeState = (state: State, optimizer: OptimizerDefinition, lease: Lease): Parts => {
  const entries: (TensorDescription & { readonly address: number })[] = [];
  for (const [name, { slots }] of state.parameters) {
    entries.push({ name: `${STEP}/${name}`, dtype: "I64", shape: [], address: 0 });
    for (const [slot, { dtype, shape, address }] of slots) entries.push({ name: `${slot}/${name}`, dtype, shape, address });
  }
  const ordered = canonicalOrder(entries);
  const header = writeHeader({ format: STATE_FORMAT, optimizer: optimizer.name, revision: String(optimizer.revision) }, ordered);
  // I64 comes first in the canonical order, so all steps stand together in front of the slots.
  const steps = Buffer.alloc(state.parameters.size * STEP_BYTES);
  ordered.slice(0, state.parameters.size).forEach(({ name }, index) => {
    const step = state.parameters.get(name.slice(STEP.length + 1))?.step ?? 0;
    steps.writeBigInt64LE(BigInt(step), index * STEP_BYTES);
  });
  const pieces: Uint8Array[] = [Buffer.concat([header, steps])];
  let start = 0;
  let end = -1;
  for (const { address, dtype, shape } of ordered.slice(state.parameters.size)) {
    const bytes = elementsOf(shape) * (bytesOf(dtype) as number);
    if (address !== end) {
      if (end > start) pieces.push(lease.view(start, end - start));
      start = address;
    }
    end = address + bytes;
  }
  if (end > start) pieces.push(lease.view(start, end - start));
  return new Parts(pieces);
};
