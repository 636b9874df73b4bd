/**
 * Writes the parts of clients/python that derive from the server. Part of `npm run generate`. A test passes another target folder
 * as the argument, and compares the files.
 *
 *   src/errors/errors.ts            -> clients/python/src/stepd/_error_table.py
 *   src/optimizers/                 -> clients/python/src/stepd/_optimizer_table.py
 *   schemas/optimizer.schema.json   -> clients/python/src/stepd/optimizers.py
 *   schemas/schedule.schema.json    -> clients/python/src/stepd/schedules.py
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { errors } from "../src/errors/errors.ts";
import { registry } from "../src/optimizers/registry.ts";

const root = join(import.meta.dirname, "..");
const target = process.argv[2] ?? join(root, "clients/python/src/stepd");
const header = "# DO NOT EDIT: written by `npm run generate`.\n";

/** Returns the `__all__` list of a module. */
const allList = (names: readonly string[]): string => `__all__ = [\n${names.map((name) => `    "${name}",\n`).join("")}]`;

/** Converts INVALID_PARAMS to InvalidParams. */
const classOf = (name: string): string =>
  name
    .toLowerCase()
    .split("_")
    .map((word) => `${word.slice(0, 1).toUpperCase()}${word.slice(1)}`)
    .join("");

const classes = Object.entries(errors).map(
  ([name, { code, status, title }]) => `
class ${classOf(name)}(ServerError):
    """${title}."""

    name = "${name}"
    code = ${code}
    status = ${status}
`,
);
writeFileSync(
  join(target, "_error_table.py"),
  `${header}"""The errors of the server, one class each."""

from ._errors import ServerError

${allList(Object.keys(errors).map(classOf).sort())}

${classes.join("\n")}`,
);

const allTensors = [...registry.values()].filter(({ shared }) => shared).map(({ name }) => name);
/** The slots of matrices that have another shape than their parameter. */
const ownShapes = [...registry.values()].flatMap(({ allSlots, shapes }) =>
  allSlots.filter((slot) => shapes?.slotShape && !["", "2,2"].includes(String(shapes.slotShape(slot, [2, 2]) ?? ""))),
);
const needs = [...registry.values()].map(({ name, wholeTensors = false }) => {
  const value = typeof wholeTensors === "string" ? `"${wholeTensors}"` : wholeTensors ? "True" : "False";
  return `    "${name}": ${value},\n`;
});
writeFileSync(
  join(target, "_optimizer_table.py"),
  `${header}"""What an optimizer needs to know of a tensor, and the shapes of its slots."""

from __future__ import annotations

#: Whether an optimizer needs whole tensors: always, never, or with a hyperparameter.
WHOLE_TENSORS: dict[str, bool | str] = {
${needs.join("")}}

#: The optimizers whose step needs all of their tensors in one call.
ALL_TENSORS = frozenset([${allTensors.map((name) => `"${name}"`).join(", ")}])

#: The slots whose shape is not that of their parameter.
OWN_SHAPES = frozenset([${ownShapes.map((slot) => `"${slot}"`).join(", ")}])
`,
);

interface Property {
  readonly type?: string | readonly string[];
  readonly enum?: readonly string[];
  readonly items?: Property;
  readonly default?: unknown;
  readonly description?: string;
}

interface Branch {
  readonly title: string;
  readonly description: string;
  readonly required: readonly string[];
  readonly properties: { readonly name: { readonly const: string } } & Readonly<Record<string, Property>>;
}

const PYTHON_TYPES: Readonly<Record<string, string>> = {
  number: "float",
  integer: "int",
  boolean: "bool",
  string: "str",
  null: "None",
  object: "Mapping[str, Any]",
};

const typeOf = ({ type, enum: values, items }: Property): string => {
  if (values) return `Literal[${values.map((value) => JSON.stringify(value)).join(", ")}]`;
  if (items) return `Sequence[${typeOf(items)}]`;
  if (type === undefined) return "Mapping[str, Any]";
  return [type]
    .flat()
    .map((name) => PYTHON_TYPES[name])
    .join(" | ");
};

const literal = (value: unknown): string => {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `(${value.map(literal).join(", ")})`;
  return JSON.stringify(value);
};

/** Breaks long lines between words. */
const wrapLines = (text: string, indent: string): string => {
  const lines = [""];
  for (const word of text.split(" ")) {
    const last = lines.at(-1) as string;
    if (last !== "" && indent.length + last.length + 1 + word.length > 88) lines.push(word);
    else lines[lines.length - 1] = last === "" ? word : `${last} ${word}`;
  }
  return lines.join(`\n${indent}`);
};

/** Writes a parameter as ruff does: a type of several values goes on a line of its own if the line has more than 88 characters. */
const parameterOf = (name: string, type: string, initial: string): string => {
  const line = `    ${name}: ${type}${initial},\n`;
  const values = /^Literal\[(.*)\]$/.exec(type)?.[1];
  return line.length <= 89 || values === undefined ? line : `    ${name}: Literal[\n        ${values}\n    ]${initial},\n`;
};

const functionOf = ({ title, description, required, properties }: Branch): string => {
  const { name, ...values } = properties;
  const given = Object.entries(values as Readonly<Record<string, Property>>);
  const wanted = given.toSorted(([a], [b]) => Number(required.includes(b)) - Number(required.includes(a)));
  const parameters = wanted.map(([key, property]) => {
    const initial = required.includes(key) ? "" : ` = ${literal(property.default ?? null)}`;
    return parameterOf(key, typeOf(property), initial);
  });
  const documented = given.map(([key, { description: what = "" }]) => `    ${wrapLines(`${key}: ${what}.`, "        ")}\n`);
  return `
def ${name.const}(
    *,
${parameters.join("")}) -> dict[str, Any]:
    """${wrapLines(`${title}.`, "    ")}

    ${wrapLines(`${description}.`, "    ")}

${documented.join("")}    """
    return {
        "name": "${name.const}",
${given.map(([key]) => `        "${key}": ${key},\n`).join("")}    }
`;
};

/** Writes a module with one function for each branch of a tagged object's schema. */
const writeModule = (schema: string, module: string, title: string): void => {
  const { oneOf } = JSON.parse(readFileSync(join(root, "schemas", `${schema}.schema.json`), "utf8")) as { readonly oneOf: readonly Branch[] };
  const body = oneOf.map(functionOf).join("\n");
  const typing = ["Any", ...(body.includes("Literal[") ? ["Literal"] : [])].join(", ");
  const collections = ["Mapping", "Sequence"].filter((name) => body.includes(`${name}[`)).join(", ");
  writeFileSync(
    join(target, `${module}.py`),
    `${header}# ruff: noqa: E501
"""${title}"""

from __future__ import annotations

from collections.abc import ${collections}
from typing import ${typing}

${allList(oneOf.map(({ properties }) => properties.name.const).sort())}

${body}`,
  );
};

writeModule("optimizer", "optimizers", "The optimizers of the server with their hyperparameters, as the mappings that calls take.");
writeModule("schedule", "schedules", "The learning-rate schedules of the server with their arguments, as the mappings that calls take.");
