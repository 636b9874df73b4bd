/** Habits of the source tree: every file says what it is for, and file names have one form. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { root } from "../support/tree.ts";

/** TypeScript that people write, by path. */
const files: readonly string[] = ["src", "test", "scripts", "bench"].flatMap((folder) =>
  readdirSync(join(root, folder), { recursive: true, encoding: "utf8" })
    .filter((file) => file.endsWith(".ts") && !file.endsWith(".gen.ts") && !file.includes("node_modules"))
    .map((file) => join(folder, file)),
);

/** Whether a text starts with a comment, or the first thing that it exports has one right above it. */
const isIntroduced = (text: string): boolean => {
  if (/^(\/\*\*|\/\/)\s*\S/.test(text)) return true;
  const before = text.slice(0, Math.max(0, text.search(/^export (?!type \{|\{|\*)/m)));
  return /(\*\/|^\/\/ .+)\s*$/m.test(before.trimEnd().split("\n").at(-1) ?? "");
};

test("there are files to look at", () => {
  assert.ok(files.length > 60, `${files.length}`);
});

test("every file says what it is for before it does anything", () => {
  assert.deepEqual(
    files.filter((file) => !isIntroduced(readFileSync(join(root, file), "utf8"))),
    [],
  );
});

test("a file without a word about itself is found", () => {
  assert.ok(!isIntroduced("export const a = 1; // a comment\n"));
  assert.ok(!isIntroduced('import { a } from "./a.ts";\n\nexport const b = a;\n'));
  assert.ok(isIntroduced('import {\n  a,\n} from "./a.ts";\nimport "./b.ts";\n\n/** What b is. */\nexport const b = a;\n'));
});

test("file names are lower case words, with _ in front of what only its room uses", () => {
  assert.deepEqual(
    files.filter((file) => !/^_?[a-z0-9]+([.-][a-z0-9]+)*\.ts$/.test(file.split("/").at(-1) ?? "")),
    [],
  );
});
