/**
 * Reads and writes an optimizer's state as a safetensors file. Keys are `<slot>/<parameter>` and `step/<parameter>`, split at the first "/". The
 * metadata names the format, the optimizer and its revision. A new file is a canonical header and views of the slots in the arena.
 */
import type { Lease } from "../arena/arena.ts";
import { bytesOf, elementsOf } from "../codec/dtype.ts";
import { Parts } from "../codec/parts.ts";
import {
  compareCanonical,
  readSafetensorsInTurns,
  type Safetensors,
  type TensorDescription,
  type TensorInfo,
  writeHeaderInTurns,
} from "../codec/safetensors.ts";
import { CHEAP_ITEMS_PER_YIELD, ITEMS_PER_YIELD, sorted, type Task } from "../codec/turns.ts";
import { StepdError } from "../errors/errors.ts";
import { type Hyperparameters, type OptimizerDefinition, registry, type Values } from "../optimizers/registry.ts";
import type { ArenaTensor } from "./tensors.ts";

export const STATE_FORMAT = "stepd.state/1";

export const STEP = "step";
const FIELD = "/state";

// Step counts are I64, scalar slots are F64.
export const SCALAR_BYTES = 8;

/** This slot holds the master copy: a float32 copy of a BF16 or F16 parameter. */
export const MASTER_PARAM = "master_param";

/** This slot holds the average of the parameter over its steps. */
export const EMA = "ema";

/** A parameter under any optimizer may have these slots. */
export const COMMON_SLOTS: readonly string[] = [MASTER_PARAM, EMA];

/** One parameter's part of the state. */
export interface ParameterState {
  optimizer: OptimizerDefinition;
  /** The number of steps that have updated the parameter. */
  step: number;
  /** The slots' tensors by name. */
  readonly slots: Map<string, ArenaTensor>;
  /** The scalar slots by name. Each is one float64 number. */
  scalars: Readonly<Record<string, number>>;
}

/** The optimizers of parameters that are under another optimizer than the base. */
export type OtherOptimizers = ReadonlyMap<string, OptimizerDefinition>;

export interface State {
  /** The base: the optimizer of all parameters that name no other. */
  readonly optimizer: OptimizerDefinition;
  /** The revision of each optimizer in the state, by the optimizer's name. */
  readonly revisions: ReadonlyMap<string, number>;
  readonly bytes: number;
  readonly parameters: Map<string, ParameterState>;
}

const corrupt = (expected: string, found: string): StepdError => StepdError.mismatch("STATE_CORRUPT", FIELD, expected, found);

export const emptyState = (optimizer: OptimizerDefinition, all: Iterable<OptimizerDefinition>): State => ({
  optimizer,
  revisions: new Map([...all].map(({ name, revision }) => [name, revision])),
  bytes: 0,
  parameters: new Map(),
});

/** One parameter's entries in the header of a state. */
export interface ParameterEntries {
  readonly optimizer: OptimizerDefinition;
  /** The offset of the step count. Undefined only while the header is being read. */
  step: number | undefined;
  readonly slots: Map<string, TensorInfo>;
  /** The offset of each scalar slot. */
  readonly scalars: Map<string, number>;
}

/** The header of a state, parsed and checked. */
export interface StateHeader extends Pick<State, "optimizer" | "revisions"> {
  readonly others: OtherOptimizers;
  readonly parameters: ReadonlyMap<string, ParameterEntries>;
}

/** Reads the header of a state. Throws STATE_CORRUPT. */
export function* readStateHeader({ metadata, tensors }: Safetensors): Task<StateHeader> {
  const format = metadata.get("format");
  if (format !== STATE_FORMAT) throw corrupt(`__metadata__.format ${STATE_FORMAT}`, format === undefined ? "none" : JSON.stringify(format));
  const optimizer = readOptimizer(metadata, "optimizer");
  const revisions = new Map([[optimizer.name, readRevision(metadata, "revision")]]);
  const others = new Map<string, OptimizerDefinition>();
  const slotsOf = new Map<OptimizerDefinition, { readonly known: readonly string[]; readonly scalarSlots: readonly string[] }>();
  const optimizerOf = (parameter: string): OptimizerDefinition => {
    const key = OPTIMIZER_KEY + parameter;
    const own = metadata.has(key) ? readOptimizer(metadata, key) : optimizer;
    if (own !== optimizer) others.set(parameter, own);
    if (!revisions.has(own.name)) revisions.set(own.name, readRevision(metadata, REVISION_KEY + own.name));
    if (!slotsOf.has(own)) slotsOf.set(own, { known: knownSlots(own), scalarSlots: scalarSlotsOf(own) });
    return own;
  };
  const parameters = new Map<string, ParameterEntries>();
  let hasCodes = false;
  for (const [index, info] of tensors.entries()) {
    if (index % ITEMS_PER_YIELD === ITEMS_PER_YIELD - 1) yield;
    const { name: key, dtype, shape, offset } = info;
    const slash = key.indexOf("/");
    const slot = key.slice(0, slash);
    const parameter = key.slice(slash + 1);
    const entries = parameters.get(parameter) ?? { optimizer: optimizerOf(parameter), step: undefined, slots: new Map(), scalars: new Map() };
    const { known, scalarSlots } = slotsOf.get(entries.optimizer) as { known: readonly string[]; scalarSlots: readonly string[] };
    if (slash < 0 || !known.includes(slot)) throw corrupt(`keys <slot>/<parameter> with a slot among ${known.join(", ")}`, JSON.stringify(key));
    parameters.set(parameter, entries);
    const requireScalar = (expected: string): void => {
      if (dtype !== expected || shape.length > 0) throw corrupt(`${key} to be an ${expected} scalar`, `${dtype} [${shape}]`);
    };
    if (slot === STEP) {
      requireScalar("I64");
      entries.step = offset;
    } else if (scalarSlots.includes(slot)) {
      requireScalar("F64");
      entries.scalars.set(slot, offset);
    } else {
      entries.slots.set(slot, info);
      hasCodes ||= isCode(dtype) || codesOf(slot) !== undefined;
    }
  }
  for (const [parameter, { step, slots }] of parameters) {
    if (step === undefined) throw corrupt(`a key step/${parameter} beside the slots of ${JSON.stringify(parameter)}`, "none");
    if (hasCodes) requireScales(parameter, slots);
  }
  return { optimizer, revisions, others, parameters };
}

/** The metadata of a state has these keys, with a parameter's or an optimizer's name at the end, for optimizers other than the base. */
export const OPTIMIZER_KEY = "optimizer/";
const REVISION_KEY = "revision/";

export const readOptimizer = (metadata: Safetensors["metadata"], key: string): OptimizerDefinition => {
  const name = metadata.get(key) ?? "";
  const optimizer = registry.get(name);
  if (!optimizer) throw corrupt(`__metadata__.${key} to be an optimizer of this server`, JSON.stringify(name));
  return optimizer;
};

const readRevision = (metadata: Safetensors["metadata"], key: string): number => {
  const revision = metadata.get(key) ?? "";
  if (!/^[1-9]\d{0,8}$/.test(revision)) throw corrupt(`__metadata__.${key} to be a whole number from 1`, JSON.stringify(revision));
  return Number(revision);
};

export const scalarSlotsOf = ({ scalarSlots = {} }: OptimizerDefinition): readonly string[] => Object.keys(scalarSlots);

/** Lists the slots that a state may have for a parameter of an optimizer. */
const knownSlots = (optimizer: OptimizerDefinition): readonly string[] => [
  ...optimizer.allSlots,
  ...Object.keys(optimizer.moments ?? {}).map(scaleOf),
  ...COMMON_SLOTS,
  ...scalarSlotsOf(optimizer),
  STEP,
];

/** Checks that each slot of codes has scales, and that all scales have codes. Throws STATE_CORRUPT. */
const requireScales = (parameter: string, slots: ReadonlyMap<string, TensorInfo>): void => {
  for (const [slot, { dtype, shape, elements }] of slots) {
    if (isCode(dtype)) {
      const scales = slots.get(scaleOf(slot));
      const expected = `${scaleOf(slot)}/${parameter} to be BF16 [${scaleCount(elements)}]`;
      if (scales?.dtype !== "BF16" || scales.shape.length !== 1 || scales.elements !== scaleCount(elements)) {
        throw corrupt(expected, scales ? `${scales.dtype} [${scales.shape}]` : "none");
      }
    }
    const codes = codesOf(slot);
    if (codes !== undefined && !isCode(slots.get(codes)?.dtype)) {
      throw corrupt(`${codes}/${parameter} in I8 or U8 beside its scales`, slots.get(codes)?.dtype ?? `none, and ${slot} in ${dtype} [${shape}]`);
    }
  }
};

/** A step count is an I64. It is read and written as two 32-bit halves. */
const HALF_RANGE = 2 ** 32;

/** Reads the step count of a parameter. Throws STATE_CORRUPT. */
export const readStep = (file: Buffer, offset: number, parameter: string): number => {
  const step = file.readUInt32LE(offset) + file.readInt32LE(offset + 4) * HALF_RANGE;
  if (step >= 0 && step <= Number.MAX_SAFE_INTEGER) return step;
  throw corrupt(`${STEP}/${parameter} from 0 to 2^53 - 1`, String(file.readBigInt64LE(offset)));
};

export const writeStep = (file: Buffer, offset: number, step: number): void => {
  file.writeUInt32LE(step % HALF_RANGE, offset);
  file.writeUInt32LE(Math.floor(step / HALF_RANGE), offset + 4);
};

/** Reads a state with its step counts and scalar slots. Throws STATE_CORRUPT. */
export function* readState(file: Buffer): Task<State> {
  const { optimizer, revisions, parameters: entries } = yield* readStateHeader(yield* readSafetensorsInTurns(file, FIELD, "STATE_CORRUPT"));
  const parameters = new Map<string, ParameterState>();
  for (const [name, { optimizer, step, slots, scalars }] of entries) {
    const tensors = [...slots].map(([slot, { offset, ...info }]) => [slot, { ...info, name, address: file.byteOffset + offset }] as const);
    const values = [...scalars].map(([slot, offset]) => [slot, file.readDoubleLE(offset)] as const);
    parameters.set(name, { optimizer, step: readStep(file, step as number, name), slots: new Map(tensors), scalars: Object.fromEntries(values) });
    if (parameters.size % ITEMS_PER_YIELD === 0) yield;
  }
  return { optimizer, revisions, bytes: file.length, parameters };
}

/** Lists the optimizers of a family by name. */
export const familyOf = ({ family }: OptimizerDefinition): readonly string[] =>
  [...registry.values()].filter((other) => other.family === family).map(({ name }) => name);

/**
 * Checks that each parameter's optimizer can continue from the state: its slots come from the same family, or it has none. Throws
 * STATE_MISMATCH, which names the parameter unless the whole state is of another optimizer.
 */
export function* requireContinuable(
  { parameters, revisions, others }: StateHeader,
  hasOneOptimizer: boolean,
  optimizerOf: (parameter: string) => OptimizerDefinition,
): Task<void> {
  // If all parameters have the same optimizer, then and now, the error concerns all of them.
  const isWhole = hasOneOptimizer && others.size === 0;
  let checked = 0;
  for (const [parameter, { optimizer: source, slots, scalars }] of parameters) {
    if (++checked % CHEAP_ITEMS_PER_YIELD === 0) yield;
    const optimizer = optimizerOf(parameter);
    const mismatch = (expected: string, found: string): StepdError =>
      StepdError.mismatch("STATE_MISMATCH", FIELD, expected, found, isWhole ? undefined : [parameter]);
    const hasSlots = scalars.size > 0 || [...slots.keys()].some((slot) => !COMMON_SLOTS.includes(slot));
    if (source.family !== optimizer.family && hasSlots) {
      const which = isWhole ? "" : ` for ${JSON.stringify(parameter)}, or none`;
      throw mismatch(`a state of ${familyOf(optimizer).join(", ")}${which}`, `a state of ${source.name}`);
    }
    const revision = revisions.get(source.name) as number;
    if (source === optimizer && revision > optimizer.revision) {
      throw mismatch(`a state of ${optimizer.name} revision ${optimizer.revision} or older`, `revision ${revision}`);
    }
  }
}

/** In Q8, this many consecutive elements share a scale. */
export const BLOCK_ELEMENTS = 64;

/** Q8 leaves smaller tensors in F32, because their few bytes are not worth the rounding errors. */
const MIN_CODED_ELEMENTS = 4096;

/** Returns the name of the slot that holds a Q8 slot's scales. */
export const scaleOf = (slot: string): string => `${slot}.scale`;

/** Returns the name of the slot to which a slot of scales belongs. Returns undefined for all other slots. */
export const codesOf = (slot: string): string | undefined => (slot.endsWith(".scale") ? slot.slice(0, -".scale".length) : undefined);

/** Returns the number of scales for a tensor. */
export const scaleCount = (elements: number): number => Math.ceil(elements / BLOCK_ELEMENTS);

/** Returns the dtype of a Q8 slot's codes. */
export const codeDtype = (kind: "signed" | "square"): string => (kind === "signed" ? "I8" : "U8");

export const isCode = (dtype: string | undefined): boolean => dtype === "I8" || dtype === "U8";

/** True if Q8 stores a moment with this number of elements as codes. */
export const isCoded = (elements: number): boolean => elements >= MIN_CODED_ELEMENTS;

/** Returns the dtype in which a parameter's slot is stored under `state_dtype`. */
export const storedDtype = (optimizer: OptimizerDefinition, stateDtype: unknown, param: { dtype: string; elements: number }, slot: string): string => {
  const kind = optimizer.moments?.[slot];
  if (kind && stateDtype === "BF16") return "BF16";
  return kind && stateDtype === "Q8" && isCoded(param.elements) ? codeDtype(kind) : slotDtype(param.dtype);
};

/** Returns the shape of a parameter's slot; undefined if the optimizer has no such slot for a parameter of this shape. */
export const slotShape = ({ shapes }: OptimizerDefinition, slot: string, shape: readonly number[]): readonly number[] | undefined =>
  COMMON_SLOTS.includes(slot) || !shapes?.slotShape ? shape : shapes.slotShape(slot, shape);

/** Lists the slots that a parameter needs, with their dtypes: also scales, the master copy of a BF16 or F16 parameter, and the parameter's average. */
export const requiredSlots = (
  optimizer: OptimizerDefinition,
  values: Values<Hyperparameters>,
  param: { readonly dtype: string; readonly shape: readonly number[]; readonly elements: number },
  masterWeights: boolean,
): readonly (readonly [slot: string, dtype: string])[] => [
  ...optimizer.slots(values).flatMap((slot): [string, string][] => {
    if (!slotShape(optimizer, slot, param.shape)) return [];
    const dtype = storedDtype(optimizer, values["state_dtype"], param, slot);
    return isCode(dtype)
      ? [
          [slot, dtype],
          [scaleOf(slot), "BF16"],
        ]
      : [[slot, dtype]];
  }),
  ...(masterWeights && slotDtype(param.dtype) !== param.dtype ? [[MASTER_PARAM, "F32"] as const] : []),
  ...(emaDecay(values) === undefined ? [] : [[EMA, slotDtype(param.dtype)] as const]),
];

/** Returns the decay of the parameters' average; undefined if there is no average. */
export const emaDecay = ({ ema }: Readonly<Record<string, unknown>>): number | undefined => (ema as { readonly decay: number } | null | undefined)?.decay;

/** Returns the dtype of slots and arithmetic: F64 for F64 parameters, else F32. */
export const slotDtype = (param: string): string => (param === "F64" ? "F64" : "F32");

/** Encodes a step count (I64) or a scalar slot (F64). */
export const scalarBytes = (value: number, dtype: "I64" | "F64"): Buffer => {
  const bytes = Buffer.allocUnsafe(SCALAR_BYTES);
  if (dtype === "I64") bytes.writeBigInt64LE(BigInt(value));
  else bytes.writeDoubleLE(value);
  return bytes;
};

/** Writes the header of a state file. The entries must be in canonical order. */
export function* stateHeader(
  { optimizer, others, revisions }: Pick<StateHeader, "optimizer" | "others" | "revisions">,
  ordered: readonly TensorDescription[],
): Task<Buffer> {
  const revisionOf = ({ name }: OptimizerDefinition): string => String(revisions.get(name));
  const metadata: Record<string, string> = { format: STATE_FORMAT, optimizer: optimizer.name, revision: revisionOf(optimizer) };
  let written = 0;
  for (const [parameter, other] of others) {
    metadata[OPTIMIZER_KEY + parameter] = other.name;
    metadata[REVISION_KEY + other.name] = revisionOf(other);
    if (++written % CHEAP_ITEMS_PER_YIELD === 0) yield;
  }
  return yield* writeHeaderInTurns(metadata, ordered);
}

/** Writes the header of a state file with the current revisions. `others` may contain parameters without entries, which are left out. */
export function* newStateHeader(optimizer: OptimizerDefinition, others: OtherOptimizers, ordered: readonly TensorDescription[]): Task<Buffer> {
  const present = new Map<string, OptimizerDefinition>();
  if (others.size > 0) {
    for (const [index, { name: key }] of ordered.entries()) {
      if (index % CHEAP_ITEMS_PER_YIELD === CHEAP_ITEMS_PER_YIELD - 1) yield;
      const parameter = key.slice(key.indexOf("/") + 1);
      const other = others.get(parameter);
      if (other) present.set(parameter, other);
    }
  }
  const revisions = new Map([optimizer, ...new Set(present.values())].map(({ name, revision }) => [name, revision]));
  return yield* stateHeader({ optimizer, others: present, revisions }, ordered);
}

/** An entry of a state file. `content` is a scalar's bytes or a slot's address in the arena. */
export interface StateEntry extends TensorDescription {
  readonly content: Buffer | number;
}

/** Writes a state as a canonical file. */
export function* writeState({ optimizer: base, parameters }: Pick<State, "optimizer" | "parameters">, lease: Lease): Task<Parts> {
  const entries: StateEntry[] = [];
  const others = new Map<string, OptimizerDefinition>();
  for (const [name, { optimizer, step, slots, scalars }] of parameters) {
    if (entries.length % ITEMS_PER_YIELD < 2) yield;
    if (optimizer !== base) others.set(name, optimizer);
    entries.push({ name: `${STEP}/${name}`, dtype: "I64", shape: [], content: scalarBytes(step, "I64") });
    for (const slot of scalarSlotsOf(optimizer)) {
      const value = scalars[slot];
      if (value !== undefined) entries.push({ name: `${slot}/${name}`, dtype: "F64", shape: [], content: scalarBytes(value, "F64") });
    }
    for (const [slot, { dtype, shape, address }] of slots) entries.push({ name: `${slot}/${name}`, dtype, shape, content: address });
  }
  const ordered = yield* sorted(entries, compareCanonical);
  return yield* writeEntries(yield* newStateHeader(base, others, ordered), ordered, lease);
}

/** Pieces below this size are copied into one buffer, because sending each by itself takes longer. */
const MIN_VIEW_BYTES = 1024;

/** A buffer of small pieces ends when it reaches this size. */
const COPY_BUFFER_BYTES = 65536;

/** Writes a file from its header and its entries, in the order of the header. */
export function* writeEntries(header: Buffer, ordered: readonly StateEntry[], lease: Lease): Task<Parts> {
  const pieces: Uint8Array[] = [];
  let small: Uint8Array[] = [];
  let smallBytes = 0;
  const flush = (): void => {
    if (small.length > 0) pieces.push(Buffer.concat(small));
    small = [];
    smallBytes = 0;
  };
  const append = (piece: Uint8Array): void => {
    if (piece.length < MIN_VIEW_BYTES) {
      small.push(piece);
      smallBytes += piece.length;
      if (smallBytes >= COPY_BUFFER_BYTES) flush();
    } else {
      flush();
      pieces.push(piece);
    }
  };
  append(header);
  // Adjacent slots in the arena become one piece.
  let start = 0;
  let end = 0;
  const endRun = (): void => {
    if (end > start) append(lease.view(start, end - start));
    start = 0;
    end = 0;
  };
  for (const [index, { content, dtype, shape }] of ordered.entries()) {
    if (index % ITEMS_PER_YIELD === ITEMS_PER_YIELD - 1) yield;
    if (typeof content !== "number") {
      endRun();
      append(content);
      continue;
    }
    if (content !== end) {
      endRun();
      start = content;
    }
    end = content + elementsOf(shape) * (bytesOf(dtype) as number);
  }
  endRun();
  flush();
  return new Parts(pieces);
}
