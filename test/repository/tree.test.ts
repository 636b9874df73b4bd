/** Tests conventions of the source tree: every file describes itself, and file names have one form. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { root } from "../support/tree.ts";

/** The paths of the TypeScript files that are written by hand. */
const files: readonly string[] = ["src", "test", "scripts", "bench"].flatMap((folder) =>
  readdirSync(join(root, folder), { recursive: true, encoding: "utf8" })
    .filter((file) => file.endsWith(".ts") && !file.endsWith(".gen.ts") && !file.includes("node_modules"))
    .map((file) => join(folder, file)),
);

/** Returns whether a text starts with a comment, or has a comment directly above its first export. */
const hasDescription = (text: string): boolean => {
  if (/^(\/\*\*|\/\/)\s*\S/.test(text)) return true;
  const before = text.slice(0, Math.max(0, text.search(/^export (?!type \{|\{|\*)/m)));
  return /(\*\/|^\/\/ .+)\s*$/m.test(before.trimEnd().split("\n").at(-1) ?? "");
};

test("the checks have files to read", () => {
  assert.ok(files.length > 60, `${files.length}`);
});

test("every file begins with a description", () => {
  assert.deepEqual(
    files.filter((file) => !hasDescription(readFileSync(join(root, file), "utf8"))),
    [],
  );
});

test("a file without a description is found", () => {
  assert.ok(!hasDescription("export const a = 1; // a comment\n"));
  assert.ok(!hasDescription('import { a } from "./a.ts";\n\nexport const b = a;\n'));
  assert.ok(hasDescription('import {\n  a,\n} from "./a.ts";\nimport "./b.ts";\n\n/** What b is. */\nexport const b = a;\n'));
});

test("file names are lower case words, with a leading _ for files private to their folder, and an optimizer's files have its name", () => {
  const isNamed = (file: string): boolean => {
    const name = file.split("/").at(-1) ?? "";
    return /^_?[a-z0-9]+([.-][a-z0-9]+)*\.ts$/.test(name) || (/^src\/(?:optimizers|kernels)\//.test(file) && /^_?[a-z0-9]+(_[a-z0-9]+)*\.ts$/.test(name));
  };
  assert.deepEqual(
    files.filter((file) => !isNamed(file)),
    [],
  );
});
