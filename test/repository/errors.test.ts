/** Tests the table of errors: its entries are counted, unique and documented. */
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { STATUS_CODES } from "node:http";
import { join } from "node:path";
import { test } from "node:test";
import { errors } from "../../src/errors/errors.ts";
import { root } from "../support/tree.ts";

/** A new error needs a change of this number, a line in docs/wire-format.md, and a test that causes the error. */
const COUNT = 23;

/** These names and codes come from the JSON-RPC specification. */
const SPECIFIED = { PARSE_ERROR: -32700, INVALID_REQUEST: -32600, METHOD_NOT_FOUND: -32601, INVALID_PARAMS: -32602, INTERNAL_ERROR: -32603 };

const entries = Object.entries(errors);

test(`there are ${COUNT} errors`, () => {
  assert.equal(entries.length, COUNT);
});

test("every error has a unique code", () => {
  assert.equal(new Set(entries.map(([, { code }]) => code)).size, entries.length);
});

test("JSON-RPC's errors have their specified codes, and the others are in the range for implementations", () => {
  for (const [name, { code }] of entries) {
    const specified = (SPECIFIED as Readonly<Record<string, number>>)[name];
    if (specified !== undefined) assert.equal(code, specified, name);
    else assert.ok(code >= -32099 && code <= -32000, `${name} ${code}`);
  }
});

test("names, statuses and titles are well-formed", () => {
  for (const [name, { status, title }] of entries) {
    assert.match(name, /^[A-Z]+(_[A-Z]+)*$/);
    assert.ok(status >= 400 && status in STATUS_CODES, `${name} ${status}`);
    assert.match(title, /^[A-Z].*[^.]$/, name);
  }
});

test("docs/wire-format.md lists each error with its code and status in one line", () => {
  const file = join(root, "docs/wire-format.md");
  assert.ok(existsSync(file), "docs/wire-format.md is missing");
  const lines = readFileSync(file, "utf8").split("\n");
  const undocumented = entries
    .filter(([name, { code, status }]) => !lines.some((line) => [name, code, status].every((word) => new RegExp(`(?<![\\w-])${word}(?!\\w)`).test(line))))
    .map(([name]) => name);
  assert.deepEqual(undocumented, []);
});

test("the documentation names no unknown error", () => {
  const known = new Set<string>(entries.map(([name]) => name));
  const table = readFileSync(join(root, "docs/wire-format.md"), "utf8").matchAll(/^\|\s*`?([A-Z]+(?:_[A-Z]+)+)`?\s*\|/gm);
  assert.deepEqual(
    [...table].map(([, name = ""]) => name).filter((name) => !known.has(name)),
    [],
  );
});
