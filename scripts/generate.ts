/**
 * Writes everything that derives from schemas/ and from the definitions of optimizers and schedules: run `npm run generate` after a
 * change to any of these. The files are committed, and CI fails if they differ from their sources.
 *
 *   src/optimizers/*.ts    -> src/optimizers/_registry.gen.ts, schemas/optimizer.schema.json
 *   src/schedules/*.ts     -> src/schedules/_registry.gen.ts, schemas/schedule.schema.json
 *   schemas/*.schema.json  -> src/generated/schemas.gen.ts, src/generated/wire.gen.ts
 *   all of these           -> the tables in docs/ (tables.ts)
 */
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { compile, type JSONSchema } from "json-schema-to-typescript";

const root = join(import.meta.dirname, "..");
const header = "// DO NOT EDIT: written by `npm run generate`.\n";

/** Writes a folder's registry, which maps names to definitions. Returns the definitions. */
const writeRegistry = async (room: string, definition: string, title: string) => {
  const stems = readdirSync(join(root, "src", room))
    .filter((file) => file.endsWith(".ts") && !file.startsWith("_") && file !== "registry.ts")
    .map((file) => file.slice(0, -3))
    .sort();
  const identifiers = stems.map((stem) => stem.replaceAll(/-(.)/g, (_, letter: string) => letter.toUpperCase()));
  const registry = [
    header.trimEnd(),
    `import type { ${definition} } from "./_define.ts";`,
    ...stems.map((stem, index) => `import ${identifiers[index]} from "./${stem}.ts";`),
    "",
    `/** All ${title} by name. */`,
    `export const registry: ReadonlyMap<string, ${definition}> = new Map(`,
    `  ([${identifiers.join(", ")}] as unknown as readonly ${definition}[]).map((definition) => [definition.name, definition]),`,
    ");",
    "",
  ].join("\n");
  writeFileSync(join(root, `src/${room}/_registry.gen.ts`), registry);
  return Promise.all(stems.map(async (stem) => (await import(`../src/${room}/${stem}.ts`)).default));
};

/** Writes the schema of a tagged object: one branch for each definition. */
const writeTaggedSchema = (room: string, title: string, description: string, branches: readonly object[]): void => {
  const file = `${title.toLowerCase()}.schema.json`;
  const schema = {
    $schema: "https://json-schema.org/draft/2020-12/schema",
    $id: file,
    $comment: `DO NOT EDIT: written by \`npm run generate\` from src/${room}.`,
    title,
    description,
    type: "object",
    required: ["name"],
    discriminator: { propertyName: "name" },
    oneOf: branches,
  };
  writeFileSync(join(root, "schemas", file), `${JSON.stringify(schema, null, 2)}\n`);
};

const optimizers = await writeRegistry("optimizers", "OptimizerDefinition", "optimizers");
const { optimizerSchema } = await import("../src/optimizers/_schema.ts");
writeTaggedSchema(
  "optimizers",
  "Optimizer",
  "An optimizer by name with its hyperparameters; absent ones take their defaults.",
  optimizers.map(optimizerSchema),
);

const schedules = await writeRegistry("schedules", "ScheduleDefinition", "schedules");
const { scheduleSchema } = await import("../src/schedules/_schema.ts");
writeTaggedSchema(
  "schedules",
  "Schedule",
  "A learning-rate schedule by name with its arguments in torch's names; absent ones take their defaults.",
  schedules.map(scheduleSchema),
);

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

// tables.ts imports files that were written above, so this import must come last.
const { writeTables } = await import("./tables.ts");
writeTables(root);
