/** The state of an optimizer: a safetensors file that any language reads. */
import { compareUtf8, type FileTensor, fileOf, readFile, type Tensor, toTensor } from "./tensors.ts";

/** Canonical order: all steps, then float64, then float32, each by the bytes of the key. */
const RANK: Readonly<Record<string, number>> = { I64: 0, F64: 1, F32: 2 };

const parameterOf = (key: string): string => key.slice(key.indexOf("/") + 1);

export class State {
  /** The file. Store it as it is; the same bytes resume the run exactly. */
  readonly bytes: Uint8Array;
  readonly optimizer: string;
  readonly revision: number;
  /** Steps taken, by parameter. */
  readonly steps: Readonly<Record<string, number>>;
  readonly #entries: ReadonlyMap<string, FileTensor>;

  /** Takes a file's bytes. Throws RangeError where they are no stepd state. */
  constructor(bytes: Uint8Array) {
    const { metadata, tensors } = readFile(bytes);
    if (metadata["format"] !== "stepd.state/1") throw new RangeError(`a state has the format stepd.state/1, this file has ${metadata["format"] ?? "none"}`);
    this.bytes = bytes;
    this.optimizer = metadata["optimizer"] ?? "";
    this.revision = Number(metadata["revision"]);
    this.steps = Object.fromEntries(
      [...tensors]
        .filter(([key]) => key.startsWith("step/"))
        .map(([key, { bytes: step }]) => [parameterOf(key), Number(new DataView(step.buffer, step.byteOffset).getBigInt64(0, true))]),
    );
    this.#entries = tensors;
  }

  /** One canonical file of the entries of several states of one optimizer: the server would write the same bytes. */
  static join(states: readonly State[]): State {
    const first = states[0];
    if (!first) throw new RangeError("there is no state to join");
    const entries = states.flatMap((state) => [...state.#entries]);
    entries.sort(([a, { dtype: left }], [b, { dtype: right }]) => (RANK[left] ?? 3) - (RANK[right] ?? 3) || compareUtf8(a, b));
    return new State(fileOf({ format: "stepd.state/1", optimizer: first.optimizer, revision: String(first.revision) }, entries));
  }

  /** The state of some parameters. */
  pick(parameters: ReadonlySet<string>): State {
    const entries = [...this.#entries].filter(([key]) => parameters.has(parameterOf(key)));
    return new State(fileOf({ format: "stepd.state/1", optimizer: this.optimizer, revision: String(this.revision) }, entries));
  }

  /** The names of the slots, such as exp_avg. */
  get slotNames(): readonly string[] {
    const names = [...this.#entries.keys()].map((key) => key.slice(0, key.indexOf("/")));
    return [...new Set(names)].filter((name) => name !== "step");
  }

  /** A slot of all parameters that have it. */
  slot(name: string): Record<string, Tensor> {
    const entries = [...this.#entries].filter(([key]) => key.startsWith(`${name}/`));
    return Object.fromEntries(entries.map(([key, tensor]) => [parameterOf(key), toTensor(tensor)]));
  }
}
