/** Tests that `npm test` needs nothing beside Node, and that every test file belongs to one part. */
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { parts, TOOLS } from "../run.ts";
import { root } from "../support/tree.ts";

const read = (file: string): string => readFileSync(join(root, file), "utf8");

/** Adds the files that a file imports from this tree, directly and through others. */
const addImports = (file: string, found: Set<string>): ReadonlySet<string> => {
  for (const [, path = ""] of read(file).matchAll(/(?:from|import\()\s*"(\.[^"]+\.ts)"/g)) {
    const imported = join(dirname(file), path);
    if (!found.has(imported) && existsSync(join(root, imported))) addImports(imported, found.add(imported));
  }
  return found;
};

/** A call that starts a program which a machine with Node alone may lack. */
const STARTS_A_TOOL = /(?:spawn|exec)\w*\(\s*"(?:openssl|python3?|go|docker|helm|curl)"/;

test("no test of `npm test` installs anything or starts a tool", () => {
  const own = parts["own"] ?? [];
  assert.ok(own.length > 50);
  for (const file of own) {
    assert.ok(!addImports(file, new Set()).has("test/support/prepared.ts"), `${file} installs something: add it to TOOLS in test/run.ts`);
    assert.doesNotMatch(read(file), STARTS_A_TOOL, `${file} starts a tool: add it to TOOLS in test/run.ts`);
  }
});

test("the check finds a test that installs something", () => {
  assert.ok(addImports("test/page/page.test.ts", new Set()).has("test/support/prepared.ts"));
  assert.match(read("test/http/tls.test.ts"), STARTS_A_TOOL);
});

test("every place of TOOLS exists and has tests", () => {
  for (const place of Object.keys(TOOLS))
    assert.ok(
      parts["tools"]?.some((file) => file === place || file.startsWith(`${place}/`)),
      place,
    );
});
