/** Reads and writes safetensors files. The reader's errors name the rule that a file breaks. */
import { listText, bytesText as sizeText } from "../common/format.ts";
import { BYTES, type Checkpoint, type DType, elementsIn, type Format, type Tensor, Unreadable } from "./checkpoint.ts";
import { decodeNumbers } from "./values.ts";

/** The longest header that safetensors libraries accept. */
const MAX_HEADER = 100_000_000;
const LENGTH_BYTES = 8;

interface Entry {
  readonly key: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly begin: number;
  readonly end: number;
}

/** Finds the duplicate keys of a JSON object. JSON.parse silently keeps only the last of them. */
const duplicateKeys = (text: string): readonly string[] => {
  const [seen, twice] = [new Set<string>(), new Set<string>()];
  let depth = 0;
  for (const [token, colon] of text.matchAll(/"(?:[^"\\]|\\.)*"(\s*:)?|[{}[\]]/g)) {
    if (token === "{" || token === "[") depth++;
    else if (token === "}" || token === "]") depth--;
    else if (depth === 1 && colon !== undefined) {
      const key = token.slice(0, token.lastIndexOf('"') + 1);
      (seen.has(key) ? twice : seen).add(key);
    }
  }
  return [...twice].map((key) => JSON.parse(key) as string);
};

const isMetadata = (value: unknown): value is Readonly<Record<string, string>> =>
  typeof value === "object" && value !== null && Object.values(value).every((text) => typeof text === "string");

const isSize = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;

const parseEntry = (key: string, value: unknown): Entry => {
  const { dtype, shape, data_offsets: offsets } = (value ?? {}) as { dtype?: unknown; shape?: unknown; data_offsets?: unknown };
  if (typeof dtype !== "string" || !Object.hasOwn(BYTES, dtype))
    throw new Unreadable("unknown-dtype", `The tensor “${key}” has the dtype ${JSON.stringify(dtype)}, which no optimizer state has.`);
  if (!Array.isArray(shape) || !shape.every(isSize) || !Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isSize))
    throw new Unreadable("bad-header", `The header's entry of “${key}” lacks a shape or offsets that make sense.`);
  const [begin, end] = offsets as [number, number];
  return { key, dtype: dtype as DType, shape, begin, end };
};

const requireLayout = (entries: readonly Entry[], dataBytes: number): void => {
  for (const { key, dtype, shape, begin, end } of entries) {
    const expected = elementsIn(shape) * BYTES[dtype];
    if (end - begin !== expected)
      throw new Unreadable("wrong-byte-count", `“${key}” of shape [${shape}] and dtype ${dtype} takes ${expected} bytes, but its offsets give ${end - begin}.`);
  }
  const sorted = [...entries].sort((a, b) => a.begin - b.begin || a.end - b.end);
  let at = 0;
  let last = "the header";
  for (const { key, begin, end } of sorted) {
    if (begin < at) throw new Unreadable("overlap", `“${key}” and “${last}” overlap: two tensors share ${at - begin} bytes of the file.`);
    if (begin > at) throw new Unreadable("gap", `Between “${last}” and “${key}” there are ${begin - at} bytes that belong to no tensor.`);
    [at, last] = [end, key];
  }
  if (at > dataBytes)
    throw new Unreadable(
      "truncated",
      `The file is cut off: its tensors take ${sizeText(at)}, and ${sizeText(dataBytes)} are there. Copy or download it again.`,
    );
  if (at < dataBytes) throw new Unreadable("trailing-bytes", `After the last tensor there are ${dataBytes - at} bytes that belong to none.`);
};

/** Splits a tensor's key into slot and parameter. */
const splitKey = (key: string, format: Format): readonly [slot: string, parameter: string] => {
  if (format === "weights") return ["", key];
  if (format === "torch" || format === "qhoptim") {
    const dot = key.lastIndexOf(".");
    return [key.slice(dot + 1), key.slice("state.".length, dot)];
  }
  const slash = key.indexOf("/");
  return slash < 0 ? [key, ""] : [key.slice(0, slash), key.slice(slash + 1)];
};

const SLOT = /^(step|exp_avg|exp_avg_sq|max_exp_avg_sq|momentum_buffer|square_avg|grad_avg|acc_delta|sum|exp_inf|mu_product|master_param|beta[12]_weight)$/;

const formatOf = (keys: readonly string[], metadata: Readonly<Record<string, string>>): Format => {
  if (metadata["format"]?.startsWith("stepd.state/")) return "stepd";
  if (keys.length === 0) return "weights";
  if (keys.every((key) => key.startsWith("state.") && SLOT.test(splitKey(key, "torch")[0])))
    return keys.some((key) => key.endsWith(".beta1_weight")) ? "qhoptim" : "torch";
  if (keys.every((key) => key === "count" || /^(mu|nu|trace)\//.test(key))) return "optax";
  if (keys.every((key) => SLOT.test(splitKey(key, "stepd")[0]))) return "stepd";
  return "weights";
};

/** Maps optax's slot names to torch's. */
const OPTAX: Readonly<Record<string, string>> = { mu: "exp_avg", nu: "exp_avg_sq", trace: "momentum_buffer" };

/** The names of slots with scales end with this suffix. */
const SCALE = ".scale";
const codesOf = (slot: string, parameter: string): string => `${slot.slice(0, -SCALE.length)}/${parameter}`;

export const readSafetensors = async (file: File): Promise<Checkpoint> => {
  const prefix = new DataView(await file.slice(0, LENGTH_BYTES).arrayBuffer());
  if (prefix.byteLength < LENGTH_BYTES) throw new Unreadable("truncated", `The file has ${file.size} bytes, which is less than any safetensors file has.`);
  const length = Number(prefix.getBigUint64(0, true));
  if (length > MAX_HEADER)
    throw new Unreadable("not-a-checkpoint", "The file is neither a safetensors file nor one of torch.save: its first bytes fit neither.");
  if (length > file.size - LENGTH_BYTES)
    throw new Unreadable("truncated", `The file is cut off in its header: the header takes ${sizeText(length)}, the whole file has ${sizeText(file.size)}.`);
  let text: string;
  let header: unknown;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(await file.slice(LENGTH_BYTES, LENGTH_BYTES + length).arrayBuffer());
    header = JSON.parse(text);
  } catch {
    throw new Unreadable("bad-header", "The file's header is not JSON, so it is no safetensors file, or a damaged one.");
  }
  if (typeof header !== "object" || header === null || Array.isArray(header)) throw new Unreadable("bad-header", "The file's header is no JSON object.");
  const twice = duplicateKeys(text);
  if (twice.length > 0) throw new Unreadable("duplicate-key", `The header has ${listText(twice)} more than once; readers disagree which one counts.`);
  const { __metadata__: metadata = {}, ...rest } = header as Record<string, unknown>;
  if (!isMetadata(metadata)) throw new Unreadable("bad-header", "The header's __metadata__ is no object of texts.");
  const entries = Object.entries(rest).map(([key, value]) => parseEntry(key, value));
  const start = LENGTH_BYTES + length;
  requireLayout(entries, file.size - start);
  const format = formatOf(
    entries.map(({ key }) => key),
    metadata,
  );
  const read = async ({ begin, end }: Entry): Promise<Uint8Array<ArrayBuffer>> => new Uint8Array(await file.slice(start + begin, start + end).arrayBuffer());
  const steps = new Map<string, number>();
  const tensors: Tensor[] = [];
  let count: number | undefined;
  const byKey = new Map(entries.map((entry) => [entry.key, entry]));
  for (const entry of entries) {
    const [slot, parameter] = splitKey(entry.key, format);
    if (format !== "weights" && (slot === "step" || slot === "count")) {
      const step = decodeNumbers(await read(entry), entry.dtype)[0] ?? Number.NaN;
      if (slot === "count") count = step;
      else steps.set(parameter, step);
      continue;
    }
    if (format === "stepd" && slot.endsWith(SCALE) && byKey.has(codesOf(slot, parameter))) continue;
    const { dtype, shape } = entry;
    const scales = format === "stepd" ? byKey.get(`${slot}${SCALE}/${parameter}`) : undefined;
    tensors.push({
      slot: format === "optax" ? (OPTAX[slot] ?? slot) : slot,
      parameter,
      dtype,
      shape,
      read: () => read(entry),
      ...(scales && { readScales: () => read(scales) }),
    });
  }
  if (count !== undefined) for (const { parameter } of tensors) steps.set(parameter, count);
  const optimizer = metadata["optimizer"];
  const common = { file: file.name, size: file.size, container: "safetensors", format, metadata, tensors, steps, groups: [] } as const;
  return { ...common, optimizer: optimizer ?? guessOptimizer(tensors), isOptimizerNamed: optimizer !== undefined };
};

/** Guesses the optimizer from the slots. Several optimizers may have the same slots. */
export const guessOptimizer = (tensors: readonly Tensor[]): string | undefined => {
  const slots = new Set(tensors.map(({ slot }) => slot));
  if (slots.has("mu_product")) return "nadam";
  if (slots.has("exp_avg_sq")) return "adamw";
  if (slots.has("exp_inf")) return "adamax";
  if (slots.has("acc_delta")) return "adadelta";
  if (slots.has("square_avg")) return "rmsprop";
  if (slots.has("sum")) return "adagrad";
  if (slots.has("exp_avg")) return "lion";
  return slots.has("momentum_buffer") ? "sgd" : undefined;
};

/** Writes a safetensors file. */
export const writeSafetensors = (
  tensors: readonly { readonly key: string; readonly dtype: DType; readonly shape: readonly number[]; readonly bytes: Uint8Array }[],
): Uint8Array<ArrayBuffer> => {
  const header: Record<string, unknown> = {};
  let at = 0;
  for (const { key, dtype, shape, bytes } of tensors) {
    header[key] = { dtype, shape, data_offsets: [at, at + bytes.length] };
    at += bytes.length;
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  const padding = (LENGTH_BYTES - (text.length % LENGTH_BYTES)) % LENGTH_BYTES;
  const start = LENGTH_BYTES + text.length + padding;
  const file = new Uint8Array(start + at).fill(0x20, 0, start);
  new DataView(file.buffer).setBigUint64(0, BigInt(text.length + padding), true);
  file.set(text, LENGTH_BYTES);
  let position = start;
  for (const { bytes } of tensors) {
    file.set(bytes, position);
    position += bytes.length;
  }
  return file;
};
