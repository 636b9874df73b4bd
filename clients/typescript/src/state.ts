/** The state of an optimizer: a safetensors file that any language reads. */
import { compareUtf8, type FileTensor, fileOf, readFile, type Tensor, toTensor } from "./tensors.ts";

const FORMAT = "stepd.state/1";

/** Canonical order: all steps, then float64, then float32, each by the bytes of the key. */
const RANK: Readonly<Record<string, number>> = { I64: 0, F64: 1, F32: 2 };

const slotOf = (key: string): string => key.slice(0, key.indexOf("/"));
const parameterOf = (key: string): string => key.slice(key.indexOf("/") + 1);

export class State {
  /** The file. Store it as it is; the same bytes resume the run exactly. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly optimizer: string;
  readonly revision: number;
  /** Steps taken, by parameter. */
  readonly steps: Readonly<Record<string, number>>;
  readonly #entries: ReadonlyMap<string, FileTensor>;

  /** Takes a file's bytes, without a copy. Throws RangeError where they are no stepd state. */
  constructor(bytes: Uint8Array) {
    const { metadata, tensors } = readFile(bytes);
    const { format = "none", optimizer = "", revision = "" } = metadata;
    if (format !== FORMAT) throw new RangeError(`a state has the format ${FORMAT}, this file has ${format}`);
    this.bytes = bytes as Uint8Array<ArrayBuffer>;
    this.optimizer = optimizer;
    this.revision = Number(revision);
    this.steps = Object.fromEntries([...tensors].filter(([key]) => slotOf(key) === "step").map(([key, tensor]) => [parameterOf(key), stepOf(key, tensor)]));
    this.#entries = tensors;
  }

  /** One canonical file of the entries of several states of one optimizer: the server would write the same bytes. */
  static join(states: readonly State[]): State {
    const [first] = states;
    if (!first) throw new RangeError("there is no state to join");
    const other = states.find(({ optimizer, revision }) => optimizer !== first.optimizer || revision !== first.revision);
    if (other)
      throw new RangeError(`expected states of ${first.optimizer} revision ${first.revision}, found one of ${other.optimizer} revision ${other.revision}`);
    const entries = states.flatMap((state) => [...state.#entries]);
    entries.sort(([a, { dtype: left }], [b, { dtype: right }]) => (RANK[left] ?? 3) - (RANK[right] ?? 3) || compareUtf8(a, b));
    const twice = entries.find(([key], index) => key === entries[index + 1]?.[0]);
    if (twice) throw new RangeError(`${JSON.stringify(twice[0])} stands in two of the states`);
    return first.#with(entries);
  }

  /** The state of some parameters. */
  pick(parameters: ReadonlySet<string>): State {
    return this.#with([...this.#entries].filter(([key]) => parameters.has(parameterOf(key))));
  }

  #with(entries: readonly (readonly [string, FileTensor])[]): State {
    return new State(fileOf({ format: FORMAT, optimizer: this.optimizer, revision: String(this.revision) }, entries));
  }

  /** The names of all parameters that the state has anything of. */
  get parameters(): ReadonlySet<string> {
    return new Set([...this.#entries.keys()].map(parameterOf));
  }

  /** How many bytes of data the state has of each parameter. */
  get sizes(): ReadonlyMap<string, number> {
    const sizes = new Map<string, number>();
    for (const [key, { bytes }] of this.#entries) sizes.set(parameterOf(key), (sizes.get(parameterOf(key)) ?? 0) + bytes.length);
    return sizes;
  }

  /** The names of the slots, such as exp_avg. */
  get slotNames(): readonly string[] {
    return [...new Set([...this.#entries.keys()].map(slotOf))].filter((name) => name !== "step");
  }

  /** A slot of all parameters that have it. */
  slot(name: string): Record<string, Tensor> {
    const entries = [...this.#entries].filter(([key]) => slotOf(key) === name);
    return Object.fromEntries(entries.map(([key, tensor]) => [parameterOf(key), toTensor(tensor)]));
  }
}

const stepOf = (key: string, { dtype, shape, bytes }: FileTensor): number => {
  if (dtype !== "I64" || shape.length !== 0) throw new RangeError(`${JSON.stringify(key)}: expected an I64 scalar, found ${dtype} [${shape}]`);
  return Number(new DataView(bytes.buffer, bytes.byteOffset).getBigInt64(0, true));
};
