/**
 * Reads files of torch.save: zip archives with a pickle and the tensors' bytes. No code of the pickle runs. The reader maps its names
 * to the few constructors below, and all other names to inert objects.
 */
import { BlobReader, configure, type Entry, type FileEntry, Uint8ArrayWriter, ZipReader } from "@zip.js/zip.js/lib/zip-core-native.js";
import { Parser } from "pickleparser";
import { listText } from "../common/format.ts";
import { BYTES, type Checkpoint, type DType, elementsIn, type Finding, type Group, type Tensor, Unreadable } from "./checkpoint.ts";
import { guessOptimizer } from "./safetensors.ts";
import { decodeNumbers } from "./values.ts";

// torch.save does not compress entries, so a worker would only copy them.
configure({ useWebWorkers: false });

/** Longer pickles are rejected. A pickle contains names and shapes, not tensors, so it is small. */
const MAX_PICKLE = 2 ** 28;

/** A tensor may repeat the elements of its storage (torch's expand), but only to this many bytes. */
const MAX_EXPANDED = 2 ** 26;

const STORAGES: Readonly<Record<string, DType>> = {
  FloatStorage: "F32",
  DoubleStorage: "F64",
  HalfStorage: "F16",
  BFloat16Storage: "BF16",
  LongStorage: "I64",
  IntStorage: "I32",
  ShortStorage: "I16",
  CharStorage: "I8",
  ByteStorage: "U8",
  BoolStorage: "BOOL",
};

/** Modules and functions that let a pickle run programs, open files or load code. */
const DANGEROUS = /^(os|posix|nt|subprocess|sys|runpy|importlib|socket|pty|shutil|ctypes|webbrowser|code|pickle|asyncio|multiprocessing|commands)(\.|$)/;
const DANGEROUS_BUILTINS = new Set(["eval", "exec", "compile", "open", "getattr", "setattr", "__import__", "input", "globals", "breakpoint"]);

/** Stands for an object of an unknown class. It has only the class's name. */
interface Inert {
  readonly inert: string;
}

const isInert = (value: unknown): value is Inert => typeof value === "object" && value !== null && "inert" in value;

interface Storage {
  readonly dtype: DType;
  readonly key: string;
  readonly elements: number;
}

/** A tensor's description in the pickle: a view of a storage. */
class PickledTensor {
  readonly storage: Storage;
  readonly offset: number;
  readonly shape: readonly number[];
  readonly strides: readonly number[];

  constructor(storage: Storage, offset: number, shape: readonly number[], strides: readonly number[]) {
    if (!isStorage(storage) || ![offset, ...shape, ...strides].every((value) => Number.isSafeInteger(value) && value >= 0) || shape.length !== strides.length)
      throw new Unreadable("bad-pickle", "The pickle has a tensor whose storage, shape or strides make no sense.");
    this.storage = storage;
    this.offset = offset;
    this.shape = shape;
    this.strides = strides;
  }
}

const isStorage = (value: unknown): value is Storage => typeof value === "object" && value !== null && "dtype" in value && "key" in value;

const dtypeMark = Symbol("dtype");

interface Names {
  /** Names that torch.load(weights_only=True) refuses. */
  readonly unknown: Set<string>;
  readonly dangerous: Set<string>;
}

const nameResolver = ({ unknown, dangerous }: Names) => ({
  resolve: (module: string, name: string): ((...values: never[]) => unknown) => {
    const full = `${module}.${name}`;
    if (module === "torch" && Object.hasOwn(STORAGES, name)) return Object.assign(() => undefined, { [dtypeMark]: STORAGES[name] });
    switch (full) {
      case "collections.OrderedDict":
      case "collections.defaultdict":
        return () => new Map();
      case "torch._utils._rebuild_tensor":
      case "torch._utils._rebuild_tensor_v2":
        return (storage: Storage | Inert, offset: number, shape: number[], strides: number[]) =>
          isInert(storage) ? storage : new PickledTensor(storage, offset, shape, strides);
      case "torch._utils._rebuild_parameter":
        return (data: unknown) => data;
      case "torch.Size":
        return (sizes: unknown) => sizes;
      case "torch.device":
        return (type: unknown) => type;
    }
    if (DANGEROUS.test(module) || (/^(builtins|__builtin__)$/.test(module) && DANGEROUS_BUILTINS.has(name))) dangerous.add(full);
    else if (!/^(torch\.(float|int|uint|bool|bfloat|half|double|long)\w*|builtins\.set|_codecs\.encode)$/.test(full)) unknown.add(full);
    // An arrow function would fail, because pickles also use names as constructors.
    return function (this: unknown): Inert {
      return { inert: full };
    };
  },
});

/** Reads a persistent id of torch: ("storage", class, key, device, elements). */
const storageOf = (pid: unknown): Storage | Inert => {
  const [kind, type, key, , elements] = Array.isArray(pid) ? (pid as unknown[]) : [];
  const dtype = typeof type === "function" ? (type as { [dtypeMark]?: DType })[dtypeMark] : undefined;
  // Storages of other dtypes, such as complex numbers, make inert tensors.
  if (kind === "storage" && typeof type === "function" && dtype === undefined) return (type as () => Inert)();
  if (kind !== "storage" || dtype === undefined || typeof key !== "string" || !Number.isSafeInteger(elements))
    throw new Unreadable("bad-pickle", "The pickle refers to data of a kind that torch.save does not write.");
  return { dtype, key, elements: elements as number };
};

type Dictionary = ReadonlyMap<unknown, unknown>;

const isDictionary = (value: unknown): value is Dictionary => value instanceof Map;

/** The search descends this many levels: trainers such as Lightning nest the optimizer's state in their own dictionaries. */
const MAX_DEPTH = 4;

/**
 * Finds the dictionaries for which a condition holds, and does not search within them. Each object is visited once: a small pickle may
 * refer to the same list millions of times.
 */
const findDictionaries = (root: unknown, isIt: (value: Dictionary) => boolean): readonly Dictionary[] => {
  const [found, seen]: [Dictionary[], Set<unknown>] = [[], new Set()];
  let level = [root];
  for (let depth = 0; depth <= MAX_DEPTH && level.length > 0; depth++) {
    const next = new Set<unknown>();
    for (const value of level) {
      seen.add(value);
      if (isDictionary(value) && isIt(value)) found.push(value);
      else for (const child of isDictionary(value) ? value.values() : Array.isArray(value) ? value : []) if (isContainer(child)) next.add(child);
    }
    level = [...next].filter((value) => !seen.has(value));
  }
  return found;
};

const isContainer = (value: unknown): boolean => isDictionary(value) || Array.isArray(value);

const isOptimizer = (value: Dictionary): boolean => isDictionary(value.get("state")) && Array.isArray(value.get("param_groups"));

/** True for a dictionary that contains tensors: the weights by name. */
const isWeights = (value: Dictionary): boolean => value.values().some((member) => member instanceof PickledTensor);

const isFile = (entry: Entry): entry is FileEntry => !entry.directory;

/** The entries of a zip archive. It caches the last entry's bytes, because tensors may share a storage. */
class Archive {
  readonly #entries = new Map<string, FileEntry>();
  readonly folder: string;
  /** The size of the whole file. */
  readonly #size: number;
  #last: { readonly key: string; readonly bytes: Uint8Array<ArrayBuffer> } | undefined;

  constructor(entries: readonly Entry[], size: number) {
    const files = entries.filter(isFile);
    const pickle = files.find(({ filename }) => /(^|\/)data\.pkl$/.test(filename));
    if (!pickle) throw new Unreadable("no-pickle", "The zip archive has no data.pkl, so torch.save did not write it.");
    this.#size = size;
    this.folder = pickle.filename.slice(0, -"data.pkl".length);
    for (const file of files) if (file.filename.startsWith(this.folder)) this.#entries.set(file.filename.slice(this.folder.length), file);
  }

  sizeOf(name: string): number | undefined {
    return this.#entries.get(name)?.uncompressedSize;
  }

  async bytes(name: string): Promise<Uint8Array<ArrayBuffer>> {
    if (this.#last?.key === name) return this.#last.bytes;
    const entry = this.#entries.get(name);
    if (!entry) throw new Unreadable("missing-data", `The archive lacks “${name}”, to which a tensor refers.`);
    const bytes = await this.#read(entry);
    this.#last = { key: name, bytes };
    return bytes;
  }

  /** Reads an entry. Refuses a compressed one, because a small file could become one that exceeds the memory. */
  async #read(entry: FileEntry): Promise<Uint8Array<ArrayBuffer>> {
    const { filename, compressionMethod, compressedSize, uncompressedSize } = entry;
    if (compressionMethod !== 0)
      throw new Unreadable(
        "compressed-entry",
        `The archive has “${filename}” compressed, as torch.save does not. Unpack the archive, and pack it with zip -0.`,
      );
    if (compressedSize !== uncompressedSize || compressedSize > this.#size)
      throw new Unreadable("damaged-archive", `“${filename}” of the archive claims a size that it cannot have. Copy or download the file again.`);
    try {
      return (await entry.getData(new Uint8ArrayWriter())) as Uint8Array<ArrayBuffer>;
    } catch (error) {
      throw new Unreadable("damaged-archive", `“${filename}” of the archive cannot be read: ${(error as Error).message}. Copy or download the file again.`);
    }
  }
}

const isContiguous = ({ shape, strides }: PickledTensor): boolean => {
  let expected = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    if (shape[axis] !== 1 && strides[axis] !== expected) return false;
    expected *= shape[axis] as number;
  }
  return true;
};

/** Copies a strided tensor's elements into row-major order. */
const gather = (source: Uint8Array, { offset, shape, strides }: PickledTensor, size: number): Uint8Array<ArrayBuffer> => {
  const count = elementsIn(shape);
  const result = new Uint8Array(count * size);
  const index = new Array<number>(shape.length).fill(0);
  let at = offset;
  for (let element = 0; element < count; element++) {
    result.set(source.subarray(at * size, (at + 1) * size), element * size);
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      at += strides[axis] as number;
      index[axis] = (index[axis] as number) + 1;
      if ((index[axis] as number) < (shape[axis] as number)) break;
      at -= (strides[axis] as number) * (shape[axis] as number);
      index[axis] = 0;
    }
  }
  return result;
};

const readTensor = async (archive: Archive, tensor: PickledTensor): Promise<Uint8Array<ArrayBuffer>> => {
  const { storage, offset, shape, strides } = tensor;
  const size = BYTES[storage.dtype];
  const bytes = await archive.bytes(`data/${storage.key}`);
  const count = elementsIn(shape);
  const last = count === 0 ? 0 : offset + shape.reduce((sum, length, axis) => sum + (length - 1) * (strides[axis] as number), 0) + 1;
  if (last * size > bytes.length)
    throw new Unreadable("missing-data", `A tensor of shape [${shape}] needs ${last * size} bytes of “data/${storage.key}”, which has ${bytes.length}.`);
  if (count * size > Math.max(bytes.length, MAX_EXPANDED))
    throw new Unreadable("bad-pickle", `A tensor of shape [${shape}] repeats the ${bytes.length} bytes of “data/${storage.key}” to ${count * size} bytes.`);
  return isContiguous(tensor) ? bytes.subarray(offset * size, (offset + count) * size) : gather(bytes, tensor, size);
};

/** Recognizes torch's optimizers by their hyperparameters. The first match decides. */
const OPTIMIZER_TESTS: readonly (readonly [optimizer: string, isIt: (values: Readonly<Record<string, unknown>>) => boolean])[] = [
  ["nadam", (values) => "momentum_decay" in values],
  ["adadelta", (values) => "rho" in values],
  ["adagrad", (values) => "lr_decay" in values],
  ["rmsprop", (values) => "centered" in values],
  ["qhadam", (values) => "nus" in values],
  ["sgd", (values) => "dampening" in values],
  ["adafactor", (values) => "beta2_decay" in values],
  ["muon", (values) => "ns_steps" in values],
  ["asgd", (values) => "lambd" in values],
  ["rprop", (values) => "etas" in values],
  ["radam", (values) => "betas" in values && "decoupled_weight_decay" in values && !("amsgrad" in values)],
  ["adamw", (values) => "betas" in values && values["decoupled_weight_decay"] === true && "amsgrad" in values],
  ["adam", (values) => "betas" in values && values["decoupled_weight_decay"] === false && "amsgrad" in values],
  ["adamw", (values) => "betas" in values && "amsgrad" in values],
];

const groupsOf = (value: readonly unknown[]): readonly Group[] =>
  value.filter(isDictionary).map((group) => {
    const values = Object.fromEntries([...group].filter(([name]) => name !== "params" && name !== "param_names")) as Group["values"];
    const [numbersOf, names] = [group.get("params"), group.get("param_names")];
    const parameters = (Array.isArray(numbersOf) ? numbersOf : []).map(String);
    return { parameters: Array.isArray(names) && names.length === parameters.length ? names.map(String) : parameters, values };
  });

/** Maps parameter numbers to names, if the file contains names. */
const namesOf = (value: readonly unknown[]): ReadonlyMap<string, string> => {
  const names = new Map<string, string>();
  for (const group of value.filter(isDictionary)) {
    const [keys, given] = [group.get("params"), group.get("param_names")];
    if (Array.isArray(keys) && Array.isArray(given)) for (const [index, key] of keys.entries()) names.set(String(key), String(given[index] ?? key));
  }
  return names;
};

const HINT = "Nothing of it has run here.";

const reportNames = ({ unknown, dangerous }: Names): readonly Finding[] => [
  ...(dangerous.size > 0
    ? [
        {
          code: "runs-code",
          level: "error",
          sentence: `The file runs code when Python loads it: it names ${listText([...dangerous])}. Do not load it with weights_only=False. ${HINT}`,
        } as const,
      ]
    : []),
  ...(unknown.size > 0
    ? [
        {
          code: "unknown-classes",
          level: "note",
          sentence: `The file has objects of ${listText([...unknown])}, which torch.load refuses by default (weights_only=True).`,
        } as const,
      ]
    : []),
];

export const readTorch = async (file: File): Promise<{ readonly checkpoint: Checkpoint; readonly findings: readonly Finding[] }> => {
  let archive: Archive;
  try {
    archive = new Archive(await new ZipReader(new BlobReader(file)).getEntries(), file.size);
  } catch (error) {
    if (error instanceof Unreadable) throw error;
    throw new Unreadable("truncated", "The file begins as a zip archive of torch.save, but its end is missing or damaged. Copy or download it again.");
  }
  if ((archive.sizeOf("data.pkl") ?? 0) > MAX_PICKLE) throw new Unreadable("bad-pickle", "The archive's pickle is too long to hold only names and shapes.");
  if (archive.sizeOf("byteorder") !== undefined && new TextDecoder().decode(await archive.bytes("byteorder")).trim() === "big")
    throw new Unreadable("big-endian", "The file was saved on a big-endian machine; load and save it again with torch on another.");
  const names: Names = { unknown: new Set(), dangerous: new Set() };
  const pickle = await archive.bytes("data.pkl");
  let root: unknown;
  try {
    const options = {
      nameResolver: nameResolver(names),
      persistentResolver: { resolve: storageOf as (pid: unknown) => unknown },
      unpicklingTypeOfDictionary: "Map" as const,
    };
    root = new Parser(options as never).parse(pickle);
  } catch (error) {
    if (error instanceof Unreadable) throw error;
    const [danger] = reportNames({ ...names, unknown: new Set() });
    throw new Unreadable(danger?.code ?? "bad-pickle", danger?.sentence ?? `The archive's pickle cannot be read: ${(error as Error).message}`);
  }
  const findings = [...reportNames(names)];
  const [optimizer, ...others] = findDictionaries(root, isOptimizer);
  const common = { file: file.name, size: file.size, container: "torch.save", metadata: {} } as const;
  const tensorOf = (slot: string, parameter: string, tensor: PickledTensor): Tensor => ({
    slot,
    parameter,
    dtype: tensor.storage.dtype,
    shape: tensor.shape,
    read: () => readTensor(archive, tensor),
  });
  if (!optimizer) {
    const weights = [...(findDictionaries(root, isWeights)[0] ?? new Map())].filter(
      (entry): entry is [unknown, PickledTensor] => entry[1] instanceof PickledTensor,
    );
    const [danger] = findings;
    if (weights.length === 0 && danger?.code === "runs-code") throw new Unreadable(danger.code, danger.sentence);
    if (weights.length === 0 && isInert(root))
      throw new Unreadable(
        "whole-object",
        `The file holds a whole Python object, “${root.inert}”, not its state_dict(). Load it where its class is installed, and save its state_dict().`,
      );
    if (weights.length === 0)
      throw new Unreadable("not-a-checkpoint", "The file of torch.save has neither an optimizer's state (state and param_groups) nor weights.");
    const tensors = weights.map(([name, tensor]) => tensorOf("", String(name), tensor));
    return { checkpoint: { ...common, format: "weights", optimizer: undefined, isOptimizerNamed: false, tensors, steps: new Map(), groups: [] }, findings };
  }
  const rawGroups = optimizer.get("param_groups") as readonly unknown[];
  const known = namesOf(rawGroups);
  // A learning rate may be a tensor, as with capturable=True.
  const plain = async (value: unknown): Promise<unknown> => {
    if (typeof value === "bigint") return Number(value);
    if (!(value instanceof PickledTensor) || elementsIn(value.shape) !== 1) return value;
    return decodeNumbers(await readTensor(archive, value), value.storage.dtype)[0];
  };
  const groups: Group[] = [];
  for (const { parameters, values } of groupsOf(rawGroups)) {
    const entries: [string, unknown][] = [];
    for (const [name, value] of Object.entries(values)) entries.push([name, await plain(value)]);
    groups.push({ parameters, values: Object.fromEntries(entries) });
  }
  if (others.length > 0)
    findings.push({
      code: "other-optimizers",
      level: "note",
      sentence: `The file has the states of ${others.length + 1} optimizers. This is the first of them.`,
    });
  const inert = new Map<string, string>();
  const steps = new Map<string, number>();
  const tensors: Tensor[] = [];
  for (const [key, slots] of optimizer.get("state") as Dictionary) {
    const parameter = known.get(String(key)) ?? String(key);
    if (!isDictionary(slots)) continue;
    for (const [slot, value] of slots) {
      if (slot === "step")
        steps.set(
          parameter,
          value instanceof PickledTensor ? (decodeNumbers(await readTensor(archive, value), value.storage.dtype)[0] ?? Number.NaN) : Number(value),
        );
      else if (value instanceof PickledTensor) tensors.push(tensorOf(String(slot), parameter, value));
      else if (isInert(value)) inert.set(String(slot), value.inert);
      else if (typeof value === "number") tensors.push(scalarTensor(String(slot), parameter, value));
    }
  }
  if (inert.size > 0)
    findings.push({
      code: "unread-slot",
      level: "warning",
      sentence: `The doctor cannot read the slot ${listText([...inert.keys()])}, whose values are of ${listText([...new Set(inert.values())])}.`,
    });
  const values = groups[0]?.values ?? {};
  const guess = OPTIMIZER_TESTS.find(([, isIt]) => isIt(values))?.[0] ?? guessOptimizer(tensors);
  const format = tensors.some(({ slot }) => slot === "beta1_weight") ? "qhoptim" : "torch";
  return { checkpoint: { ...common, format, optimizer: guess, isOptimizerNamed: false, tensors, steps, groups }, findings };
};

/** Converts a Python float, such as a slot of qhoptim, to a tensor with one element. */
const scalarTensor = (slot: string, parameter: string, value: number): Tensor => ({
  slot,
  parameter,
  dtype: "F64",
  shape: [],
  read: async () => new Uint8Array(Float64Array.of(value).buffer),
});
