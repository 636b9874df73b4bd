/** Tests that each folder of src names nothing that belongs to another folder. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { registry } from "../../src/optimizers/registry.ts";
import { root } from "../support/tree.ts";

/** Returns the source texts of a folder, by file. */
const sources = (room: string): readonly (readonly [file: string, text: string])[] =>
  readdirSync(join(root, "src", room)).map((file) => [`${room}/${file}`, readFileSync(join(root, "src", room, file), "utf8")]);

test("the engine names no optimizer, family or slot; it reads fields of definitions instead", () => {
  const definitions = [...registry.values()];
  const names = new Set(definitions.flatMap(({ name, family, allSlots, scalarSlots = {} }) => [name, family, ...allSlots, ...Object.keys(scalarSlots)]));
  assert.ok(names.size > 20);
  const found = ["engine", "pool"]
    .flatMap(sources)
    .flatMap(([file, text]) => [...names].filter((name) => text.includes(`"${name}"`)).map((name) => `${file}: ${name}`));
  assert.deepEqual(found, []);
});
