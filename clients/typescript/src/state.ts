/** Holds the state of an optimizer: a safetensors file, readable from any language. */
import { SharedPlace } from "./shared.ts";
import { compareUtf8, dataStartOf, elementsOf, type FileTensor, fileOf, LENGTH_BYTES, readFile, type Tensor, toTensor } from "./tensors.ts";

const FORMAT = "stepd.state/1";

/**
 * Rank of each dtype in the canonical order of entries: I64 step counts, then the slots from wide to narrow. Equal ranks follow
 * the UTF-8 order of the key.
 */
const DTYPE_RANK: Readonly<Record<string, number>> = { I64: 0, F64: 1, F32: 2, BF16: 3, I8: 4, U8: 5 };

/** Keys of the metadata end with a parameter's or an optimizer's name, for optimizers other than the state's own. */
const OPTIMIZER_KEY = "optimizer/";
const REVISION_KEY = "revision/";

const withoutPrefix = (metadata: Readonly<Record<string, string>>, prefix: string): readonly (readonly [string, string])[] =>
  Object.entries(metadata).flatMap(([key, value]) => (key.startsWith(prefix) ? [[key.slice(prefix.length), value] as const] : []));

const slotOf = (key: string): string => key.slice(0, key.indexOf("/"));
const parameterOf = (key: string): string => key.slice(key.indexOf("/") + 1);

/** The parsed header and step counts. */
interface Contents {
  readonly optimizer: string;
  readonly revision: number;
  /** The optimizer of each parameter that is under another one than `optimizer`. */
  readonly optimizers: ReadonlyMap<string, string>;
  /** The revision of each optimizer. */
  readonly revisions: ReadonlyMap<string, number>;
  readonly steps: Readonly<Record<string, number>>;
  readonly entries: ReadonlyMap<string, FileTensor>;
}

/**
 * Returns the place of a state in a shared folder. Undefined if the state is in memory only, or if the caller has received its
 * bytes.
 */
export let placeOf: (state: State | Uint8Array) => SharedPlace | undefined;

/** First and last element (exclusive) of a slice. */
export type Range = readonly [begin: number, end: number];

/** The slices of a call, by parameter name. */
export type Slices = Readonly<Record<string, Range>>;

/** Returns whether all entries of a parameter have its shape, except for scalars and scales. */
export let isElementwise: (state: State, parameter: string, shape: readonly number[]) => boolean;

/** Returns the part of a state that belongs to a call with these parameters. */
export let partOfState: (state: State, names: ReadonlySet<string>, slices: Slices) => State;

/** Joins the states of all calls of a step, as State.join does. `shapes` are those of whole parameters. */
export let joinedState: (parts: readonly { readonly state: State; readonly slices: Slices }[], shapes: Readonly<Record<string, readonly number[]>>) => State;

/** Elements of a moment in 8 bits that share a scale. */
const BLOCK_ELEMENTS = 64;

const isScales = (key: string): boolean => slotOf(key).endsWith(".scale");

const blocksOf = (elements: number): number => Math.ceil(elements / BLOCK_ELEMENTS);

/** Returns the range of an entry's elements, from that of its parameter. */
const rangeIn = (key: string, [begin, end]: Range): Range => (isScales(key) ? [begin / BLOCK_ELEMENTS, blocksOf(end)] : [begin, end]);

/** Returns the slice that an entry of a state belongs to. Scalars stay whole. */
const sliceFor = (key: string, { shape }: FileTensor, slices: Slices): Range | undefined =>
  shape.length > 0 && Object.hasOwn(slices, parameterOf(key)) ? rangeIn(key, slices[parameterOf(key)] as Range) : undefined;

export class State {
  /** The bytes of the file. A file in a shared folder is read on demand; `#bytesRead` counts the bytes read so far. */
  readonly #file: Uint8Array<ArrayBuffer>;
  #bytesRead: number;
  /** The state's place in a shared folder. Undefined once a caller has received the bytes and could have changed them. */
  #place: SharedPlace | undefined;
  #contents: Contents | undefined;

  static {
    placeOf = (state) => (state instanceof State ? state.#place : undefined);
    isElementwise = (state, parameter, shape) =>
      [...state.#parsed().entries].every(([key, tensor]) => {
        if (parameterOf(key) !== parameter || tensor.shape.length === 0) return true;
        return String(tensor.shape) === String(isScales(key) ? [blocksOf(elementsOf(shape))] : shape);
      });
    partOfState = (state, names, slices) =>
      state.#pick(names, (key, tensor) => {
        const range = sliceFor(key, tensor, slices);
        if (!range) return tensor;
        const size = tensor.bytes.length / elementsOf(tensor.shape);
        return { dtype: tensor.dtype, shape: [range[1] - range[0]], bytes: tensor.bytes.subarray(range[0] * size, range[1] * size) };
      });
    joinedState = (parts, shapes) => {
      const whole = new Map<string, FileTensor>();
      return State.#join(
        parts.map(({ state }) => state),
        parts.flatMap(({ state, slices }) =>
          [...state.#readAll()].filter(([key, tensor]) => {
            const own = shapes[parameterOf(key)];
            if (!own || !Object.hasOwn(slices, parameterOf(key))) return true;
            const range = sliceFor(key, tensor, slices);
            // Every slice has the same step count and scalars.
            const shape = !range ? [] : isScales(key) ? [blocksOf(elementsOf(own))] : own;
            const size = tensor.bytes.length / elementsOf(tensor.shape);
            const entry = whole.get(key) ?? { dtype: tensor.dtype, shape, bytes: new Uint8Array(elementsOf(shape) * size) };
            whole.set(key, entry);
            entry.bytes.set(tensor.bytes, (range?.[0] ?? 0) * size);
            return false;
          }),
        ),
        whole,
      );
    };
  }

  /**
   * Wraps the file's bytes without a copy. Throws RangeError unless they are a stepd state. Only the client passes a place in
   * a shared folder, whose bytes are checked at the first use.
   */
  constructor(file: Uint8Array | SharedPlace) {
    if (!(file instanceof SharedPlace || file instanceof Uint8Array))
      throw new TypeError(`expected the bytes of a state in a Uint8Array, found ${(file as object | null)?.constructor?.name ?? String(file)}`);
    if (file instanceof SharedPlace) {
      this.#place = file;
      // Untouched memory costs nothing. Its size tells the garbage collector how much memory this state holds.
      this.#file = new Uint8Array(file.length);
      this.#bytesRead = 0;
    } else {
      this.#file = file as Uint8Array<ArrayBuffer>;
      this.#bytesRead = file.length;
      this.#contents = this.#parse();
    }
  }

  /** The file's bytes. Store them unchanged: the same bytes resume the run exactly. */
  get bytes(): Uint8Array<ArrayBuffer> {
    this.#readAll();
    this.#place = undefined;
    return this.#file;
  }

  get optimizer(): string {
    return this.#parsed().optimizer;
  }

  get revision(): number {
    return this.#parsed().revision;
  }

  /** The optimizer of each parameter that is under another one than `optimizer`. */
  get optimizers(): ReadonlyMap<string, string> {
    return this.#parsed().optimizers;
  }

  /** The number of steps taken, by parameter name. */
  get steps(): Readonly<Record<string, number>> {
    return this.#parsed().steps;
  }

  /** The largest number of steps that a parameter has taken. */
  get step(): number {
    return Object.values(this.steps).reduce((most, step) => Math.max(most, step), 0);
  }

  /**
   * Merges states of different parameters into one canonical file, with the bytes that the server would write. The first state's
   * optimizer becomes that of the result, and parameters under another optimizer keep theirs.
   */
  static join(states: readonly State[]): State {
    if (!Array.isArray(states) || !states.every((state) => state instanceof State)) throw new TypeError("states: expected a list of State");
    if (states.length === 0) throw new RangeError("there is no state to join");
    return State.#join(
      states,
      (states as readonly State[]).flatMap((state) => [...state.#readAll()]),
    );
  }

  /** Builds a state of the given entries, with the optimizers of all states. */
  static #join(states: readonly State[], some: readonly (readonly [string, FileTensor])[], more: Iterable<readonly [string, FileTensor]> = []): State {
    const [first] = states as readonly [State];
    const optimizers = new Map<string, string>();
    const revisions = new Map<string, number>();
    for (const state of states) {
      const parsed = state.#parsed();
      for (const [name, revision] of parsed.revisions) {
        const known = revisions.get(name) ?? revision;
        if (known !== revision) throw new RangeError(`expected states of ${name} revision ${known}, found one of ${name} revision ${revision}`);
        revisions.set(name, revision);
      }
      if (parsed.optimizer !== first.optimizer) for (const parameter of state.parameters) optimizers.set(parameter, parsed.optimizer);
      for (const [parameter, optimizer] of parsed.optimizers) optimizers.set(parameter, optimizer);
    }
    const entries = [...some, ...more];
    entries.sort(([a, { dtype: left }], [b, { dtype: right }]) => (DTYPE_RANK[left] ?? 6) - (DTYPE_RANK[right] ?? 6) || compareUtf8(a, b));
    const duplicate = entries.find(([key], index) => key === entries[index + 1]?.[0]);
    if (duplicate) throw new RangeError(`${JSON.stringify(duplicate[0])} stands in two of the states`);
    return first.#build(entries, optimizers, revisions);
  }

  /** Returns the part of the state that belongs to `parameters`. */
  pick(parameters: ReadonlySet<string>): State {
    if (!(parameters instanceof Set)) throw new TypeError("parameters: expected a Set of names");
    return this.#pick(parameters, (_, tensor) => tensor);
  }

  #pick(parameters: ReadonlySet<string>, change: (key: string, tensor: FileTensor) => FileTensor): State {
    const { optimizers, revisions } = this.#parsed();
    const entries = [...this.#readAll()].filter(([key]) => parameters.has(parameterOf(key)));
    return this.#build(
      entries.map(([key, tensor]) => [key, change(key, tensor)] as const),
      optimizers,
      revisions,
    );
  }

  /** Builds a state of this state's optimizer. `optimizers` may contain parameters without entries, which are left out. */
  #build(entries: readonly (readonly [string, FileTensor])[], optimizers: ReadonlyMap<string, string>, revisions: ReadonlyMap<string, number>): State {
    const metadata: Record<string, string> = { format: FORMAT, optimizer: this.optimizer, revision: String(this.revision) };
    for (const parameter of new Set(entries.map(([key]) => parameterOf(key)))) {
      const optimizer = optimizers.get(parameter) ?? this.optimizer;
      if (optimizer === this.optimizer) continue;
      metadata[OPTIMIZER_KEY + parameter] = optimizer;
      metadata[REVISION_KEY + optimizer] = String(revisions.get(optimizer));
    }
    const ordered = Object.fromEntries(Object.entries(metadata).sort(([a], [b]) => compareUtf8(a, b)));
    return new State(fileOf(ordered, entries));
  }

  /** Names of all parameters in the state. */
  get parameters(): ReadonlySet<string> {
    return new Set([...this.#parsed().entries.keys()].map(parameterOf));
  }

  /** The number of bytes of state data, by parameter name. */
  get sizes(): ReadonlyMap<string, number> {
    const sizes = new Map<string, number>();
    for (const [key, { bytes }] of this.#parsed().entries) sizes.set(parameterOf(key), (sizes.get(parameterOf(key)) ?? 0) + bytes.length);
    return sizes;
  }

  /** Names of the slots, such as exp_avg. */
  get slotNames(): readonly string[] {
    return [...new Set([...this.#parsed().entries.keys()].map(slotOf))].filter((name) => name !== "step");
  }

  /** Returns one slot of all parameters that have it. Throws RangeError for an unknown slot. */
  slot(name: string): Record<string, Tensor> {
    const entries = [...this.#readAll()].filter(([key]) => slotOf(key) === name);
    this.#place = undefined;
    if (entries.length === 0) {
      const names = this.slotNames.join(", ");
      throw new RangeError(`slot: expected ${names ? `one of ${names}` : "none, because the state has no slots"}, found ${JSON.stringify(name)}`);
    }
    return Object.fromEntries(entries.map(([key, tensor]) => [parameterOf(key), toTensor(tensor)]));
  }

  #parsed(): Contents {
    this.#contents ??= this.#parse();
    return this.#contents;
  }

  #parse(): Contents {
    this.#readTo(LENGTH_BYTES);
    this.#readTo(dataStartOf(this.#file));
    const { metadata, tensors } = readFile(this.#file);
    const { format = "none", optimizer = "", revision = "" } = metadata;
    if (format !== FORMAT) throw new RangeError(`a state has the format ${FORMAT}, this file has ${format}`);
    const steps = [...tensors].filter(([key]) => slotOf(key) === "step");
    this.#readTo(steps.reduce((end, [, { bytes }]) => Math.max(end, bytes.byteOffset - this.#file.byteOffset + bytes.length), 0));
    return {
      optimizer,
      revision: Number(revision),
      optimizers: new Map(withoutPrefix(metadata, OPTIMIZER_KEY)),
      revisions: new Map([...withoutPrefix(metadata, REVISION_KEY), [optimizer, revision] as const].map(([name, text]) => [name, Number(text)])),
      steps: Object.fromEntries(steps.map(([key, tensor]) => [parameterOf(key), stepOf(key, tensor)])),
      entries: tensors,
    };
  }

  /** Reads all bytes, and returns the entries. */
  #readAll(): ReadonlyMap<string, FileTensor> {
    this.#readTo(this.#file.length);
    return this.#parsed().entries;
  }

  #readTo(end: number): void {
    if (end <= this.#bytesRead) return;
    this.#place?.readSync(this.#file, this.#bytesRead, end);
    this.#bytesRead = end;
  }
}

const stepOf = (key: string, { dtype, shape, bytes }: FileTensor): number => {
  if (dtype !== "I64" || shape.length !== 0) throw new RangeError(`${JSON.stringify(key)}: expected an I64 scalar, found ${dtype} [${shape}]`);
  return Number(new DataView(bytes.buffer, bytes.byteOffset).getBigInt64(0, true));
};
