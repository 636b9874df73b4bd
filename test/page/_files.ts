/** Files for the page's doctor: a valid state, and files with one fault each. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Uint8ArrayReader, Uint8ArrayWriter, ZipWriter } from "@zip.js/zip.js";

export interface Values {
  readonly dtype: "F32" | "I64";
  readonly shape: readonly number[];
  readonly values: readonly number[];
}

export type State = Map<string, Values>;

const f32 = (shape: readonly number[], ...values: readonly number[]): Values => ({ dtype: "F32", shape, values });
const STEP: Values = { dtype: "I64", shape: [], values: [41] };

/** Returns an AdamW state of two parameters. */
export const state = (): State =>
  new Map([
    ["exp_avg/layer.bias", f32([3], 0.5, -0.25, 0.125)],
    ["exp_avg/layer.weight", f32([2, 3], -0.3, 0.2, -0.1, 0.4, 0.7, 0.9)],
    ["exp_avg_sq/layer.bias", f32([3], 0.25, 0.5, 1)],
    ["exp_avg_sq/layer.weight", f32([2, 3], 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)],
    ["step/layer.bias", STEP],
    ["step/layer.weight", STEP],
  ]);

interface Header {
  [key: string]: { dtype?: string; shape?: readonly number[]; data_offsets?: number[] } | Record<string, string>;
}

const bytesOf = ({ dtype, values }: Values): Buffer =>
  Buffer.from(dtype === "F32" ? Float32Array.from(values).buffer : BigInt64Array.from(values, BigInt).buffer);

const assemble = (header: string, data: Uint8Array): Buffer => {
  const prefix = Buffer.alloc(8);
  prefix.writeBigUInt64LE(BigInt(Buffer.byteLength(header)));
  return Buffer.concat([prefix, Buffer.from(header), data]);
};

/** Writes a state, after `change` has edited its header. */
const write = (tensors: State, optimizer = "adamw", change: (header: Header) => void = () => undefined): { readonly header: string; readonly data: Buffer } => {
  const header: Header = { __metadata__: { format: "stepd.state/1", optimizer, revision: "1" } };
  let at = 0;
  const parts = [...tensors].map(([key, tensor]) => {
    const bytes = bytesOf(tensor);
    header[key] = { dtype: tensor.dtype, shape: tensor.shape, data_offsets: [at, at + bytes.length] };
    at += bytes.length;
    return bytes;
  });
  change(header);
  return { header: JSON.stringify(header), data: Buffer.concat(parts) };
};

const named = (name: string, bytes: Uint8Array): File => new File([Uint8Array.from(bytes)], name);

export const stateFile = (tensors: State, optimizer?: string, change?: (header: Header) => void): File => {
  const { header, data } = write(tensors, optimizer, change);
  return named("state.safetensors", assemble(header, data));
};

export const torchBytes = (name: string): Buffer => readFileSync(join(import.meta.dirname, `torch/${name}.pt`));
export const torchFile = (name: string): File => named(`${name}.pt`, torchBytes(name));

const changed = (key: string, change: (tensor: Values) => Values): State => {
  const copy = state();
  copy.set(key, change(copy.get(key) as Values));
  return copy;
};

const without = (key: string): State => new Map([...state()].filter(([own]) => own !== key));

interface Broken {
  readonly code: string;
  readonly file: File;
  readonly sentence: RegExp;
}

/** Returns files with one fault each, and the doctor's name of that fault. */
export const brokenFiles = (): readonly Broken[] => {
  const { header, data } = write(state());
  const whole = assemble(header, data);
  const text = (content: string): File => named("state.safetensors", Buffer.from(content));
  const weights: State = new Map([["layer.weight", f32([2], 1, 2)]]);
  return [
    { code: "empty", file: text(""), sentence: /empty/ },
    { code: "git-lfs-pointer", file: text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"), sentence: /git lfs pull/ },
    { code: "web-page", file: text("<!doctype html><title>Sign in</title>"), sentence: /web page/ },
    { code: "json", file: text('{"weight_map": {}}'), sentence: /JSON/ },
    { code: "compressed", file: named("state.gz", Buffer.from([0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0])), sentence: /[Dd]ecompress/ },
    { code: "old-torch", file: torchFile("old"), sentence: /before version 1\.6/ },
    { code: "truncated", file: named("state.safetensors", whole.subarray(0, -16)), sentence: /cut off/ },
    { code: "trailing-bytes", file: named("state.safetensors", Buffer.concat([whole, Buffer.alloc(8)])), sentence: /8 bytes/ },
    { code: "bad-header", file: named("state.safetensors", assemble(`${header.slice(0, -1)}!`, data)), sentence: /not JSON/ },
    {
      code: "duplicate-key",
      file: named("state.safetensors", assemble(header.replace('"step/layer.weight"', '"step/layer.bias"'), data)),
      sentence: /“step\/layer\.bias” more than once/,
    },
    {
      code: "bad-header",
      file: stateFile(state(), "adamw", (entries) => Object.assign(entries, { __metadata__: { format: 1 } })),
      sentence: /__metadata__ is no object of texts/,
    },
    {
      code: "wrong-byte-count",
      file: stateFile(state(), "adamw", (entries) => Object.assign(entries["exp_avg/layer.bias"] ?? {}, { shape: [4] })),
      sentence: /“exp_avg\/layer\.bias” of shape \[4\] and dtype F32 takes 16 bytes/,
    },
    {
      code: "overlap",
      file: stateFile(state(), "adamw", (entries) => Object.assign(entries["exp_avg_sq/layer.bias"] ?? {}, { data_offsets: [0, 12] })),
      sentence: /share 12 bytes/,
    },
    {
      code: "unknown-version",
      file: stateFile(state(), "adamw", (entries) => Object.assign(entries["__metadata__"] ?? {}, { format: "stepd.state/9" })),
      sentence: /“stepd\.state\/9”/,
    },
    { code: "unknown-optimizer", file: stateFile(state(), "adamx"), sentence: /“adamx”/ },
    { code: "no-optimizer-state", file: stateFile(weights, "adamw", (entries) => delete entries["__metadata__"]), sentence: /weights and no optimizer state/ },
    { code: "no-optimizer-state", file: torchFile("weights"), sentence: /start(s)? its moments and its step count at zero/ },
    { code: "whole-object", file: torchFile("whole"), sentence: /“torch\.optim\.sgd\.SGD”, not its state_dict\(\)/ },
    { code: "missing-slot", file: stateFile(without("exp_avg_sq/layer.bias")), sentence: /“layer\.bias” lacks the slot exp_avg_sq/ },
    { code: "missing-step", file: stateFile(without("step/layer.bias")), sentence: /“layer\.bias” has slots but no step/ },
    {
      code: "shapes-disagree",
      file: stateFile(changed("exp_avg/layer.weight", (tensor) => ({ ...tensor, shape: [3, 2] }))),
      sentence: /exp_avg \[3, 2\], exp_avg_sq \[2, 3\]/,
    },
    {
      code: "steps-disagree",
      file: stateFile(changed("step/layer.bias", () => ({ ...STEP, values: [12] }))),
      sentence: /most is 41, but “layer\.bias” stands at 12/,
    },
    {
      code: "bad-step",
      file: stateFile(new Map([...state()].map(([key, tensor]) => [key, key.startsWith("step") ? { ...STEP, values: [-1] } : tensor]))),
      sentence: /no whole number/,
    },
    {
      code: "step-zero",
      file: stateFile(new Map([...state()].map(([key, tensor]) => [key, key.startsWith("step") ? { ...STEP, values: [0] } : tensor]))),
      sentence: /at step 0/,
    },
    {
      code: "non-finite",
      file: stateFile(changed("exp_avg/layer.bias", () => f32([3], 1, Number.NaN, Number.POSITIVE_INFINITY))),
      sentence: /2 values of “exp_avg of layer\.bias” are NaN or infinite/,
    },
    { code: "negative-square", file: stateFile(changed("exp_avg_sq/layer.bias", () => f32([3], 1, -1, 1))), sentence: /negative/ },
    { code: "zero-moments", file: stateFile(changed("exp_avg_sq/layer.weight", () => f32([2, 3], 0, 0, 0, 0, 0, 0))), sentence: /zero everywhere/ },
    {
      code: "foreign-slot",
      file: stateFile(new Map([...state(), ["square_avg/layer.bias", f32([3], 1, 1, 1)], ["square_avg/layer.weight", f32([2, 3], 1, 1, 1, 1, 1, 1)]])),
      sentence: /“square_avg”/,
    },
    { code: "truncated", file: named("adamw.pt", torchBytes("adamw").subarray(0, 1500)), sentence: /its end is missing/ },
  ];
};

/** Returns a file as torch.save writes it, with this pickle and one storage of a single float. */
export const torchArchive = async (pickle: Uint8Array, level = 0): Promise<File> => {
  const zip = new ZipWriter(new Uint8ArrayWriter(), { level, extendedTimestamp: false });
  await zip.add("archive/data.pkl", new Uint8ArrayReader(pickle));
  await zip.add("archive/data/0", new Uint8ArrayReader(new Uint8Array(Float32Array.of(0.5).buffer)));
  return named("archive.pt", await zip.close());
};

const text = (value: string): string => `X${String.fromCharCode(value.length)}\0\0\0${value}`;
const whole = (value: number): string => `J${Buffer.from(Int32Array.of(value).buffer).toString("latin1")}`;
const tuple = (...items: readonly string[]): string => `(${items.join("")}t`;
const dictionary = (...items: readonly (readonly [key: string, value: string])[]): string => `}(${items.flat().join("")}u`;

/** Writes a tensor of torch in the opcodes of a pickle. Its storage has one element. */
export const pickledTensor = (shape: readonly number[], storage = "FloatStorage"): string => {
  const id = tuple(text("storage"), `ctorch\n${storage}\n`, text("0"), text("cpu"), whole(1));
  const [sizes, strides] = [tuple(...shape.map(whole)), tuple(...shape.map(() => whole(0)))];
  return `ctorch._utils\n_rebuild_tensor_v2\n${tuple(`${id}Q`, whole(0), sizes, strides, "\x89", "ccollections\nOrderedDict\n)R")}R`;
};

export const pickleOf = (value: string): Buffer => Buffer.from(`\x80\x02${value}.`, "latin1");

export const pickledWeights = (tensor: string): Buffer => pickleOf(dictionary([text("w"), tensor]));

/** Writes the state of an optimizer for one parameter, "0", with this learning rate and first moment. */
export const pickledState = (lr: string, moment: string): Buffer =>
  pickleOf(
    dictionary(
      [text("state"), dictionary([whole(0), dictionary([text("step"), whole(3)], [text("exp_avg"), moment])])],
      [text("param_groups"), `](${dictionary([text("lr"), lr], [text("params"), `](${whole(0)}e`])}e`],
    ),
  );

/** Lists within lists: each contains the one below it 1,000 times, so the innermost is reached in 1000^6 ways. */
export const pickledBomb = (): Buffer =>
  pickleOf(
    Array.from({ length: 6 }, (_, at) => `](${at === 0 ? "K\0" : `h${String.fromCharCode(at - 1)}`.repeat(1000)}eq${String.fromCharCode(at)}`).join("0"),
  );
