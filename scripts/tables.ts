/**
 * Writes the tables in docs/ that derive from code. `npm run generate` writes each table between two markers, and
 * test/repository/documentation.test.ts compares the tables.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { slug } from "github-slugger";
import { atOnce } from "../src/codec/turns.ts";
import { helpText } from "../src/config.ts";
import { estimate } from "../src/engine/estimate.ts";
import { errors } from "../src/errors/errors.ts";
import { type Hyperparameters, type OptimizerDefinition, registry, slotsPerElement } from "../src/optimizers/registry.ts";
import { methods as rpcMethods } from "../src/rpc/methods.ts";

const F32_BYTES = 4;

/** Escapes the text of a cell: an unescaped bar ends the cell, even in code. */
const escapeCell = (text: string): string => text.replaceAll("|", "\\|");

const inlineCode = (text: string): string => `\`${text}\``;

const markdownTable = (head: readonly string[], rows: readonly (readonly string[])[]): string =>
  [head, head.map(() => "---"), ...rows].map((row) => `| ${row.map(escapeCell).join(" | ")} |`).join("\n");

/** Converts "Kingma & Ba, 2015, https://..." to a Markdown link. */
const markdownLink = (reference: string): string => reference.replace(/^(.*), (https:\/\/\S+)$/, "[$1]($2)");

/** Returns the title of an optimizer's section. */
const sectionTitle = ({ title, name }: OptimizerDefinition): string => `${title}: ${inlineCode(name)}`;

const sectionLink = (definition: OptimizerDefinition): string => `[${inlineCode(definition.name)}](hyperparameters.md#${slug(sectionTitle(definition))})`;

const isPeer = (reference: string): boolean => /^peers?: /.test(reference);

const optimizerTable = (): string =>
  markdownTable(
    ["name", "source", "checked against"],
    [...registry.values()].map((definition) => [
      sectionLink(definition),
      definition.references
        .filter((reference) => !isPeer(reference))
        .map(markdownLink)
        .join("; "),
      definition.references
        .filter(isPeer)
        .map((reference) => reference.replace(/^peers?: /, ""))
        .join("; "),
    ]),
  );

/** Describes the defaults that depend on the machine. */
const MACHINE_DEFAULTS: Readonly<Record<string, string>> = {
  STEPD_WORKERS: "processors of the machine, or of a CPU quota",
  STEPD_ARENA_MIB: "half of the memory, at most 4096, less where a memory limit lacks the room",
  STEPD_MAX_JSON_MIB: "a part in 128 of the memory, at most 64",
};

const settingTable = (): string => {
  const rows = [...helpText().matchAll(/^ {2}(STEPD_\w+) +(.*?)(?: \(([^()]*)\))?$/gm)];
  return markdownTable(
    ["variable", "meaning", "default"],
    rows.map(([, name = "", meaning = "", initial]) => [
      inlineCode(name),
      meaning,
      MACHINE_DEFAULTS[name] ?? (initial === undefined ? "" : inlineCode(initial)),
    ]),
  );
};

const MIB = 2 ** 20;

/** The model sizes of the sizing table: a LoRA adapter, small and medium models, and a model near the size limit of a call. */
const SIZES = [1e6, 10e6, 100e6, 250e6];
const SETUPS: readonly (readonly [label: string, optimizer: "sgd" | "adamw", dtype: "F32" | "BF16", masterWeights: boolean])[] = [
  ["`sgd`, no momentum, F32", "sgd", "F32", false],
  ["`adamw`, `lamb`, F32", "adamw", "F32", false],
  ["`adamw`, BF16 with F32 master weights", "adamw", "BF16", true],
];

/** The table's transfer times are for this network rate in Gbit/s. */
const LINK_GBIT = 10;

/** A model is split into tensors of 4 Mi parameters, because a step can only be split between tensors. */
const TENSOR_ELEMENTS = 2 ** 22;

const sizingTable = (): string => {
  const capacity = 4096 * MIB;
  const mib = (bytes: number): string => (bytes / MIB).toFixed(0);
  const rows = SIZES.flatMap((parameters) =>
    SETUPS.map(([label, name, dtype, masterWeights]) => {
      const whole = Math.floor(parameters / TENSOR_ELEMENTS);
      const shapes = [...new Array<number>(whole).fill(TENSOR_ELEMENTS), parameters - whole * TENSOR_ELEMENTS];
      const tensors = Object.fromEntries(shapes.map((elements, index) => [`layer.${index}`, { shape: [elements], dtype }]));
      const call = { optimizer: { name }, tensors, grad_dtype: dtype, master_weights: masterWeights };
      const cost = atOnce(estimate(call, () => 0, capacity));
      const seconds = ((Math.max(cost.bytes_in, cost.bytes_out) * 8) / (LINK_GBIT * 1e9)).toPrecision(2);
      return [`${parameters / 1e6} M`, label, ...[cost.bytes_in, cost.bytes_out, cost.state_bytes, cost.arena_bytes].map(mib), String(cost.requests), seconds];
    }),
  );
  return markdownTable(["parameters", "optimizer and dtype", "in", "out", "state", "arena", "calls", `s at ${LINK_GBIT} Gbit/s`], rows);
};

const methodTable = (): string =>
  markdownTable(
    ["method", "REST", "does"],
    rpcMethods.map(({ name, rest, summary }) => [inlineCode(name), rest ? inlineCode(`${rest.verb} ${rest.path}`) : "", summary]),
  );

const errorTable = (): string =>
  markdownTable(
    ["name", "code", "HTTP status", "meaning"],
    Object.entries(errors).map(([name, { code: number, status, title }]) => [inlineCode(name), String(number), String(status), title]),
  );

/** Returns a description of the values that a hyperparameter accepts. */
const rangeText = (schema: Hyperparameters[string]): string => {
  const {
    enum: choices,
    items,
    minItems,
    minimum,
    exclusiveMinimum,
    maximum,
    exclusiveMaximum,
    type,
  } = schema as {
    readonly type: string | readonly string[];
    readonly enum?: readonly string[];
    readonly items?: Hyperparameters[string];
    readonly minItems?: number;
    readonly minimum?: number;
    readonly exclusiveMinimum?: number;
    readonly maximum?: number;
    readonly exclusiveMaximum?: number;
  };
  if (choices) return choices.map((choice) => inlineCode(JSON.stringify(choice))).join(", ");
  if (items) {
    const each = rangeText(items);
    return `${minItems === 3 ? "three" : "two"} ${each.startsWith("number, ") ? "numbers" : "values"}, each ${each.replace(/^number, /, "")}`;
  }
  if (type === "boolean") return "`true`, `false`";
  const isLargest = (bound: number): boolean => Math.abs(bound) > 3e38;
  const bounds = [
    ...(minimum !== undefined && !isLargest(minimum) ? [`at least ${minimum}`] : []),
    ...(exclusiveMinimum === undefined ? [] : [`above ${exclusiveMinimum}`]),
    ...(maximum !== undefined && !isLargest(maximum) ? [`at most ${maximum}`] : []),
    ...(exclusiveMaximum === undefined ? [] : [`below ${exclusiveMaximum}`]),
  ];
  const kind = typeof type === "string" ? type : type.map((name) => (name === "null" ? "`null`" : name)).join(" or ");
  return bounds.length === 0 ? (kind === "number" ? "number, any" : kind) : `${kind}, ${bounds.join(", ")}`;
};

const hyperparameterTable = (definition: OptimizerDefinition): string => {
  const { revision, family, formula, references, hyperparameters: all, slots, allSlots, shapes } = definition;
  const defaults = Object.fromEntries(Object.entries(all).map(([key, { default: initial }]) => [key, initial])) as Parameters<typeof slots>[0];
  const inUse = slots(defaults);
  const state = slotsPerElement(definition, defaults) * F32_BYTES;
  const late = allSlots.filter((slot) => !inUse.includes(slot));
  const slotText = [...inUse.map(inlineCode), ...late.map((slot) => `${inlineCode(slot)} (not by default)`)].join(", ");
  const rows = Object.entries(all).map(([key, schema]) => [
    inlineCode(key),
    schema.default === undefined ? "must be given" : inlineCode(JSON.stringify(schema.default)),
    rangeText(schema),
    schema.description,
  ]);
  return [
    `## ${sectionTitle(definition)}`,
    ["```text", formula, "```"].join("\n"),
    `Source: ${references.map(markdownLink).join("; ")}.`,
    `Family \`${family}\`, revision ${revision}. Slots: ${slotText || "none"}. A step with the defaults in F32 moves ${2 * F32_BYTES + state} bytes in and ${F32_BYTES + state} out for each parameter${shapes?.slotShape ? " of a matrix, beside the numbers for its rows and columns" : ""}.`,
    markdownTable(["hyperparameter", "default", "range", "meaning"], rows),
  ].join("\n\n");
};

/** How a name of another library is called here, or why it is not. */
export interface PeerCall {
  readonly optimizer?: object;
  readonly schedule?: object;
  /** The method of optimizer.reduce. */
  readonly method?: object;
  readonly note?: string;
  readonly why?: string;
}

const peersFile = (name: string): unknown => JSON.parse(readFileSync(new URL(`../docs/peers/${name}`, import.meta.url), "utf8"));

/** Reads the names by library, with its version, and the calls by library. */
export const readPeers = () => ({
  names: peersFile("names.json") as Readonly<Record<string, readonly string[]>>,
  calls: peersFile("calls.json") as Readonly<Record<string, Readonly<Record<string, PeerCall>>>>,
});

const peerRow = (name: string, { optimizer, schedule, method, note = "", why }: PeerCall): readonly string[] => {
  const call = Object.entries({ optimizer, schedule, method }).find(([, value]) => value);
  if (!call) return [inlineCode(name), "", why ?? ""];
  return [inlineCode(name), `${call[0]} ${inlineCode(JSON.stringify(call[1]).replaceAll(',"', ', "').replaceAll('":', '": '))}`, note];
};

const peerTables = (): string => {
  const { names, calls } = readPeers();
  return Object.entries(names)
    .map(([title, peers]) => {
      const library = title.split(" ")[0] as string;
      return `## ${title}\n\n${markdownTable(
        ["there", "here", "note"],
        peers.map((name) => peerRow(name, calls[library]?.[name] ?? {})),
      )}`;
    })
    .join("\n\n");
};

const contents: Readonly<Record<string, Readonly<Record<string, () => string>>>> = {
  "docs/wire-format.md": { methods: methodTable, errors: errorTable },
  "docs/operations.md": { sizing: sizingTable },
  "docs/settings.md": { settings: settingTable },
  "docs/optimizers.md": { optimizers: optimizerTable },
  "docs/peers.md": { peers: peerTables },
  "docs/hyperparameters.md": { hyperparameters: () => [...registry.values()].map(hyperparameterTable).join("\n\n") },
};

/** The files that contain generated tables. */
export const filesWithTables: readonly string[] = Object.keys(contents);

/** Replaces the table between its markers in a text. */
const fillTable = (text: string, name: string, content: string, file: string): string => {
  const begin = `<!-- begin ${name}: DO NOT EDIT, written by npm run generate -->`;
  const end = `<!-- end ${name} -->`;
  const start = text.indexOf(begin);
  const stop = text.indexOf(end);
  if (start < 0 || stop < start) throw new Error(`${file} lacks the markers ${begin} and ${end}`);
  return `${text.slice(0, start + begin.length)}\n\n${content}\n\n${text.slice(stop)}`;
};

/** Writes all tables into the files below `root`. */
export const writeTables = (root: string): void => {
  for (const [file, tables] of Object.entries(contents)) {
    const path = join(root, file);
    const text = Object.entries(tables).reduce((before, [name, make]) => fillTable(before, name, make(), file), readFileSync(path, "utf8"));
    writeFileSync(path, text);
  }
};
