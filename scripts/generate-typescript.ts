/** Writes what clients/typescript shares with the server: the wire's types and the names of errors. Part of `npm run generate`. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { errors } from "../src/errors/errors.ts";

const root = join(import.meta.dirname, "..");
const target = join(root, "clients/typescript/src");

/**
 * The wire's types as a caller wants them: an absent member may be undefined (also under exactOptionalPropertyTypes), arrays may be
 * read-only (`as const`), and numbers are numbers, because MessagePack has NaN and infinity.
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
