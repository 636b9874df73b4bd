/**
 * Writes the parts of clients/typescript that derive from the server: the types of the wire, error names, and what optimizers need. Part of `npm run
 * generate`.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { errors } from "../src/errors/errors.ts";
import { registry } from "../src/optimizers/registry.ts";

const root = join(import.meta.dirname, "..");
const target = join(root, "clients/typescript/src");

/**
 * Adapts the wire's types to callers: an absent member may be undefined (also under exactOptionalPropertyTypes), arrays may be
 * read-only (`as const`), and numbers need no strings for NaN and infinity, because MessagePack has both values.
 */
const forCallers = (types: string): string =>
  types
    .replaceAll(/(\w)\?: /g, "$1?: undefined | ")
    .replaceAll(/^(\w+\??: (?:undefined \| )?)(\[.*\]|\w+\[\]|\(.*\)\[\])$/gm, "$1readonly $2")
    .replace(/ JSON has no NaN .*(\n \*\/\nexport type Value = ).*/, "$1number");

writeFileSync(join(target, "wire.gen.ts"), forCallers(readFileSync(join(root, "src/generated/wire.gen.ts"), "utf8")));
const names = Object.keys(errors).map((name) => JSON.stringify(name));
writeFileSync(
  join(target, "errors.gen.ts"),
  `// DO NOT EDIT: written by \`npm run generate\`.\n/** The names of all errors of the server. */\nexport type ErrorName =\n  | ${names.join("\n  | ")};\n`,
);

const allTensors = [...registry.values()].filter(({ shared }) => shared).map(({ name }) => name);
const needs = [...registry.values()].map(({ name, wholeTensors = false }) => `  ${name}: ${JSON.stringify(wholeTensors)},\n`);
writeFileSync(
  join(target, "optimizers.gen.ts"),
  `// DO NOT EDIT: written by \`npm run generate\`.
/** Whether an optimizer needs whole tensors: always, never, or with a hyperparameter. */
export const WHOLE_TENSORS: Readonly<Record<string, boolean | string>> = {
${needs.join("")}};

/** The optimizers whose step needs all of their tensors in one call. */
export const ALL_TENSORS: readonly string[] = ${JSON.stringify(allTensors)};
`,
);
