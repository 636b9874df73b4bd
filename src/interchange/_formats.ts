/** The formats that states come and go in beside stepd's own: their keys, the names of their slots, and what they count steps in. */
import { describe, StepdError } from "../errors/errors.ts";
import type { Convention } from "../generated/wire.gen.ts";
import { type OptimizerDefinition, registry } from "../optimizers/registry.ts";

export type { Convention } from "../generated/wire.gen.ts";

/** The format of a file that is not a state of stepd. */
export type Foreign = Exclude<Convention["format"], "stepd">;

/** How many tensors a sentence names. */
const NAMED_TENSORS = 8;

/** The weights by which qhoptim corrects exp_avg and exp_avg_sq. */
export const WEIGHTS = ["beta1_weight", "beta2_weight"] as const;

/** What a format holds of an optimizer. */
export interface Holding {
  /** Its name of each slot. A slot that is not here it does not hold. */
  readonly slots: ReadonlyMap<string, string>;
  /** Scalars of each parameter, with the dtypes that they are read in; written in the first. */
  readonly scalars: Readonly<Record<string, readonly string[]>>;
  /** Whether all of the file's parameters share one step. */
  readonly isCountShared: boolean;
  /** Whether exp_avg and exp_avg_sq are divided by 1 - beta^t. */
  readonly isCorrected: boolean;
  /** Whether momentum_buffer has the other sign. */
  readonly isNegated: boolean;
}

const same = (slots: readonly string[]): Holding["slots"] => new Map(slots.map((slot) => [slot, slot]));

/** What a format holds of an optimizer; undefined where it has nothing that corresponds. */
const holdings: Readonly<Record<Foreign, (optimizer: OptimizerDefinition) => Partial<Holding> | undefined>> = {
  torch: ({ isStepless, allSlots, scalarSlots = {} }) => ({
    slots: same(allSlots),
    scalars: {
      ...(!isStepless && { step: ["F32", "F64", "I64"] }),
      ...Object.fromEntries(Object.keys(scalarSlots).map((slot) => [slot, ["F32", "F64"]])),
    },
  }),
  qhoptim: ({ family }) => {
    if (family === "adam")
      return { slots: same(["exp_avg", "exp_avg_sq"]), scalars: Object.fromEntries(WEIGHTS.map((name) => [name, ["F64"]])), isCorrected: true };
    return family === "qhm" || family === "sgd" ? { slots: same(["momentum_buffer"]) } : undefined;
  },
  optax: ({ family }) => {
    const shared = { isCountShared: true };
    // Not max_exp_avg_sq: optax takes the maximum of the corrected moment.
    if (family === "adam") return { ...shared, slots: new Map(Object.entries({ exp_avg: "mu", exp_avg_sq: "nu" })) };
    if (family === "lion") return { ...shared, slots: new Map([["exp_avg", "mu"]]) };
    if (family === "sgd" || family === "lars") return { ...shared, slots: new Map([["momentum_buffer", "trace"]]), isNegated: family === "lars" };
    return undefined;
  },
};

/** Throws where the format has nothing that corresponds to the optimizer; `field` is its convention. */
export const holdingOf = (format: Foreign, optimizer: OptimizerDefinition, field: string): Holding => {
  const holding = holdings[format](optimizer);
  if (holding) return { slots: new Map(), scalars: {}, isCountShared: false, isCorrected: false, isNegated: false, ...holding };
  const names = [...registry.values()].filter((other) => holdings[format](other)).map(({ name }) => name);
  throw StepdError.mismatch("STATE_MISMATCH", `${field}/format`, `another format than ${format}, which holds states of ${names.join(", ")}`, optimizer.name);
};

/** The scalar that all parameters of an optax file share. */
export const COUNT = "count";

/** Fields of a convention by format, where the file is read and where it is written. */
const FIELDS: Readonly<Record<"from" | "to", Readonly<Record<Convention["format"], readonly string[]>>>> = {
  from: { stepd: [], torch: ["optimizer", "names", "step"], qhoptim: ["optimizer", "names", "betas", "step"], optax: ["optimizer", "step"] },
  to: { stepd: [], torch: ["names"], qhoptim: ["names", "betas"], optax: [] },
};

/** Throws INVALID_PARAMS for a field that its format has no use for, and for a name that stands twice. */
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

/** Betas that a format needs. Throws INVALID_PARAMS. */
export const betasOf = ({ betas }: Convention, field: string): readonly [number, number] => {
  if (betas) return betas as [number, number];
  throw StepdError.mismatch("INVALID_PARAMS", `${field}/betas`, "the betas of the run, because qhoptim keeps bias-corrected moments", "none");
};

interface Key {
  readonly parameter: string;
  /** In the name that the format has for it. */
  readonly slot: string;
}

const PREFIX = "state.";

/** Reads a key. Undefined where it has not the form that `keyForm` says. */
export const readKey = (key: string, { format, names }: Convention): Key | undefined => {
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

/** What writes the keys of a format. Throws where a parameter has no index. */
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

/** The first of some parameters, for a sentence. */
export const named = (parameters: readonly string[]): string => {
  const rest = parameters.length - NAMED_TENSORS;
  return parameters.slice(0, NAMED_TENSORS).map(describe).join(", ") + (rest > 0 ? ` and ${rest} more` : "");
};
