/** The state of an optimizer: a safetensors file that any language reads. */
import { SharedPlace } from "./shared.ts";
import { compareUtf8, dataStartOf, type FileTensor, fileOf, LENGTH_BYTES, readFile, type Tensor, toTensor } from "./tensors.ts";

const FORMAT = "stepd.state/1";

/** Canonical order: all steps, then float64, then float32, each by the bytes of the key. */
const RANK: Readonly<Record<string, number>> = { I64: 0, F64: 1, F32: 2 };

const slotOf = (key: string): string => key.slice(0, key.indexOf("/"));
const parameterOf = (key: string): string => key.slice(key.indexOf("/") + 1);

/** What a file says. */
interface Contents {
  readonly optimizer: string;
  readonly revision: number;
  readonly steps: Readonly<Record<string, number>>;
  readonly entries: ReadonlyMap<string, FileTensor>;
}

/** Where a state stands in a shared folder, if its bytes were not given out. */
export let placeOf: (state: State | Uint8Array) => SharedPlace | undefined;

export class State {
  /** The file. That of one in a shared folder is read as it is looked at: the first `#read` bytes are there. */
  readonly #file: Uint8Array<ArrayBuffer>;
  #read: number;
  /** While nobody else has the bytes, and so nobody can have changed them. */
  #place: SharedPlace | undefined;
  #contents: Contents | undefined;

  static {
    placeOf = (state) => (state instanceof State ? state.#place : undefined);
  }

  /**
   * Takes a file's bytes, without a copy. Throws RangeError where they are no stepd state; for a place in a shared folder,
   * which only the client gives, when it is looked at.
   */
  constructor(file: Uint8Array | SharedPlace) {
    if (!(file instanceof SharedPlace || file instanceof Uint8Array))
      throw new TypeError(`expected the bytes of a state in a Uint8Array, found ${(file as object | null)?.constructor?.name ?? String(file)}`);
    if (file instanceof SharedPlace) {
      this.#place = file;
      // Memory that nobody has touched costs nothing, and tells the garbage collector how much hangs on this state.
      this.#file = new Uint8Array(file.length);
      this.#read = 0;
    } else {
      this.#file = file as Uint8Array<ArrayBuffer>;
      this.#read = file.length;
      this.#contents = this.#parse();
    }
  }

  /** The file. Store it as it is; the same bytes resume the run exactly. */
  get bytes(): Uint8Array<ArrayBuffer> {
    this.#fill();
    this.#place = undefined;
    return this.#file;
  }

  get optimizer(): string {
    return this.#look().optimizer;
  }

  get revision(): number {
    return this.#look().revision;
  }

  /** Steps taken, by parameter. */
  get steps(): Readonly<Record<string, number>> {
    return this.#look().steps;
  }

  /** One canonical file of the entries of several states of one optimizer: the server would write the same bytes. */
  static join(states: readonly State[]): State {
    if (!Array.isArray(states) || !states.every((state) => state instanceof State)) throw new TypeError("states: expected a list of State");
    const [first] = states as readonly State[];
    if (!first) throw new RangeError("there is no state to join");
    const other = states.find(({ optimizer, revision }) => optimizer !== first.optimizer || revision !== first.revision);
    if (other)
      throw new RangeError(`expected states of ${first.optimizer} revision ${first.revision}, found one of ${other.optimizer} revision ${other.revision}`);
    const entries = states.flatMap((state) => [...state.#fill()]);
    entries.sort(([a, { dtype: left }], [b, { dtype: right }]) => (RANK[left] ?? 3) - (RANK[right] ?? 3) || compareUtf8(a, b));
    const twice = entries.find(([key], index) => key === entries[index + 1]?.[0]);
    if (twice) throw new RangeError(`${JSON.stringify(twice[0])} stands in two of the states`);
    return first.#with(entries);
  }

  /** The state of some parameters. */
  pick(parameters: ReadonlySet<string>): State {
    if (!(parameters instanceof Set)) throw new TypeError("parameters: expected a Set of names");
    return this.#with([...this.#fill()].filter(([key]) => parameters.has(parameterOf(key))));
  }

  #with(entries: readonly (readonly [string, FileTensor])[]): State {
    return new State(fileOf({ format: FORMAT, optimizer: this.optimizer, revision: String(this.revision) }, entries));
  }

  /** The names of all parameters that the state has anything of. */
  get parameters(): ReadonlySet<string> {
    return new Set([...this.#look().entries.keys()].map(parameterOf));
  }

  /** How many bytes of data the state has of each parameter. */
  get sizes(): ReadonlyMap<string, number> {
    const sizes = new Map<string, number>();
    for (const [key, { bytes }] of this.#look().entries) sizes.set(parameterOf(key), (sizes.get(parameterOf(key)) ?? 0) + bytes.length);
    return sizes;
  }

  /** The names of the slots, such as exp_avg. */
  get slotNames(): readonly string[] {
    return [...new Set([...this.#look().entries.keys()].map(slotOf))].filter((name) => name !== "step");
  }

  /** A slot of all parameters that have it. Throws RangeError for one that the state does not have. */
  slot(name: string): Record<string, Tensor> {
    const entries = [...this.#fill()].filter(([key]) => slotOf(key) === name);
    this.#place = undefined;
    if (entries.length === 0) {
      const names = this.slotNames.join(", ");
      throw new RangeError(`slot: expected ${names ? `one of ${names}` : "none, because the state has no slots"}, found ${JSON.stringify(name)}`);
    }
    return Object.fromEntries(entries.map(([key, tensor]) => [parameterOf(key), toTensor(tensor)]));
  }

  #look(): Contents {
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
      steps: Object.fromEntries(steps.map(([key, tensor]) => [parameterOf(key), stepOf(key, tensor)])),
      entries: tensors,
    };
  }

  /** The entries, with all their bytes. */
  #fill(): ReadonlyMap<string, FileTensor> {
    this.#readTo(this.#file.length);
    return this.#look().entries;
  }

  #readTo(end: number): void {
    if (end <= this.#read) return;
    this.#place?.readSync(this.#file, this.#read, end);
    this.#read = end;
  }
}

const stepOf = (key: string, { dtype, shape, bytes }: FileTensor): number => {
  if (dtype !== "I64" || shape.length !== 0) throw new RangeError(`${JSON.stringify(key)}: expected an I64 scalar, found ${dtype} [${shape}]`);
  return Number(new DataView(bytes.buffer, bytes.byteOffset).getBigInt64(0, true));
};
