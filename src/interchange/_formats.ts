/** Describes the foreign state formats: their keys, slot names and step counts. */
import { describe, StepdError } from "../errors/errors.ts";
import type { Convention } from "../generated/wire.gen.ts";
import { type OptimizerDefinition, registry } from "../optimizers/registry.ts";

export type { Convention } from "../generated/wire.gen.ts";

/** A state format other than stepd's own. */
export type ForeignFormat = Exclude<Convention["format"], "stepd">;

/** A sentence names at most this many tensors. */
const MAX_NAMED_TENSORS = 8;

/** The names of qhoptim's bias-correction weights: first for exp_avg, then for exp_avg_sq. */
export const WEIGHTS = ["beta1_weight", "beta2_weight"] as const;

/** Describes how a format stores the state of an optimizer. */
export interface StorageLayout {
  /** Maps stepd's slot names to the format's. The format does not store other slots. */
  readonly slots: ReadonlyMap<string, string>;
  /** Maps each scalar of a parameter to the dtypes that a reader accepts. Exports use the first dtype. */
  readonly scalars: Readonly<Record<string, readonly string[]>>;
  /** True if a file has one step count for all parameters. */
  readonly isCountShared: boolean;
  /** True if the file contains exp_avg and exp_avg_sq divided by 1 - beta^t. */
  readonly isCorrected: boolean;
  /** The slots that the file contains with the opposite sign. */
  readonly negated: readonly string[];
}

const sameNames = (slots: readonly string[]): StorageLayout["slots"] => new Map(slots.map((slot) => [slot, slot]));

/** Returns the layout of an optimizer's state in each format, or undefined if the format has no corresponding optimizer. */
const layouts: Readonly<Record<ForeignFormat, (optimizer: OptimizerDefinition) => Partial<StorageLayout> | undefined>> = {
  torch: ({ hasNoStepInTorch, hasDoubleScalars, allSlots, scalarSlots = {} }) => ({
    slots: sameNames(allSlots),
    scalars: {
      ...(!hasNoStepInTorch && { step: ["F32", "F64", "I64"] }),
      ...Object.fromEntries(Object.keys(scalarSlots).map((slot) => [slot, hasDoubleScalars ? ["F64", "F32"] : ["F32", "F64"]])),
    },
  }),
  qhoptim: ({ family }) => {
    if (family === "adam")
      return { slots: sameNames(["exp_avg", "exp_avg_sq"]), scalars: Object.fromEntries(WEIGHTS.map((name) => [name, ["F64"]])), isCorrected: true };
    return family === "qhm" || family === "sgd" ? { slots: sameNames(["momentum_buffer"]) } : undefined;
  },
  optax: ({ family }) => {
    const shared = { isCountShared: true };
    // max_exp_avg_sq is missing, because optax stores the maximum of the corrected moment.
    if (family === "adam") return { ...shared, slots: new Map(Object.entries({ exp_avg: "mu", exp_avg_sq: "nu" })) };
    if (family === "yogi" || family === "adopt") return { ...shared, slots: new Map(Object.entries({ exp_avg: "mu", exp_avg_sq: "nu" })) };
    if (family === "adabelief") return { ...shared, slots: new Map(Object.entries({ exp_avg: "mu", exp_avg_var: "nu" })) };
    if (family === "adan")
      return { ...shared, slots: new Map(Object.entries({ exp_avg: "m", exp_avg_diff: "v", exp_avg_sq: "n", neg_pre_grad: "g" })), negated: ["neg_pre_grad"] };
    if (family === "ademamix") return { ...shared, slots: new Map(Object.entries({ exp_avg: "m1", exp_avg_slow: "m2", exp_avg_sq: "nu" })) };
    if (family === "signum") return { ...shared, slots: new Map([["momentum_buffer", "ema"]]) };
    if (family === "lion") return { ...shared, slots: new Map([["exp_avg", "mu"]]) };
    if (family === "sgd" || family === "lars")
      return { ...shared, slots: new Map([["momentum_buffer", "trace"]]), negated: family === "lars" ? ["momentum_buffer"] : [] };
    return undefined;
  },
};

/** Returns the layout of an optimizer's state in a format. Throws STATE_MISMATCH if there is none; `field` is `/from` or `/to`. */
export const storageLayoutOf = (format: ForeignFormat, optimizer: OptimizerDefinition, field: string): StorageLayout => {
  const layout = layouts[format](optimizer);
  if (layout) return { slots: new Map(), scalars: {}, isCountShared: false, isCorrected: false, negated: [], ...layout };
  const names = [...registry.values()].filter((other) => layouts[format](other)).map(({ name }) => name);
  throw StepdError.mismatch("STATE_MISMATCH", `${field}/format`, `another format than ${format}, which holds states of ${names.join(", ")}`, optimizer.name);
};

/** The key of the step count that all parameters of an optax file share. */
export const COUNT = "count";

/** Lists the convention fields that each format uses, for reading (`from`) and for writing (`to`). */
const FIELDS: Readonly<Record<"from" | "to", Readonly<Record<Convention["format"], readonly string[]>>>> = {
  from: { stepd: [], torch: ["optimizer", "names", "step"], qhoptim: ["optimizer", "names", "betas", "step"], optax: ["optimizer", "step"] },
  to: { stepd: [], torch: ["names"], qhoptim: ["names", "betas"], optax: [] },
};

/** Throws INVALID_PARAMS for a field that the format does not use, and for a duplicate name. */
export const requireUsable = (convention: Convention, side: "from" | "to"): void => {
  const { format, names = [] } = convention;
  const unused = Object.keys(convention).find((key) => key !== "format" && !FIELDS[side][format].includes(key));
  if (unused !== undefined) {
    const value = convention[unused as keyof Convention];
    throw StepdError.mismatch(
      "INVALID_PARAMS",
      `/${side}/${unused}`,
      `no value where ${side === "from" ? "the given" : "the new"} format is ${format}`,
      describe(value),
    );
  }
  const first = new Map<string, number>();
  for (const [index, name] of names.entries()) {
    const before = first.get(name);
    if (before !== undefined)
      throw StepdError.mismatch("INVALID_PARAMS", `/${side}/names/${index}`, "another name at each index", `${describe(name)}, as at ${before}`);
    first.set(name, index);
  }
};

/** Returns the betas of a convention. Throws INVALID_PARAMS if they are missing. */
export const requireBetas = ({ betas }: Convention, field: string): readonly [number, number] => {
  if (betas) return betas as [number, number];
  throw StepdError.mismatch("INVALID_PARAMS", `${field}/betas`, "the betas of the run, because qhoptim keeps bias-corrected moments", "none");
};

interface EntryKey {
  readonly parameter: string;
  /** The slot's name in the foreign format. */
  readonly slot: string;
}

const PREFIX = "state.";

/** Parses a key. Returns undefined if the key does not have the form that `keyForm` describes. */
export const readKey = (key: string, { format, names }: Convention): EntryKey | undefined => {
  if (format === "optax") {
    const slash = key.indexOf("/");
    return slash < 0 ? undefined : { parameter: key.slice(slash + 1), slot: key.slice(0, slash) };
  }
  const dot = key.lastIndexOf(".");
  if (!key.startsWith(PREFIX) || dot < PREFIX.length) return undefined;
  const id = key.slice(PREFIX.length, dot);
  const slot = key.slice(dot + 1);
  if (!names) return { parameter: id, slot };
  if (!/^(0|[1-9]\d{0,14})$/.test(id)) return undefined;
  const parameter = names[Number(id)];
  if (parameter !== undefined) return { parameter, slot };
  throw StepdError.mismatch("STATE_MISMATCH", "/from/names", `a name for index ${id}, which the state has`, `${names.length} names`);
};

export const keyForm = ({ format, names }: Convention): string =>
  format === "optax" ? `<slot>/<parameter>, or ${COUNT},` : `state.<${names ? "index" : "parameter"}>.<slot>`;

/** Returns a function that builds a format's keys. The function throws for a parameter without an index. */
export const keyWriter = ({ format, names }: Convention): ((parameter: string, slot: string) => string) => {
  if (format === "optax") return (parameter, slot) => `${slot}/${parameter}`;
  const indexes = names && new Map(names.map((name, index) => [name, index]));
  return (parameter, slot) => {
    const id = indexes ? indexes.get(parameter) : parameter;
    if (id === undefined)
      throw StepdError.mismatch("STATE_MISMATCH", "/to/names", `the name of every parameter of the state`, `none that is ${describe(parameter)}`, [parameter]);
    return `${PREFIX}${id}.${slot}`;
  };
};

/** Lists the first few parameter names as a phrase. */
export const firstNames = (parameters: readonly string[]): string => {
  const rest = parameters.length - MAX_NAMED_TENSORS;
  return parameters.slice(0, MAX_NAMED_TENSORS).map(describe).join(", ") + (rest > 0 ? ` and ${rest} more` : "");
};
