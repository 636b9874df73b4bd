/** Tests that the package-lock.json files work with any registry and on every platform. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { test } from "node:test";
import { root, TreeCopy } from "../support/tree.ts";

interface Entry {
  readonly version?: string;
  readonly resolved?: string;
  readonly integrity?: string;
  readonly engines?: { readonly node?: string };
  readonly optional?: boolean;
  readonly optionalDependencies?: Readonly<Record<string, string>>;
}

const semver = createRequire(import.meta.url)("semver") as { minVersion(range: string): unknown; satisfies(version: string, range: string): boolean };

const LOCK = "package-lock.json";

for (const folder of ["", "test/interop"]) {
  const text = readFileSync(join(root, folder, LOCK), "utf8");
  const { packages } = JSON.parse(text) as { packages: Readonly<Record<string, Entry>> };
  const manifest = JSON.parse(readFileSync(join(root, folder, "package.json"), "utf8")) as Readonly<
    Record<"dependencies" | "devDependencies", Record<string, string> | undefined>
  >;

  /** Resolves a package that the package at `path` depends on, as Node does. */
  const find = (path: string, name: string): Entry | undefined => {
    for (let folder = path; ; folder = folder.slice(0, Math.max(0, folder.lastIndexOf("/node_modules/")))) {
      const found = packages[folder === "" ? `node_modules/${name}` : `${folder}/node_modules/${name}`];
      if (found || folder === "") return found;
    }
  };

  test(`${folder || "."}: no entry has a download address`, () => {
    assert.deepEqual(
      Object.keys(packages).filter((path) => packages[path]?.resolved !== undefined),
      [],
    );
    assert.doesNotMatch(text.replaceAll(/"(url|homepage)": "[^"]*"/g, ""), /"https?:\/\/[^"]*\.tgz/);
  });

  test(`${folder || "."}: every optional dependency has an entry with a matching version`, () => {
    const missing: string[] = [];
    for (const [path, { optionalDependencies = {} }] of Object.entries(packages)) {
      for (const [name, version] of Object.entries(optionalDependencies)) {
        const found = find(path, name);
        if (!found || (/^\d/.test(version) && found.version !== version)) missing.push(`${path}: ${name} ${version}`);
      }
    }
    assert.deepEqual(missing, []);
  });

  test(`${folder || "."}: packages for all platforms are pinned by integrity`, () => {
    const unpinned = Object.entries(packages).filter(([path, { integrity, optional }]) => path !== "" && !optional && integrity === undefined);
    assert.deepEqual(
      unpinned.map(([path]) => path),
      [],
    );
  });

  test(`${folder || "."}: package.json has exact versions, and the lock file has the same`, () => {
    for (const [name, given] of Object.entries({ ...manifest.dependencies, ...manifest.devDependencies })) {
      // A package may be installed under an alias.
      const version = given.replace(/^npm:@?[^@]+@/, "");
      assert.match(version, /^\d+\.\d+\.\d+(-[\w.]+)?$/, name);
      assert.equal(packages[`node_modules/${name}`]?.version, version, name);
    }
  });
}

const files = [LOCK, join("test/interop", LOCK)];
const text = readFileSync(join(root, LOCK), "utf8");
const { packages } = JSON.parse(text) as { packages: Readonly<Record<string, Entry>> };

test("no package's engine range excludes a Node version that ours allows", () => {
  const { engines } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { engines: { node: string } };
  const least = engines.node.split("||").map((range) => String(semver.minVersion(range)));
  assert.ok(least.length > 1 && least.includes("24.0.0"), `${least}`);
  for (const version of [...least, process.versions.node]) {
    const refusing = Object.entries(packages).filter(([, { engines: own }]) => own?.node !== undefined && !semver.satisfies(version, own.node));
    assert.deepEqual(
      refusing.map(([path]) => path),
      [],
      version,
    );
  }
  const [, named] = /^Node (\d+\.\d+)/m.exec(readFileSync(join(root, "README.md"), "utf8")) ?? [];
  assert.equal(`${named}.0`, least[0]);
});

test("tidy-lock changes nothing in tidy files", () => {
  using tree = new TreeCopy(files);
  assert.equal(tree.run("tidy-lock.ts").status, 0);
  for (const file of files) assert.equal(tree.read(file), readFileSync(join(root, file), "utf8"));
});

test("tidy-lock removes planted addresses and restores packages of other platforms", () => {
  using tree = new TreeCopy(files);
  const lock = JSON.parse(text) as { packages: Record<string, Entry> };
  const other = Object.keys(lock.packages).find((path) => path.startsWith("node_modules/@biomejs/cli-win32"));
  assert.ok(other);
  delete lock.packages[other];
  lock.packages["node_modules/express"] = { ...lock.packages["node_modules/express"], resolved: "https://example.invalid/express.tgz" };
  tree.write("package-lock.json", JSON.stringify(lock));
  assert.equal(tree.run("tidy-lock.ts").status, 0);
  const tidied = JSON.parse(tree.read("package-lock.json")) as typeof lock;
  assert.equal(tidied.packages["node_modules/express"]?.resolved, undefined);
  assert.equal(tidied.packages[other]?.version, packages[other]?.version);
});
