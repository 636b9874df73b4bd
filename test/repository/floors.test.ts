/** Tests that no manifest or requirements file allows a version with a known vulnerability. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { suite, test } from "node:test";
import { root } from "../support/tree.ts";

/** The first version of each package that fixes all advisories published until November 2026. */
const FIXED: Readonly<Record<string, string>> = {
  // GHSA-6v7p-g79w-8964: an Unpacker reads out of bounds if it is used after an error.
  msgpack: "1.2.1",
  // CVE-2026-69244. Versions 3.13.4, 3.14.0 and 3.14.2 fix further advisories.
  aiohttp: "3.14.3",
  // GHSA-rrmf-rvhw-rf47. Version 2.6 fixes CVE-2025-32434.
  torch: "2.13",
  // CVE-2024-34062.
  tqdm: "4.66.3",
  // CVE-2024-5206.
  "scikit-learn": "1.5",
  // CVE-2023-52079.
  msgpackr: "1.10.1",
};

const NAMES = Object.keys(FIXED).join("|");
const REQUIREMENT = new RegExp(`(?<![\\w./@-])"?(?<name>${NAMES})(?:"?: "\\^?|==|>=|~=)(?<version>\\d+(?:\\.\\d+)*)`, "g");

const isBelow = (found: string, fixed: string): boolean => found.localeCompare(fixed, "en", { numeric: true }) < 0;

const files = execFileSync("git", ["ls-files", "*requirements*.txt", "*pyproject.toml", "*package.json", "*README.md", "docs/*.md"], {
  cwd: root,
  encoding: "utf8",
})
  .trim()
  .split("\n");

suite("floors of versions", () => {
  for (const file of files) {
    const found = [...readFileSync(join(root, file), "utf8").matchAll(REQUIREMENT)].map(({ groups }) => groups as { name: string; version: string });
    if (found.length === 0) continue;
    test(`${file} allows no vulnerable version`, () => {
      for (const { name, version } of found)
        assert.ok(!isBelow(version, FIXED[name] as string), `${name} ${version}: ${FIXED[name]} is the first without a known vulnerability`);
    });
  }

  test("the check covers the Python client's own requirements", () => {
    const text = readFileSync(join(root, "clients/python/pyproject.toml"), "utf8");
    const names = [...text.matchAll(REQUIREMENT)].map(({ groups }) => groups?.["name"]);
    assert.deepEqual(names.sort(), ["aiohttp", "msgpack", "torch"]);
  });
});
