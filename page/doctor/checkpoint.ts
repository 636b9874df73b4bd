/** Types for the contents of a checkpoint, and for the doctor's findings. */

export type DType = "F64" | "F32" | "F16" | "BF16" | "I64" | "I32" | "I16" | "I8" | "U8" | "BOOL";

export const BYTES: Readonly<Record<DType, number>> = { F64: 8, F32: 4, F16: 2, BF16: 2, I64: 8, I32: 4, I16: 2, I8: 1, U8: 1, BOOL: 1 };

export interface Tensor {
  /** The name of the slot, such as exp_avg; empty for a weight. */
  readonly slot: string;
  readonly parameter: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** Reads the elements in row-major order, little-endian. */
  read(): Promise<Uint8Array<ArrayBuffer>>;
  /** Reads a Q8 tensor's scales: one BF16 number for each 64 elements. Absent for other tensors. */
  readonly readScales?: () => Promise<Uint8Array<ArrayBuffer>>;
}

/** In Q8, this many consecutive elements share a scale. */
export const Q8_BLOCK = 64;

/** Returns the dtype for display, which is Q8 for codes with scales. */
export const dtypeOf = ({ dtype, readScales }: Tensor): string => (readScales ? "Q8" : dtype);

export const bytesOf = ({ dtype, shape, readScales }: Tensor): number => {
  const elements = elementsIn(shape);
  return elements * BYTES[dtype] + (readScales ? Math.ceil(elements / Q8_BLOCK) * BYTES.BF16 : 0);
};

/** A parameter group of torch: its parameters and hyperparameters. */
export interface Group {
  readonly parameters: readonly string[];
  readonly values: Readonly<Record<string, unknown>>;
}

export type Format = "stepd" | "torch" | "qhoptim" | "optax" | "weights";

export interface Checkpoint {
  readonly file: string;
  readonly size: number;
  readonly container: "safetensors" | "torch.save";
  readonly format: Format;
  /** The optimizer that the file names, or that its groups and slots indicate. */
  readonly optimizer: string | undefined;
  readonly isOptimizerNamed: boolean;
  readonly metadata: Readonly<Record<string, string>>;
  readonly tensors: readonly Tensor[];
  /** The step count of each parameter. */
  readonly steps: ReadonlyMap<string, number>;
  readonly groups: readonly Group[];
}

export type Level = "error" | "warning" | "note";

/** A sentence about one file or a pair of files. `code` is its name for programs. */
export interface Finding {
  readonly code: string;
  readonly level: Level;
  readonly sentence: string;
}

/** Thrown for a file that the doctor cannot read. */
export class Unreadable extends Error {
  readonly code: string;

  constructor(code: string, sentence: string) {
    super(sentence);
    this.code = code;
  }
}

/** The server's definition of an optimizer: its name, its family and its slots. */
export interface Definition {
  readonly name: string;
  readonly family: string;
  readonly slots: { readonly default: readonly string[]; readonly all: readonly string[] };
}

export type Definitions = ReadonlyMap<string, Definition>;

export const elementsIn = (shape: readonly number[]): number => shape.reduce((product, size) => product * size, 1);

/** Lists the parameters' names in the order of the file. */
export const parametersOf = ({ tensors, steps, groups }: Checkpoint): readonly string[] => [
  ...new Set([...groups.flatMap(({ parameters }) => parameters), ...tensors.map(({ parameter }) => parameter), ...steps.keys()]),
];

/** Maps each parameter to its tensors by slot. */
export const tensorsByParameter = ({ tensors }: Checkpoint): ReadonlyMap<string, ReadonlyMap<string, Tensor>> => {
  const found = new Map<string, Map<string, Tensor>>();
  for (const tensor of tensors) {
    const slots = found.get(tensor.parameter) ?? new Map<string, Tensor>();
    found.set(tensor.parameter, slots.set(tensor.slot, tensor));
  }
  return found;
};
