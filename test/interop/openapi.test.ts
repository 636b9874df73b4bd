/** What checkers and generators of OpenAPI make of /openapi.json: nothing to complain of, and clients that take steps. */
import assert from "node:assert/strict";
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { TestService } from "../support/service.ts";
import { root } from "../support/tree.ts";
import { type Answers, answers, CALLS } from "./_calls.ts";
import { here, nodeCommand, python, pythonCommand, run } from "./_packages.ts";

let service: TestService;
let expected: Answers;
let folder: string;
let document: string;

before(async () => {
  service = await TestService.start({ STEPD_WORKERS: "1", STEPD_ARENA_MIB: "32" });
  expected = await answers(service);
  mkdirSync(join(root, "build/interop"), { recursive: true });
  folder = mkdtempSync(join(root, "build/interop/openapi-"));
  document = join(folder, "openapi.json");
  writeFileSync(document, await (await fetch(`${service.url}/openapi.json`)).text());
});
after(async () => {
  await service[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
});

test("redocly finds neither errors nor warnings", async () => {
  const output = await run(process.execPath, [nodeCommand("redocly"), "lint", document, "--config", "redocly.yaml", "--format", "json"]);
  const { problems } = JSON.parse(output) as { problems: unknown[] };
  assert.deepEqual(problems, []);
});

test("spectral finds neither errors nor warnings", async () => {
  await run(process.execPath, [nodeCommand("spectral"), "lint", document, "--ruleset", "spectral.yaml", "--fail-severity", "warn"]);
});

/** The results of a generated client's program. */
const check = (output: string): void => {
  const { list, describe, step, next, error } = JSON.parse(output) as Record<"list" | "describe", unknown> & {
    step: Answers["step"];
    next: { step: number };
    error: { code: number; detail: string };
  };
  assert.deepEqual({ list, describe, step }, { list: expected.list, describe: expected.describe, step: expected.step });
  assert.equal(next.step, 2);
  assert.deepEqual(error.detail, expected.error.message);
};

test("a client by openapi-python-client lists, describes, takes steps, and reads a problem", async () => {
  const home = join(folder, "stepd_rest");
  // It says that it leaves MessagePack out.
  await run(pythonCommand("openapi-python-client"), ["generate", "--path", document, "--output-path", home, "--meta", "none"]);
  check(await run(python, [join(here, "python/generated.py"), service.url], { input: JSON.stringify(CALLS.step), cwd: folder, env: { PYTHONPATH: folder } }));
});

test("a client by @hey-api/openapi-ts compiles in strict mode, lists, describes, takes steps, and reads a problem", async () => {
  const home = join(folder, "typescript");
  mkdirSync(home);
  const config = { input: document, output: { path: join(home, "client"), importFileExtension: ".js" }, plugins: ["@hey-api/client-fetch"] };
  writeFileSync(join(home, "openapi-ts.config.mjs"), `export default ${JSON.stringify(config)};\n`);
  await run(process.execPath, [nodeCommand("openapi-ts"), "--file", join(home, "openapi-ts.config.mjs")]);
  copyFileSync(join(here, "javascript/generated.ts"), join(home, "generated.ts"));
  writeFileSync(join(home, "package.json"), JSON.stringify({ type: "module" }));
  const compilerOptions = {
    strict: true,
    target: "es2022",
    module: "nodenext",
    lib: ["es2022", "dom", "dom.iterable"],
    types: ["node"],
    typeRoots: [join(root, "node_modules/@types")],
  };
  writeFileSync(join(home, "tsconfig.json"), JSON.stringify({ compilerOptions, include: ["."] }));
  await run(process.execPath, [nodeCommand("tsc"), "--project", home]);
  check(await run(process.execPath, [join(home, "generated.js"), service.url]));
});
