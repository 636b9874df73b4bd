/** The kernels build by themselves when they are missing or stale, and only then. */
import assert from "node:assert/strict";
import { readdirSync, utimesSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { TreeCopy } from "../support/tree.ts";

const WASM = "build/kernels.wasm";
const SOURCE = "src/kernels/sgd.ts";

/** A copy with a fresh build. */
const builtTree = (): TreeCopy => {
  const tree = new TreeCopy(["src/kernels"]);
  const { status, stdout, stderr } = tree.run("build-kernels.ts");
  assert.equal(status, 0, stderr);
  assert.match(stdout, /^Built build\/kernels\.wasm from \d+ kernel files\.\n$/);
  return tree;
};

test("a missing build is made, a fresh one left alone", () => {
  using tree = builtTree();
  const before = tree.changed(WASM);
  const { status, stdout } = tree.run("build-kernels.ts");
  assert.deepEqual({ status, stdout }, { status: 0, stdout: "" });
  assert.equal(tree.changed(WASM), before);
  tree.delete(WASM);
  assert.match(tree.run("build-kernels.ts").stdout, /^Built/);
});

test("a source with new content makes the build stale, a source with a new time does not", () => {
  using tree = builtTree();
  utimesSync(join(tree.path, SOURCE), new Date(), new Date());
  assert.equal(tree.run("build-kernels.ts").stdout, "");
  tree.write(SOURCE, `${tree.read(SOURCE)}\nexport function planted(): i32 {\n  return 7;\n}\n`);
  assert.match(tree.run("build-kernels.ts").stdout, /^Built/);
  assert.ok(tree.read(WASM).includes("planted"));
});

test("a shared file of the kernels counts as a source", () => {
  using tree = builtTree();
  tree.write("src/kernels/_lanes.ts", `${tree.read("src/kernels/_lanes.ts")}\n// changed\n`);
  assert.match(tree.run("build-kernels.ts").stdout, /^Built/);
});

test("a damaged build is made again", () => {
  using tree = builtTree();
  tree.write(WASM, "damaged");
  assert.match(tree.run("build-kernels.ts").stdout, /^Built/);
});

test("a kernel that does not compile stops the build, names the place and leaves the last build", () => {
  using tree = builtTree();
  const before = tree.changed(WASM);
  tree.write(SOURCE, `${tree.read(SOURCE)}\nexport function planted(): i32 {\n  return missing;\n}\n`);
  const { status, stderr } = tree.run("build-kernels.ts");
  assert.equal(status, 1);
  assert.match(stderr, /The kernels do not compile/);
  assert.match(stderr, /missing/);
  assert.match(stderr, /src\/kernels\/sgd\.ts\(\d+,\d+\)/);
  assert.equal(tree.changed(WASM), before);
  assert.deepEqual(readdirSync(join(tree.path, "build")).sort(), ["kernels.sha256", "kernels.wasm"]);
});
