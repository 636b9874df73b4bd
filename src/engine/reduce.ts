/**
 * Combines the updates of several clients into one pseudo-gradient, for optimizer.reduce. Each tensor is combined by itself, element
 * by element, in the order of the updates. So the bits depend neither on workers nor on sharding. No input is overwritten.
 */
import type { Lease } from "../arena/arena.ts";
import { bytesOf } from "../codec/dtype.ts";
import type { Parts } from "../codec/parts.ts";
import { compareCanonical, compareUtf8, readSafetensorsInTurns, type TensorDescription, type TensorInfo, writeHeaderInTurns } from "../codec/safetensors.ts";
import { CHEAP_ITEMS_PER_YIELD, ITEMS_PER_YIELD, inTurns, mapped, type Run, sorted, type Task } from "../codec/turns.ts";
import { pointerEscape, StepdError } from "../errors/errors.ts";
import type { ReduceMethod, ReduceParams } from "../generated/wire.gen.ts";
import { type Pool, scratch } from "../pool/pool.ts";
import {
  absent,
  type Columns,
  fixed,
  GRADS,
  type KernelCall,
  NEW_SLOTS,
  type Operand,
  PARAMS,
  type QueueTime,
  Runner,
  STATE,
  SUM_BYTES,
  sumBytes,
  sumsAt,
  type Target,
  tensorAt,
  WORKSPACE,
} from "./runner.ts";
import { type StateEntry, scalarBytes, writeEntries } from "./state.ts";
import { encodeTensors, isSameShape, type ReplyTensors, readTensors, type TensorFile, withOffsets } from "./tensors.ts";

const SUM_FORMAT = "stepd.sum/1";

/** The keys of an accumulator's entries have these prefixes. */
const [SUM, WEIGHT, COUNT, DTYPE] = ["sum/", "weight/", "count/", "dtype/"] as const;

/** All updates together have at most this many tensors. */
const MAX_TENSORS = 2 ** 20;

/** The scales of an I8 tensor have its name with this suffix. */
const SCALE_SUFFIX = ".scale";

/** Updates may have these dtypes. The kernel receives a dtype as its index in this list. */
const DTYPES: readonly string[] = ["F32", "F64", "BF16", "F16", "I8"];

const FORMS: readonly string[] = ["params", "deltas", "gradients"];

/** The kernel reads a table of updates with entries of this size. */
export const TABLE_ENTRY_BYTES = 32;

/** A call without its tensors. */
export type ReduceOptions = Omit<ReduceParams, "params" | "updates" | "accumulator">;

export interface Update {
  readonly file: TensorFile;
  readonly weight: number;
}

/** The inputs of a call, loaded into the arena. */
export interface ReduceFiles {
  /** The JSON pointer of the reduction: empty, or /reduce in a step. */
  readonly prefix: string;
  readonly params: TensorFile | undefined;
  readonly updates: readonly Update[];
  readonly accumulator: Buffer | undefined;
}

export interface ReduceReport {
  readonly count: number;
  readonly weight: number;
  readonly dropped: readonly number[];
  readonly skipped: boolean;
}

/** The result of a call: the pseudo-gradient, or an accumulator for further calls. */
export interface Reduced {
  readonly grads: TensorFile | undefined;
  readonly accumulator: Parts | undefined;
  readonly report: ReduceReport;
  /** The number of combined elements in all updates. */
  readonly elements: number;
}

/** One update of a tensor. */
export interface TensorUpdate {
  readonly update: number;
  readonly dtype: string;
  readonly address: number;
  /** The address of an I8 tensor's scales. Each scale applies to `perScale` elements. */
  readonly scales: number;
  readonly perScale: number;
}

/** A tensor of the result, with its updates. */
export interface CombinedTensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly elements: number;
  readonly param: TensorInfo | undefined;
  /** The sum in the given accumulator, if it has one for this tensor. */
  earlier: { readonly offset: number; readonly weight: number; readonly count: number } | undefined;
  isWide: boolean;
  /** The tensor's updates, in the order of the call. */
  readonly parts: TensorUpdate[];
}

/**
 * Reads all headers and lists the tensors of the result, in the order of the names' UTF-8 bytes. `hint` names the option that allows
 * missing tensors. Throws INVALID_PARAMS, TENSOR_MISMATCH, TENSORS_CORRUPT, STATE_CORRUPT, STATE_MISMATCH and PAYLOAD_TOO_LARGE.
 */
export function* listTensors(
  { prefix, params: paramFile, updates, accumulator }: ReduceFiles,
  { form = "params", missing = "error" }: ReduceOptions,
  hint = ", or missing renormalize",
): Task<readonly CombinedTensor[]> {
  const byName = new Map<string, CombinedTensor>();
  const add = ({ name, shape, elements }: Pick<TensorInfo, "name" | "shape" | "elements">, param?: TensorInfo): CombinedTensor => {
    const combined: CombinedTensor = { name, shape, elements, param, earlier: undefined, isWide: param?.dtype === "F64", parts: [] };
    byName.set(name, combined);
    return combined;
  };
  if (paramFile) {
    for (const [index, info] of (yield* readTensors(paramFile, "/params")).tensors.entries()) {
      add(info, info);
      if (index % CHEAP_ITEMS_PER_YIELD === CHEAP_ITEMS_PER_YIELD - 1) yield;
    }
  } else if (form === "params")
    throw StepdError.mismatch("INVALID_PARAMS", "/params", "the parameters that the updates started from, because form is params", "none");
  if (accumulator) yield* readAccumulator(accumulator, `${prefix}/accumulator`, form, updates.length, paramFile !== undefined, byName, add);

  let total = 0;
  for (const [update, { file }] of updates.entries()) {
    const field = `${prefix}/updates/${update}/tensors`;
    const isFixed = paramFile !== undefined || (missing === "error" && byName.size > 0);
    const { tensors } = yield* readTensors(file, field, DTYPES);
    const scaleOf = scalesOf(tensors, field);
    for (const [index, info] of tensors.entries()) {
      if (index % ITEMS_PER_YIELD === ITEMS_PER_YIELD - 1) yield;
      const { name, shape, dtype, elements, offset } = info;
      if (scaleOf.names.has(name)) continue;
      const at = `${field}/${pointerEscape(name)}`;
      const combined = byName.get(name) ?? (isFixed ? undefined : add(info));
      if (!combined)
        throw StepdError.mismatch("TENSOR_MISMATCH", at, paramFile ? "the name of a parameter" : "a name that the updates before have", JSON.stringify(name), [
          name,
        ]);
      if (!isSameShape(shape, combined.shape)) throw StepdError.mismatch("TENSOR_MISMATCH", at, `shape [${combined.shape}]`, `[${shape}]`, [name]);
      const scale = dtype === "I8" ? scaleOf.scale(info) : undefined;
      if (!paramFile && dtype === "F64") combined.isWide = true;
      const perScale = scale && scale.shape.length > 0 ? elements / Math.max(scale.elements, 1) : elements;
      const address = file.bytes.byteOffset + offset;
      combined.parts.push({ update, dtype, address, scales: scale ? file.bytes.byteOffset + scale.offset : 0, perScale: Math.max(perScale, 1) });
    }
    total += tensors.length;
    if (total > MAX_TENSORS) throw StepdError.mismatch("PAYLOAD_TOO_LARGE", `${prefix}/updates`, `at most ${MAX_TENSORS} tensors in all updates`, `${total}`);
    if (missing === "error" && tensors.length - scaleOf.names.size < byName.size) yield* requireNoMissingTensor(byName, update, field, hint);
  }
  return yield* sorted([...byName.values()], (a, b) => compareUtf8(a.name, b.name));
}

/** Throws TENSOR_MISMATCH if an update lacks a tensor. The error names the first missing tensor. */
function* requireNoMissingTensor(byName: ReadonlyMap<string, CombinedTensor>, update: number, field: string, hint: string): Task<void> {
  let checked = 0;
  for (const { name, parts } of byName.values()) {
    if (++checked % CHEAP_ITEMS_PER_YIELD === 0) yield;
    if (parts.at(-1)?.update !== update) throw StepdError.mismatch("TENSOR_MISMATCH", `${field}/${pointerEscape(name)}`, `a tensor${hint}`, "none", [name]);
  }
}

/** Finds the scales of an update's I8 tensors. */
const scalesOf = (tensors: readonly TensorInfo[], field: string) => {
  const names = new Set(tensors.filter(({ dtype }) => dtype === "I8").map(({ name }) => name + SCALE_SUFFIX));
  const scales = new Map(names.size === 0 ? [] : tensors.filter(({ name }) => names.has(name)).map((info) => [info.name, info]));
  return {
    names: new Set(scales.keys()) as ReadonlySet<string>,
    /** Returns the scales of an I8 tensor. Throws TENSOR_MISMATCH or UNSUPPORTED_DTYPE. */
    scale: ({ name, shape }: TensorInfo): TensorInfo => {
      const at = `${field}/${pointerEscape(name + SCALE_SUFFIX)}`;
      const info = scales.get(name + SCALE_SUFFIX);
      if (!info) throw StepdError.mismatch("TENSOR_MISMATCH", at, "the scales of an I8 tensor", "none", [name]);
      if (info.dtype !== "F32") throw StepdError.mismatch("UNSUPPORTED_DTYPE", at, "dtype F32 for scales", info.dtype, [name]);
      const [rows] = shape;
      if (info.shape.length === 0 || (info.shape.length === 1 && info.shape[0] === rows)) return info;
      const expected = rows === undefined ? "shape []" : `shape [] or [${rows}]`;
      throw StepdError.mismatch("TENSOR_MISMATCH", at, `${expected} for scales of ${JSON.stringify(name)}`, `[${info.shape}]`, [name]);
    },
  };
};

/** Adds the tensors of an accumulator (format stepd.sum/1) to the list, before `added` updates. Throws STATE_CORRUPT and STATE_MISMATCH. */
function* readAccumulator(
  file: Buffer,
  field: string,
  form: string,
  added: number,
  hasParams: boolean,
  byName: ReadonlyMap<string, CombinedTensor>,
  add: (info: Pick<TensorInfo, "name" | "shape" | "elements">) => CombinedTensor,
): Task<void> {
  const corrupt = (expected: string, found: string): StepdError => StepdError.mismatch("STATE_CORRUPT", field, expected, found);
  const mismatch = (expected: string, found: string, name?: string): StepdError =>
    StepdError.mismatch("STATE_MISMATCH", field, expected, found, name === undefined ? undefined : [name]);
  const { metadata, tensors } = yield* readSafetensorsInTurns(file, field, "STATE_CORRUPT");
  const format = metadata.get("format");
  if (format !== SUM_FORMAT) throw corrupt(`__metadata__.format ${SUM_FORMAT}`, format === undefined ? "none" : JSON.stringify(format));
  if (metadata.get("form") !== form) throw mismatch(`a sum of ${form}`, `a sum of ${metadata.get("form") ?? "nothing"}`);
  const entries = new Map<string, { sum?: TensorInfo; weight?: number; count?: number }>();
  for (const [index, info] of tensors.entries()) {
    if (index % ITEMS_PER_YIELD === ITEMS_PER_YIELD - 1) yield;
    const { name: key, dtype, shape, offset } = info;
    const slash = key.indexOf("/");
    const [kind, name] = [key.slice(0, slash + 1), key.slice(slash + 1)];
    const entry = entries.get(name) ?? {};
    entries.set(name, entry);
    const requireScalar = (expected: string): void => {
      if (dtype !== expected || shape.length > 0) throw corrupt(`${key} to be an ${expected} scalar`, `${dtype} [${shape}]`);
    };
    if (kind === SUM) {
      if (dtype !== "F64") throw corrupt(`${key} in F64`, dtype);
      entry.sum = info;
    } else if (kind === WEIGHT) {
      requireScalar("F64");
      entry.weight = file.readDoubleLE(offset);
      if (!(entry.weight >= 0 && entry.weight < Number.POSITIVE_INFINITY)) throw corrupt(`${key} to be finite and at least 0`, String(entry.weight));
    } else if (kind === COUNT) {
      requireScalar("I64");
      entry.count = Number(file.readBigInt64LE(offset));
      const isCount = entry.count >= 0 && entry.count <= Number.MAX_SAFE_INTEGER - added;
      if (!isCount) throw corrupt(`${key} from 0 to 2^53 - ${1 + added}`, String(file.readBigInt64LE(offset)));
    } else throw corrupt(`keys ${SUM}<name>, ${WEIGHT}<name>, ${COUNT}<name>`, JSON.stringify(key));
  }
  let read = 0;
  for (const [name, { sum, weight, count }] of entries) {
    if (++read % ITEMS_PER_YIELD === 0) yield;
    if (!sum || weight === undefined || count === undefined) throw corrupt(`${SUM}, ${WEIGHT} and ${COUNT} of ${JSON.stringify(name)}`, "only some of them");
    const known = byName.get(name);
    if (!known && hasParams) throw mismatch("sums of tensors that params has", `a sum of ${JSON.stringify(name)}`, name);
    if (known && !isSameShape(known.shape, sum.shape)) throw mismatch(`${SUM}${name} of shape [${known.shape}]`, `[${sum.shape}]`, name);
    const combined = known ?? add({ name, shape: sum.shape, elements: sum.elements });
    combined.earlier = { offset: sum.offset, weight, count };
    if (!hasParams && metadata.get(`${DTYPE}${name}`) === "F64") combined.isWide = true;
  }
}

/** A tensor of the result, with only the updates that are not dropped. */
interface KeptUpdates {
  readonly combined: CombinedTensor;
  readonly parts: readonly TensorUpdate[];
  readonly weight: number;
  readonly count: number;
}

/** A target that covers a range of a tensor's elements. */
interface ReduceTarget extends Target {
  readonly calls: readonly KernelCall[];
  readonly parts: readonly TensorUpdate[];
  readonly columns: Columns;
}

/** The layout of a call: offsets of the outputs, and the ranges to compute. */
interface ReduceLayout {
  readonly tensors: readonly KeptUpdates[];
  /** The header of the pseudo-gradient's file; empty for plain tensors. */
  readonly header: Buffer;
  readonly grads: readonly TensorInfo[];
  readonly gradBytes: number;
  readonly sumBytes: number;
  readonly targets: readonly ReduceTarget[];
  readonly tables: readonly Table[];
  readonly workBytes: number;
}

// A unit and a job combine at most this many elements, so that other calls run in between.
const [MAX_UNIT_ELEMENTS, MAX_JOB_ELEMENTS] = [2 ** 25, 2 ** 28];

const MIN_RANGE_ELEMENTS = 64;

/** A target's `offsets` list its parameter, result, earlier sum, new sum and table at these indexes. */
const [PARAM_AT, OUT_AT, EARLIER_AT, KEPT_AT, TABLE_AT] = [0, 1, 2, 3, 4] as const;

const INDEX_STRIDE = 1;

const SCRATCH = fixed(scratch(0));

/** Estimates the comparisons of a merge-exchange sort of `count` elements. */
const estimateComparisons = (count: number): number => {
  const levels = Math.ceil(Math.log2(Math.max(count, 2)));
  return (count * levels * (levels + 1)) / 4;
};

class Reduction {
  readonly #options: ReduceOptions;
  readonly #files: ReduceFiles;
  readonly #combined: readonly CombinedTensor[];
  readonly #kernel: (name: string) => number;

  constructor(options: ReduceOptions, files: ReduceFiles, combined: readonly CombinedTensor[], kernel: (name: string) => number) {
    this.#options = options;
    this.#files = files;
    this.#combined = combined;
    this.#kernel = kernel;
  }

  get isFinished(): boolean {
    return this.#options.finish ?? true;
  }

  get isPlain(): boolean {
    return (this.#files.params ?? this.#files.updates[0]?.file)?.plain !== undefined;
  }

  /** Creates the layout without the dropped updates. Throws INVALID_PARAMS. */
  *layout(dropped: ReadonlySet<number>): Task<ReduceLayout> {
    const { isFinished, isPlain } = this;
    const all = yield* mapped(this.#combined, (combined) => keepUpdates(combined, dropped, this.#files.updates));
    const tensors = all.filter(({ count, weight }) => (isFinished ? weight > 0 : count > 0));
    const described = tensors.map(({ combined: { name, shape, isWide } }): TensorDescription => ({ name, shape, dtype: isWide ? "F64" : "F32" }));
    const ordered = isFinished ? yield* sorted(described, compareCanonical) : [];
    const header = isFinished && !isPlain ? yield* writeHeaderInTurns({}, ordered) : Buffer.alloc(0);
    const grads = yield* mapped(yield* withOffsets(ordered), (info) => ({ ...info, offset: header.length + info.offset }));
    const outOf = new Map<string, number>();
    for (const { name, offset } of grads) outOf.set(name, offset);
    const targets: ReduceTarget[] = [];
    const tables: Table[] = [];
    let kept = 0;
    let workBytes = 0;
    for (const [index, tensor] of tensors.entries()) {
      if (index % ITEMS_PER_YIELD === ITEMS_PER_YIELD - 1) yield;
      const { combined, parts } = tensor;
      const table = workBytes;
      tables.push({ offset: table, parts });
      workBytes += parts.length * TABLE_ENTRY_BYTES;
      for (const target of this.#ranges(tensor, outOf.get(combined.name) ?? 0, isFinished ? 0 : kept, table, workBytes)) {
        targets.push(target);
        workBytes += sumBytes(target.elements, target.columns.width);
        if (targets.length % ITEMS_PER_YIELD === 0) yield;
      }
      if (!isFinished) kept += combined.elements * SUM_BYTES;
    }
    const gradBytes = grads.reduce((end, { offset, bytes }) => Math.max(end, offset + bytes), header.length);
    return { tensors, header, grads, gradBytes, sumBytes: kept, targets, tables, workBytes };
  }

  /** Lists the ranges of one tensor as targets. `flags` is the offset of the first range's flags for non-finite values. */
  *#ranges(tensor: KeptUpdates, out: number, kept: number, table: number, flags: number): Generator<ReduceTarget> {
    const { combined, parts } = tensor;
    const { method = { name: "mean" }, form = "params" } = this.#options;
    const { isFinished } = this;
    const count = parts.length;
    const isMean = method.name === "mean";
    const cut = isMean ? 0 : trimmedCount(method, count, this.#files.prefix);
    const passes = isMean ? count + 1 : estimateComparisons(count) + 2 * count;
    const length = Math.max(MIN_RANGE_ELEMENTS, Math.floor(MAX_UNIT_ELEMENTS / passes / MIN_RANGE_ELEMENTS) * MIN_RANGE_ELEMENTS);
    const divisor = isMean ? (method.divisor ?? tensor.weight) : count - 2 * cut;
    const paramDtype = combined.param?.dtype ?? "F32";
    const scalars = [count, divisor, FORMS.indexOf(form), DTYPES.indexOf(paramDtype), combined.isWide ? 1 : 0, cut];
    const columns: Columns = { first: 0, width: isMean ? count + 1 : count };
    const kernel = this.#kernel(isMean ? "reduce_mean" : "reduce_sorted");
    const outputBytes = combined.isWide ? 8 : 4;
    const param = form === "params" ? tensorAt(PARAMS, PARAM_AT, paramDtype) : absent;
    const result = isFinished ? tensorAt(GRADS, OUT_AT, combined.isWide ? "F64" : "F32") : absent;
    const sums = isMean ? [combined.earlier ? tensorAt(STATE, EARLIER_AT, "F64") : absent, isFinished ? absent : tensorAt(NEW_SLOTS, KEPT_AT, "F64")] : [];
    let sumsOffset = flags;
    for (let start = 0; start < combined.elements; start += length) {
      const elements = Math.min(length, combined.elements - start);
      const operands = [tableAt, fixed({ address: 1 + start, stride: INDEX_STRIDE }), ...sums, param, result, sumsAt(columns), SCRATCH];
      yield {
        name: combined.name,
        elements,
        passes,
        offsets: [
          (combined.param?.offset ?? 0) + start * (bytesOf(paramDtype) as number),
          out + start * outputBytes,
          (combined.earlier?.offset ?? 0) + start * SUM_BYTES,
          kept + start * SUM_BYTES,
          table,
        ],
        sums: sumsOffset,
        calls: [{ kernel, operands, scalars: () => scalars }],
        parts,
        columns,
      };
      sumsOffset += sumBytes(elements, columns.width);
    }
  }
}

/** An operand that points to the table of a target's updates. */
const tableAt: Operand = ({ offsets }, bases) => ({ address: (bases[WORKSPACE] as number) + (offsets[TABLE_AT] as number), stride: 0 });

const keepUpdates = (combined: CombinedTensor, dropped: ReadonlySet<number>, updates: readonly Update[]): KeptUpdates => {
  const parts = dropped.size === 0 ? combined.parts : combined.parts.filter(({ update }) => !dropped.has(update));
  const weight = parts.reduce((sum, { update }) => sum + (updates[update] as Update).weight, combined.earlier?.weight ?? 0);
  return { combined, parts, weight, count: parts.length + (combined.earlier?.count ?? 0) };
};

/** Returns how many values a median or a trimmed mean removes at each end. Throws INVALID_PARAMS if none would remain. */
const trimmedCount = (method: Exclude<ReduceMethod, { name: "mean" }>, count: number, prefix: string): number => {
  if (method.name === "median") return Math.floor((count - 1) / 2);
  if (2 * method.cut < count) return method.cut;
  throw StepdError.mismatch("INVALID_PARAMS", `${prefix}/method/cut`, `less than half of ${count} updates`, String(method.cut));
};

/** Combines updates. docs/reduce.md describes the call. */
export const reduce = async (options: ReduceOptions, files: ReduceFiles, lease: Lease, pool: Pool, queueTime: QueueTime, run: Run): Promise<Reduced> => {
  requireCombinable(options, files);
  const { non_finite: nonFinite = "error", form = "params" } = options;
  const combined = await run(listTensors(files, options));
  const reduction = new Reduction(options, files, combined, (name) => pool.kernel(name));
  const dropped = new Set<number>();
  let layout = await run(reduction.layout(dropped));
  const alloc = (bytes: number): number => (bytes === 0 ? 0 : lease.alloc(bytes));
  const bases = [
    files.params?.bytes.byteOffset ?? 0,
    alloc(layout.gradBytes),
    files.accumulator?.byteOffset ?? 0,
    alloc(layout.sumBytes),
    0,
    alloc(layout.workBytes),
  ];
  const runner = new Runner(lease, pool, queueTime, bases);
  for (;;) {
    await inTurns(writeTables(layout.tables, files.updates, bases[WORKSPACE] as number, lease));
    for (const job of jobsOf(layout.targets)) await runner.run(job, ({ calls }) => calls, true);
    if (nonFinite === "propagate") break;
    const found = await run(nonFiniteUpdates(layout.targets, runner));
    if (found.size === 0) break;
    if (nonFinite === "error" || found.has(ACCUMULATOR)) throw nonFiniteError(found, files.prefix);
    for (const update of found.keys()) dropped.add(update);
    // The new layout has fewer updates, so it fits into the same memory.
    layout = await run(reduction.layout(dropped));
  }
  const { tensors, header, grads, gradBytes } = layout;
  const most = (value: (tensor: KeptUpdates) => number): number => tensors.reduce((largest, tensor) => Math.max(largest, value(tensor)), 0);
  const report = { count: most(({ count }) => count), weight: most(({ weight }) => weight), dropped: [...dropped].sort((a, b) => a - b) };
  const outputs = { report: { ...report, skipped: report.weight === 0 }, elements: elementsOf(layout) };
  if (!reduction.isFinished) return { grads: undefined, accumulator: await run(accumulatorOf(layout, form, bases[NEW_SLOTS] as number, lease)), ...outputs };
  const bytes = lease.view(bases[GRADS] as number, gradBytes);
  if (header.length > 0) bytes.fill(header, 0, header.length);
  return { grads: { bytes, plain: reduction.isPlain ? grads : undefined }, accumulator: undefined, ...outputs };
};

/** Throws INVALID_PARAMS for options that exclude each other. */
const requireCombinable = ({ method = { name: "mean" }, finish = true }: ReduceOptions, { prefix, updates, accumulator }: ReduceFiles): void => {
  if (method.name === "mean") return;
  const invalid = (field: string, expected: string, found: string): StepdError => StepdError.mismatch("INVALID_PARAMS", prefix + field, expected, found);
  if (accumulator) throw invalid("/accumulator", `none, because ${method.name} needs all updates in one call`, "an accumulator");
  if (!finish) throw invalid("/finish", `true, because ${method.name} needs all updates in one call`, "false");
  const index = updates.findIndex(({ weight }) => weight !== 1);
  if (index >= 0) throw invalid(`/updates/${index}/weight`, `1, because ${method.name} takes no weights`, String(updates[index]?.weight));
};

/** A kernel's table of updates. `offset` is relative to the work memory. */
export interface Table {
  readonly offset: number;
  readonly parts: readonly TensorUpdate[];
}

/** Writes the tables of updates that the kernels read. */
export function* writeTables(tables: readonly Table[], updates: readonly Pick<Update, "weight">[], base: number, lease: Lease): Task<void> {
  const { bytes } = lease;
  let written = 0;
  for (const { offset, parts } of tables) {
    for (const [index, { update, dtype, address, scales, perScale }] of parts.entries()) {
      if (++written % CHEAP_ITEMS_PER_YIELD === 0) yield;
      const at = base + offset + index * TABLE_ENTRY_BYTES;
      bytes.writeUInt32LE(address, at);
      bytes.writeUInt32LE(DTYPES.indexOf(dtype), at + 4);
      bytes.writeDoubleLE(updates[update]?.weight ?? 1, at + 8);
      bytes.writeUInt32LE(scales, at + 16);
      bytes.writeDoubleLE(perScale, at + 24);
    }
  }
}

/** Splits the targets into jobs of limited work. */
export function* jobsOf<T extends Target>(targets: readonly T[]): Generator<readonly T[]> {
  let first = 0;
  let work = 0;
  for (const [index, { elements, passes = 1 }] of targets.entries()) {
    if (work > 0 && work + elements * passes > MAX_JOB_ELEMENTS) {
      yield targets.slice(first, index);
      first = index;
      work = 0;
    }
    work += elements * passes;
  }
  if (first < targets.length) yield targets.slice(first);
}

/** The index that stands for the accumulator among the updates. */
const ACCUMULATOR = -1;

/** Maps the index of each update that is not finite, or ACCUMULATOR, to the names of its tensors with NaN or infinity. */
function* nonFiniteUpdates(targets: readonly ReduceTarget[], runner: Runner): Task<ReadonlyMap<number, ReadonlySet<string>>> {
  const found = new Map<number, Set<string>>();
  let checked = 0;
  for (const target of targets) {
    for (const [index, flag] of runner.total(target, target.columns).entries()) {
      if (++checked % CHEAP_ITEMS_PER_YIELD === 0) yield;
      if (flag === 0) continue;
      // A mean has one flag more, for the earlier sum.
      const update = target.parts[index]?.update ?? ACCUMULATOR;
      const names = found.get(update) ?? new Set();
      found.set(update, names.add(target.name));
    }
  }
  return found;
}

/** The error names at most this many tensors. */
const MAX_NAMED_TENSORS = 8;

const nonFiniteError = (found: ReadonlyMap<number, ReadonlySet<string>>, prefix: string): StepdError => {
  const update = [...found.keys()].reduce((least, index) => Math.min(least, index));
  const names = [...(found.get(update) ?? [])];
  const named = names.slice(0, MAX_NAMED_TENSORS).map((name) => JSON.stringify(name));
  const more = names.length > MAX_NAMED_TENSORS ? ` and ${names.length - MAX_NAMED_TENSORS} more tensors` : "";
  const others = found.size > 1 ? `, and in ${found.size - 1} more updates` : "";
  return StepdError.mismatch(
    "NON_FINITE_GRADIENT",
    update === ACCUMULATOR ? `${prefix}/accumulator` : `${prefix}/updates/${update}/tensors`,
    update === ACCUMULATOR ? "finite sums (or non_finite propagate)" : "finite values (or non_finite drop or propagate)",
    `NaN or infinity in ${named.join(", ")}${more}${others}`,
    names.slice(0, MAX_NAMED_TENSORS),
  );
};

const elementsOf = ({ tensors }: ReduceLayout): number => tensors.reduce((sum, { combined, parts }) => sum + combined.elements * parts.length, 0);

function* accumulatorOf({ tensors }: ReduceLayout, form: string, base: number, lease: Lease): Task<Parts> {
  const entries: StateEntry[] = [];
  const metadata: Record<string, string> = { format: SUM_FORMAT, form };
  let at = base;
  for (const [index, { combined, weight, count }] of tensors.entries()) {
    if (index % ITEMS_PER_YIELD === ITEMS_PER_YIELD - 1) yield;
    const { name, shape, elements, isWide } = combined;
    entries.push({ name: `${SUM}${name}`, dtype: "F64", shape, content: at });
    entries.push({ name: `${WEIGHT}${name}`, dtype: "F64", shape: [], content: scalarBytes(weight, "F64") });
    entries.push({ name: `${COUNT}${name}`, dtype: "I64", shape: [], content: scalarBytes(count, "I64") });
    if (isWide) metadata[`${DTYPE}${name}`] = "F64";
    at += elements * SUM_BYTES;
  }
  const ordered = yield* sorted(entries, compareCanonical);
  return yield* writeEntries(yield* writeHeaderInTurns(metadata, ordered), ordered, lease);
}

/** Encodes the pseudo-gradient in the form of the request's tensors. */
export const encodeGrads = ({ grads }: Reduced): ReplyTensors | Promise<ReplyTensors> | undefined => grads && encodeTensors(grads);
