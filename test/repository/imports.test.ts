/**
 * Tests the imports that the linter allows between the folders of src. The tests put violations into a copy of the linter's
 * configuration.
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";

const root = join(import.meta.dirname, "../..");
const biome = join(root, "node_modules/.bin/biome");

interface Room {
  readonly rooms: readonly string[];
  readonly packages: readonly string[];
  /** The files at the top of src that the folder may import. */
  readonly roots?: readonly string[];
}

/** The folders of src with their allowed imports. The tests derive all imports from this table. */
const rooms: Readonly<Record<string, Room>> = {
  cli: {
    rooms: ["rpc", "blobs", "engine", "codec", "arena", "pool", "receipts", "telemetry", "errors", "generated"],
    packages: ["cli-progress"],
    roots: ["check", "config", "serve", "version"],
  },
  http: { rooms: ["rpc", "codec", "telemetry", "errors"], packages: ["express", "cors", "limiter"] },
  rpc: {
    rooms: ["validation", "blobs", "engine", "interchange", "optimizers", "schedules", "receipts", "telemetry", "errors", "generated"],
    packages: [],
  },
  receipts: { rooms: ["validation", "errors", "generated"], packages: ["canonicalize", "tinypool"] },
  validation: { rooms: ["errors", "generated"], packages: ["ajv"] },
  codec: { rooms: ["errors"], packages: ["lru-cache", "msgpackr"] },
  blobs: { rooms: ["codec", "arena", "errors", "generated"], packages: ["lru-cache"] },
  engine: { rooms: ["codec", "arena", "pool", "validation", "optimizers", "schedules", "errors", "generated"], packages: ["lru-cache"] },
  interchange: { rooms: ["engine", "codec", "arena", "optimizers", "errors", "generated"], packages: [] },
  arena: { rooms: ["errors"], packages: [] },
  pool: { rooms: ["arena", "errors"], packages: ["node:worker_threads"] },
  kernels: { rooms: [], packages: [] },
  optimizers: { rooms: ["math"], packages: [] },
  schedules: { rooms: ["math", "errors"], packages: [] },
  math: { rooms: [], packages: [] },
  telemetry: { rooms: [], packages: ["@opentelemetry", "pino", "prom-client"] },
  errors: { rooms: [], packages: ["fastest-levenshtein"] },
  generated: { rooms: [], packages: [] },
};

const dependencies = Object.keys((JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { dependencies: object }).dependencies);
const packages = [...dependencies, "ajv/dist/2020.js", "node:worker_threads", "left-pad"];
const roots = ["main", "serve", "service", "check", "config", "inputs", "listen", "machine", "version"];
const files = roots.map((name) => `../${name}.ts`);

const copy = mkdtempSync(join(os.tmpdir(), "stepd-imports-"));
after(() => rmSync(copy, { recursive: true, force: true }));
cpSync(join(root, "biome.json"), join(copy, "biome.json"));

interface Diagnostic {
  readonly category: string;
  readonly location: { readonly path: string | { readonly file: string }; readonly start?: { readonly line: number } };
}

/** Lints sources, given by their path below src. Returns the lines with findings of a rule. */
const lint = (files: Readonly<Record<string, readonly string[]>>, rule: string): ReadonlyMap<string, ReadonlySet<number>> => {
  rmSync(join(copy, "src"), { recursive: true, force: true });
  for (const [path, lines] of Object.entries(files)) {
    mkdirSync(join(copy, "src", path, ".."), { recursive: true });
    writeFileSync(join(copy, "src", path), `${lines.join("\n")}\n`);
  }
  const { stdout, stderr } = spawnSync(biome, ["lint", "--reporter=json", "--max-diagnostics=none", "src"], {
    cwd: copy,
    encoding: "utf8",
    maxBuffer: 2 ** 26,
  });
  assert.ok(stdout.startsWith("{"), `biome gave no report: ${stderr}`);
  const found = new Map(Object.keys(files).map((path) => [path, new Set<number>()]));
  for (const { category, location } of (JSON.parse(stdout) as { diagnostics: readonly Diagnostic[] }).diagnostics) {
    if (category !== rule) continue;
    const path = typeof location.path === "string" ? location.path : location.path.file;
    const file = [...found.keys()].find((name) => path.endsWith(`src/${name}`));
    assert.ok(file && location.start, `a finding without a place: ${path}`);
    found.get(file)?.add(location.start.line);
  }
  return found;
};

const RESTRICTED = "lint/style/noRestrictedImports";

const specifiers = (room: string): readonly string[] =>
  Object.keys(rooms)
    .filter((other) => other !== room)
    .map((other) => `../${other}/x.ts`);

const isAllowed = (room: string, specifier: string): boolean => {
  const own = rooms[room];
  if (specifier.startsWith("../")) {
    const [, name = ""] = specifier.split("/");
    return (own?.rooms.includes(name) || own?.roots?.includes(name.replace(/\.ts$/, ""))) ?? false;
  }
  return own?.packages.some((name) => specifier === name || specifier.startsWith(`${name}/`)) ?? false;
};

test("the table, the linter's configuration and src have the same folders", () => {
  const folders = readdirSync(join(root, "src"), { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map(({ name }) => name);
  const { overrides } = JSON.parse(readFileSync(join(root, "biome.json"), "utf8")) as {
    overrides: readonly { includes: readonly string[]; linter: { rules?: { style?: { noRestrictedImports?: unknown } } } }[];
  };
  const restricted = overrides.filter(({ linter }) => linter.rules?.style?.noRestrictedImports).flatMap(({ includes }) => includes);
  assert.deepEqual(Object.keys(rooms).sort(), folders.sort());
  assert.deepEqual(restricted.sort(), folders.map((folder) => `src/${folder}/**`).sort());
});

test("the top of src has only the entries, their shared code, the composition root with its parts, the configuration and the machine's limits", () => {
  const files = readdirSync(join(root, "src")).filter((name) => name.endsWith(".ts"));
  assert.deepEqual(files.sort(), roots.map((name) => `${name}.ts`).sort());
});

for (const room of Object.keys(rooms)) {
  const forbidden = [
    ...[...specifiers(room), ...files, ...packages].filter((specifier) => !isAllowed(room, specifier)),
    "../../scripts/generate.ts",
    // These paths bypass the pattern for another folder.
    "./../main.ts",
    ...Object.keys(rooms)
      .filter((other) => !isAllowed(room, `../${other}/x.ts`) && other !== room)
      .flatMap((other) => [`./../${other}/x.ts`, `../errors/../${other}/x.ts`, `./deep/../../${other}/x.ts`]),
  ];
  test(`${room}: the linter reports all ${forbidden.length} forbidden imports`, () => {
    const forms: readonly ((specifier: string, index: number) => string)[] = [
      (specifier, index) => `import { x as x${index} } from "${specifier}";`,
      (specifier, index) => `import type { X as X${index} } from "${specifier}";`,
      (specifier, index) => `export { x as y${index} } from "${specifier}";`,
      (specifier, index) => `export const z${index} = import("${specifier}");`,
    ];
    for (const form of forms) {
      const lines = forbidden.map(form);
      const reported = lint({ [`${room}/planted.ts`]: lines }, RESTRICTED).get(`${room}/planted.ts`);
      const missed = lines.filter((_, index) => !reported?.has(index + 1));
      assert.deepEqual(missed, [], `not reported in src/${room}`);
    }
  });

  test(`${room}: the linter allows the permitted imports`, () => {
    const onlyOwn = ["optimizers", "kernels", "math"].includes(room);
    const allowed = [
      ...[...specifiers(room), ...files, ...packages].filter((specifier) => isAllowed(room, specifier)),
      "./_shared.ts",
      ...(onlyOwn ? [] : ["./sibling.ts"]),
      ...(onlyOwn || room === "schedules" ? [] : ["node:fs", "node:stream/promises"]),
    ];
    const lines = allowed.map((specifier, index) => `import { x as x${index} } from "${specifier}";`);
    const reported = lint({ [`${room}/planted.ts`]: lines }, RESTRICTED).get(`${room}/planted.ts`);
    assert.deepEqual(
      [...(reported ?? [])].map((line) => lines[line - 1]),
      [],
    );
  });
}

test("only the entries and config.ts may read the environment", () => {
  const lines = ['export const port = process.env["STEPD_PORT"];'];
  const forbidden = [...Object.keys(rooms).map((room) => `${room}/planted.ts`), "service.ts"];
  const files = Object.fromEntries([...forbidden, "main.ts", "cli/main.ts", "config.ts"].map((path) => [path, lines]));
  const reported = lint(files, "lint/style/noProcessEnv");
  const found = [...reported].filter(([, at]) => at.size > 0).map(([path]) => path);
  assert.deepEqual(found.sort(), forbidden.sort());
});

test("a circular import is reported", () => {
  const files = {
    "errors/a.ts": ['import { b } from "./b.ts";', "export const a = b;"],
    "errors/b.ts": ['import { a } from "./a.ts";', "export const b = a;"],
  };
  const reported = lint(files, "lint/suspicious/noImportCycles");
  assert.ok([...reported.values()].some((lines) => lines.size > 0));
});
