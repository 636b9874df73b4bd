/**
 * Writes everything that derives from the optimizer definitions and from schemas/: run `npm run generate` after a change to
 * either. The files are committed, and CI fails where they do not agree with their sources.
 *
 *   src/optimizers/*.ts    -> src/optimizers/_registry.gen.ts
 *   the registry           -> schemas/optimizer.schema.json
 *   schemas/*.schema.json  -> src/generated/schemas.gen.ts, src/generated/wire.gen.ts
 */
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { compile, type JSONSchema } from "json-schema-to-typescript";

const root = join(import.meta.dirname, "..");
const header = "// DO NOT EDIT: written by `npm run generate`.\n";

const names = readdirSync(join(root, "src/optimizers"))
  .filter((file) => file.endsWith(".ts") && !file.startsWith("_") && file !== "registry.ts")
  .map((file) => file.slice(0, -3))
  .sort();
const registry = [
  header.trimEnd(),
  'import type { OptimizerDefinition } from "./_define.ts";',
  ...names.map((name) => `import ${name} from "./${name}.ts";`),
  "",
  "/** All optimizers by name. */",
  "export const registry: ReadonlyMap<string, OptimizerDefinition> = new Map(",
  `  ([${names.join(", ")}] as unknown as readonly OptimizerDefinition[]).map((definition) => [definition.name, definition]),`,
  ");",
  "",
].join("\n");
writeFileSync(join(root, "src/optimizers/_registry.gen.ts"), registry);

const { optimizerSchema } = await import("../src/optimizers/_schema.ts");
const definitions = await Promise.all(names.map(async (name) => (await import(`../src/optimizers/${name}.ts`)).default));
const optimizer = {
  $schema: "https://json-schema.org/draft/2020-12/schema",
  $id: "optimizer.schema.json",
  $comment: "DO NOT EDIT: written by `npm run generate` from src/optimizers.",
  title: "Optimizer",
  description: "An optimizer by name with its hyperparameters; absent ones take their defaults.",
  type: "object",
  required: ["name"],
  discriminator: { propertyName: "name" },
  oneOf: definitions.map(optimizerSchema),
};
writeFileSync(join(root, "schemas/optimizer.schema.json"), `${JSON.stringify(optimizer, null, 2)}\n`);

const schemaFiles = readdirSync(join(root, "schemas"))
  .filter((file) => file.endsWith(".schema.json"))
  .sort();
const schemas = schemaFiles.map((file) => JSON.parse(readFileSync(join(root, "schemas", file), "utf8")));
writeFileSync(
  join(root, "src/generated/schemas.gen.ts"),
  `${header}/** The contents of schemas/. */\nexport const schemas: readonly { readonly $id: string; readonly [keyword: string]: unknown }[] = ${JSON.stringify(schemas, null, 2)};\n`,
);

const everything: JSONSchema = {
  title: "Wire",
  type: "object",
  additionalProperties: false,
  required: schemaFiles,
  properties: Object.fromEntries(
    schemaFiles.map((file) => [file, file === "tensor.schema.json" ? { $ref: "tensor.schema.json#/$defs/PlainTensor" } : { $ref: file }]),
  ),
};
const types = await compile(everything, "Wire", {
  cwd: join(root, "schemas/"),
  bannerComment: `${header}/** The wire's types, from schemas/. */`,
  additionalProperties: true,
  format: false,
});
writeFileSync(join(root, "src/generated/wire.gen.ts"), types);
