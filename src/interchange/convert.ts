/**
 * Converts a state between formats: imports it, changes its optimizer within the family, adds slots, and exports it. Slots stay in
 * place in the arena from the request to the reply.
 */
import type { Lease } from "../arena/arena.ts";
import { bytesOf } from "../codec/dtype.ts";
import type { Parts } from "../codec/parts.ts";
import { CHEAP_ITEMS_PER_YIELD, ITEMS_PER_YIELD, type Run, type Task } from "../codec/turns.ts";
import { COMMON_SLOTS, codesOf, familyOf, type ParameterState, readState, type State, scaleOf, writeState } from "../engine/state.ts";
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
export type ConvertMoments = (state: State, stateDtype: string) => Promise<void>;

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
  if (stateDtype !== undefined) await convertMoments(source.state, stateDtype);
  return run(writeResult(source, input, lease));
};

interface Input {
  readonly state: State;
  readonly lost: readonly string[];
}

function* readInput({ state: blob, from, to, optimizer: name, fill }: ConvertInput, lease: Lease): Task<Input> {
  requireUsable(from, "from");
  requireUsable(to, "to");
  const target = name === undefined ? undefined : findOptimizer(name, "/optimizer");
  const source = from.format === "stepd" ? undefined : sourceOptimizer(from, target);
  const file = yield* loadBlob(blob, "/state", "STATE_CORRUPT", lease);
  const given = source ? yield* importState(file, from, source, lease) : { state: yield* readState(file), lost: [] };
  requireKnownRevisions(given.state);
  const state = target ? yield* withOptimizer(given.state, target) : given.state;
  const dropped = yield* dropSlots(state);
  yield* fillSlots(state, fill, lease);
  return { state, lost: [...given.lost, ...dropped] };
}

function* writeResult({ state, lost }: Input, { to }: ConvertInput, lease: Lease): Task<Converted> {
  const exported = to.format === "stepd" ? { state: yield* writeState(state, lease), lost: [] } : yield* exportState(state, to, lease);
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

/** The new file would contain this server's older revision numbers, which are wrong for its contents. */
const requireKnownRevisions = ({ revisions }: State): void => {
  for (const [name, revision] of revisions) {
    const known = registry.get(name)?.revision ?? 0;
    if (revision > known) throw StepdError.mismatch("STATE_MISMATCH", "/state", `a state of ${name} revision ${known} or older`, `revision ${revision}`);
  }
};

/** Changes the optimizer of the parameters in the optimizer's family. Throws STATE_MISMATCH if there are none. */
function* withOptimizer(state: State, optimizer: OptimizerDefinition): Task<State> {
  const { optimizer: base, parameters } = state;
  const isOfFamily = ({ family }: OptimizerDefinition): boolean => family === optimizer.family;
  const sources = new Set([base]);
  let read = 0;
  for (const parameter of parameters.values()) {
    if (++read % CHEAP_ITEMS_PER_YIELD === 0) yield;
    sources.add(parameter.optimizer);
    if (isOfFamily(parameter.optimizer)) parameter.optimizer = optimizer;
  }
  if (![...sources].some(isOfFamily)) {
    const expected = [...sources].map((source) => `${familyOf(source).join(", ")}, the family ${source.family} of the state of ${source.name}`).join(", or ");
    throw StepdError.mismatch("STATE_MISMATCH", "/optimizer", expected, optimizer.name);
  }
  return { ...state, optimizer: isOfFamily(base) ? optimizer : base };
}

/** Removes the slots that a parameter's new optimizer does not have. Returns the losses as sentences. */
function* dropSlots({ parameters }: State): Task<readonly string[]> {
  let read = 0;
  const lost = new Map<string, string[]>();
  for (const [parameter, { optimizer, slots, scalars }] of parameters) {
    const { name, allSlots, scalarSlots = {} } = optimizer;
    if (++read % ITEMS_PER_YIELD === 0) yield;
    const dropped = [
      ...[...slots.keys()].filter((slot) => !allSlots.includes(codesOf(slot) ?? slot) && !COMMON_SLOTS.includes(slot)),
      ...Object.keys(scalars).filter((slot) => !(slot in scalarSlots)),
    ];
    for (const slot of dropped) {
      slots.delete(slot);
      const sentence = `${name} has no slot ${slot}`;
      const names = lost.get(sentence) ?? [];
      lost.set(sentence, names);
      names.push(parameter);
    }
  }
  return [...lost].map(([sentence, names]) => `${sentence}: ${firstNames(names)}`);
}

/** Adds slots to the parameters whose optimizer has them. */
function* fillSlots({ optimizer: base, parameters }: State, fill: readonly string[], lease: Lease): Task<void> {
  if (fill.length === 0) return;
  const optimizers = new Set(parameters.size === 0 ? [base] : [...parameters.values()].map(({ optimizer }) => optimizer));
  const sourceOf = ({ allSlots, fills = {} }: OptimizerDefinition, slot: string): string | null | undefined =>
    allSlots.includes(slot) && Object.hasOwn(fills, slot) ? fills[slot] : undefined;
  let filled = 0;
  for (const [index, slot] of fill.entries()) {
    const field = `/fill/${index}`;
    if ([...optimizers].every((optimizer) => sourceOf(optimizer, slot) === undefined)) {
      const names = [...optimizers].map(({ name }) => name).join(", ");
      const fillable = [...new Set([...optimizers].flatMap((optimizer) => optimizer.allSlots.filter((one) => sourceOf(optimizer, one) !== undefined)))];
      const expected =
        fillable.length === 0
          ? `no slot, because ${names} has none that can be added`
          : `one of the slots of ${names} that can be added: ${fillable.join(", ")}`;
      throw StepdError.mismatch(
        "INVALID_PARAMS",
        field,
        expected,
        COMMON_SLOTS.includes(slot) ? `${describe(slot)}, which needs the parameters` : describe(slot),
      );
    }
    for (const [parameter, { optimizer, slots }] of parameters) {
      const source = sourceOf(optimizer, slot);
      if (source !== undefined && !slots.has(slot)) fillSlot(slots, slot, source, parameter, field, lease);
      if (++filled % ITEMS_PER_YIELD === 0) yield;
    }
  }
}

/** Adds a slot: a copy of the slot `source`, or zeros if `source` is null. */
const fillSlot = (slots: ParameterState["slots"], slot: string, source: string | null, parameter: string, field: string, lease: Lease): void => {
  const like = slots.get(source ?? "") ?? (source === null ? [...slots].find(([other]) => !COMMON_SLOTS.includes(other))?.[1] : undefined);
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
