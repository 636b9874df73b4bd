/**
 * Converts a state between formats: imports it, changes its optimizer within the family, adds slots, and exports it. Slots stay in
 * place in the arena from the request to the reply.
 */
import type { Lease } from "../arena/arena.ts";
import { bytesOf } from "../codec/dtype.ts";
import type { Parts } from "../codec/parts.ts";
import { ITEMS_PER_YIELD, type Run, type Task } from "../codec/turns.ts";
import { codesOf, MASTER_PARAM, type ParameterState, readState, type State, scaleOf, writeState } from "../engine/state.ts";
import { type ArenaTensor, type BlobInput, loadBlob } from "../engine/tensors.ts";
import { describe, StepdError } from "../errors/errors.ts";
import { type OptimizerDefinition, registry } from "../optimizers/registry.ts";
import { exportState } from "./_export.ts";
import { type Convention, firstNames, requireUsable } from "./_formats.ts";
import { importState } from "./_import.ts";

export interface ConvertInput {
  readonly state: BlobInput;
  readonly from: Convention;
  readonly to: Convention;
  readonly optimizer: string | undefined;
  readonly fill: readonly string[];
  /** The format of the new state's moments; undefined keeps their present format. */
  readonly stateDtype: string | undefined;
}

/** Converts the moments of a state to another format. */
export type ConvertMoments = (state: State, optimizer: OptimizerDefinition, stateDtype: string) => Promise<void>;

export interface Converted {
  readonly state: Parts;
  /** Sentences that name what the conversion loses. */
  readonly lost: readonly string[];
}

/** Converts a state. It overwrites the caller's bytes in the lease. */
export const convertState = async (input: ConvertInput, lease: Lease, run: Run, convertMoments: ConvertMoments): Promise<Converted> => {
  const source = await run(readInput(input, lease));
  const isForeign = input.to.format !== "stepd";
  if (isForeign && input.stateDtype !== undefined && input.stateDtype !== "F32") {
    throw StepdError.mismatch("INVALID_PARAMS", "/state_dtype", `F32 or none for a file of ${input.to.format}, which has no narrow moments`, input.stateDtype);
  }
  const stateDtype = isForeign ? "F32" : input.stateDtype;
  if (stateDtype !== undefined) await convertMoments(source.state, source.optimizer, stateDtype);
  return run(writeResult(source, input, lease));
};

interface Input {
  readonly state: State;
  readonly lost: readonly string[];
  readonly optimizer: OptimizerDefinition;
}

function* readInput({ state: blob, from, to, optimizer: name, fill }: ConvertInput, lease: Lease): Task<Input> {
  requireUsable(from, "from");
  requireUsable(to, "to");
  const target = name === undefined ? undefined : findOptimizer(name, "/optimizer");
  const source = from.format === "stepd" ? undefined : sourceOptimizer(from, target);
  const file = yield* loadBlob(blob, "/state", "STATE_CORRUPT", lease);
  const { state, lost } = source ? yield* importState(file, from, source, lease) : { state: yield* readState(file), lost: [] };
  const optimizer = target ?? state.optimizer;
  requireFamily(state, optimizer);
  const dropped = yield* dropSlots(state, optimizer);
  yield* fillSlots(state, optimizer, fill, lease);
  return { state, lost: [...lost, ...dropped], optimizer };
}

function* writeResult({ state, lost, optimizer }: Input, { to }: ConvertInput, lease: Lease): Task<Converted> {
  const exported = to.format === "stepd" ? { state: yield* writeState(state, optimizer, lease), lost: [] } : yield* exportState(state, to, optimizer, lease);
  return { state: exported.state, lost: [...lost, ...exported.lost] };
}

const findOptimizer = (name: string, field: string): OptimizerDefinition => {
  const found = registry.get(name);
  if (!found) throw StepdError.mismatch("INVALID_PARAMS", field, `one of ${[...registry.keys()].join(", ")}`, describe(name));
  return found;
};

const sourceOptimizer = ({ optimizer, format }: Convention, target: OptimizerDefinition | undefined): OptimizerDefinition => {
  const source = optimizer === undefined ? target : findOptimizer(optimizer, "/from/optimizer");
  if (!source) throw StepdError.mismatch("INVALID_PARAMS", "/from/optimizer", `the optimizer of the state, because files of ${format} do not say it`, "none");
  return source;
};

const requireFamily = ({ optimizer: source, revision }: State, optimizer: OptimizerDefinition): void => {
  const mismatch = (field: string, expected: string, found: string): StepdError => StepdError.mismatch("STATE_MISMATCH", field, expected, found);
  if (source.family !== optimizer.family) {
    const family = [...registry.values()].filter(({ family }) => family === source.family).map(({ name }) => name);
    throw mismatch("/optimizer", `${family.join(", ")}, the family ${source.family} of the state of ${source.name}`, optimizer.name);
  }
  // The new file would contain this server's older revision number, which is wrong for its contents.
  if (revision > source.revision) throw mismatch("/state", `a state of ${source.name} revision ${source.revision} or older`, `revision ${revision}`);
};

/** Removes the slots that the new optimizer does not have. Returns the losses as sentences. */
function* dropSlots({ parameters }: State, { name, allSlots, scalarSlots = {} }: OptimizerDefinition): Task<readonly string[]> {
  let read = 0;
  const lost = new Map<string, string[]>();
  for (const [parameter, { slots, scalars }] of parameters) {
    if (++read % ITEMS_PER_YIELD === 0) yield;
    const dropped = [
      ...[...slots.keys()].filter((slot) => !allSlots.includes(codesOf(slot) ?? slot) && slot !== MASTER_PARAM),
      ...Object.keys(scalars).filter((slot) => !(slot in scalarSlots)),
    ];
    for (const slot of dropped) {
      slots.delete(slot);
      const names = lost.get(slot) ?? [];
      lost.set(slot, names);
      names.push(parameter);
    }
  }
  return [...lost].map(([slot, names]) => `${name} has no slot ${slot}: ${firstNames(names)}`);
}

function* fillSlots({ parameters }: State, { name, allSlots, fills = {} }: OptimizerDefinition, fill: readonly string[], lease: Lease): Task<void> {
  let filled = 0;
  for (const [index, slot] of fill.entries()) {
    const field = `/fill/${index}`;
    const fillable = allSlots.filter((candidate) => candidate in fills);
    const source = fills[slot];
    if (source === undefined || !fillable.includes(slot)) {
      const expected =
        fillable.length === 0 ? `no slot, because ${name} has none that can be added` : `one of the slots of ${name} that can be added: ${fillable.join(", ")}`;
      throw StepdError.mismatch("INVALID_PARAMS", field, expected, slot === MASTER_PARAM ? `${describe(slot)}, which needs the parameters` : describe(slot));
    }
    for (const [parameter, { slots }] of parameters) {
      if (!slots.has(slot)) fillSlot(slots, slot, source, parameter, field, lease);
      if (++filled % ITEMS_PER_YIELD === 0) yield;
    }
  }
}

/** Adds a slot: a copy of the slot `source`, or zeros if `source` is null. */
const fillSlot = (slots: ParameterState["slots"], slot: string, source: string | null, parameter: string, field: string, lease: Lease): void => {
  const like = slots.get(source ?? "") ?? (source === null ? [...slots].find(([other]) => other !== MASTER_PARAM)?.[1] : undefined);
  if (!like) {
    const expected = `${source ?? "another slot"} of ${firstNames([parameter])} beside it, whose shape it takes`;
    throw StepdError.mismatch("STATE_MISMATCH", field, expected, "none", [parameter]);
  }
  const add = (slot: string, like: ArenaTensor): void => {
    const address = source === null ? lease.allocZeros(like.bytes) : lease.alloc(like.bytes);
    if (source !== null && like.bytes > 0) lease.bytes.fill(lease.view(like.address, like.bytes), address, address + like.bytes);
    slots.set(slot, { ...like, address });
  };
  // Zeros get the arithmetic dtype, even if the parameter's other slots are in BF16 or Q8.
  const dtype = like.dtype === "F64" ? "F64" : "F32";
  add(slot, source === null ? { ...like, dtype, bytes: like.elements * (bytesOf(dtype) as number) } : like);
  const scales = source === null ? undefined : slots.get(scaleOf(source));
  if (scales) add(scaleOf(slot), scales);
};
