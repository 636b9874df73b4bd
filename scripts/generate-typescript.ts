/** Writes what clients/typescript shares with the server: the wire's types and the names of errors. Part of `npm run generate`. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { errors } from "../src/errors/errors.ts";

const root = join(import.meta.dirname, "..");
const target = join(root, "clients/typescript/src");

writeFileSync(join(target, "wire.gen.ts"), readFileSync(join(root, "src/generated/wire.gen.ts")));
const names = Object.keys(errors).map((name) => JSON.stringify(name));
writeFileSync(
  join(target, "errors.gen.ts"),
  `// DO NOT EDIT: written by \`npm run generate\`.\n/** The names of all errors of the server. */\nexport type ErrorName =\n  | ${names.join("\n  | ")};\n`,
);
