/** Tests that kernels are rebuilt only if they are missing or stale, and that stale kernels do not run. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, test } from "node:test";
import { TestService } from "../support/service.ts";
import { root, TreeCopy } from "../support/tree.ts";

const WASM = "build/kernels.wasm";
const SOURCE = "src/kernels/sgd.ts";

/** The first build, which the next trees get as a copy. */
const built = join(mkdtempSync(join(tmpdir(), "stepd-kernels-")), "build");
after(() => rmSync(dirname(built), { recursive: true }));

/** Returns a copy of the tree with a build. A build of all kernels takes long, so the copy has only one kernel. */
const builtTree = (): TreeCopy => {
  const tree = new TreeCopy(["src/kernels", "src/pool/sources.ts"]);
  for (const name of readdirSync(join(tree.path, "src/kernels"))) if (!name.startsWith("_") && name !== "sgd.ts") tree.delete(`src/kernels/${name}`);
  if (existsSync(built)) {
    cpSync(built, join(tree.path, "build"), { recursive: true });
    return tree;
  }
  const { status, stdout, stderr } = tree.run("build-kernels.ts");
  assert.equal(status, 0, stderr);
  assert.equal(stdout, "Built build/kernels.wasm from 1 kernel files.\n");
  cpSync(join(tree.path, "build"), built, { recursive: true });
  return tree;
};

test("a missing build is made, and a fresh one is kept", () => {
  using tree = builtTree();
  const before = tree.changed(WASM);
  const { status, stdout } = tree.run("build-kernels.ts");
  assert.deepEqual({ status, stdout }, { status: 0, stdout: "" });
  assert.equal(tree.changed(WASM), before);
  tree.delete(WASM);
  assert.match(tree.run("build-kernels.ts").stdout, /^Built/);
});

test("new content of a source makes the build stale, a new time does not", () => {
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

test("a kernel that does not compile stops the build, is named, and leaves the last build", () => {
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

/** Starts the service of a copied tree, and returns the exit status and the output. The service must end by itself. */
const refusalOf = (tree: TreeCopy): { readonly status: number | null; readonly stderr: string } => {
  const env = { ...process.env, STEPD_PORT: "0", STEPD_ARENA_MIB: "1" };
  const { status, stderr } = spawnSync(process.execPath, ["src/main.ts"], { cwd: tree.path, env, encoding: "utf8", timeout: 60_000 });
  return { status, stderr };
};

test("missing, damaged, stale or old kernels are refused in one line", async () => {
  assert.equal(spawnSync(process.execPath, [join(root, "scripts/build-kernels.ts")]).status, 0);
  using tree = new TreeCopy(["src"]);
  cpSync(join(root, "build"), join(tree.path, "build"), { recursive: true, filter: (path) => /build$|kernels/.test(path) });
  const file = join(tree.path, WASM);
  const good = readFileSync(file);
  const refused = (reason: string) => ({
    status: 1,
    stderr: `stepd: ${file} ${reason}; npm ci and npm start build it, or node scripts/build-kernels.ts by itself\n`,
  });
  const source = tree.read(SOURCE);
  tree.write(SOURCE, `${source}// changed\n`);
  assert.deepEqual(refusalOf(tree), refused("was built from other sources than those in src/kernels"));
  const plan = ["src/cli/main.ts", "plan", "--optimizer", "sgd", "--tensor", "w=3"];
  const { status, stderr } = spawnSync(process.execPath, plan, { cwd: tree.path, encoding: "utf8" });
  assert.deepEqual({ status, stderr }, refused("was built from other sources than those in src/kernels"));
  tree.write(SOURCE, source);

  // The custom section begins two bytes before its name, with its kind and size.
  const section = good.lastIndexOf("\x07sources") - 2;
  assert.ok(section > 0);
  writeFileSync(file, good.subarray(0, section));
  assert.deepEqual(refusalOf(tree), refused("was built from other sources than those in src/kernels"));
  writeFileSync(file, "damaged");
  assert.match(refusalOf(tree).stderr, /^stepd: \S+kernels\.wasm is damaged \([^\n]+\); npm ci [^\n]+\n$/);
  tree.delete(WASM);
  assert.deepEqual(refusalOf(tree), refused("cannot be read (ENOENT)"));

  // Without sources, as in the image and in the package, the shipped kernels are used.
  writeFileSync(file, good);
  rmSync(join(tree.path, "src/kernels"), { recursive: true });
  await using service = await TestService.start({}, [], undefined, join(tree.path, "src/main.ts"));
  assert.equal((await fetch(`${service.url}/health/ready`)).status, 200);
});
