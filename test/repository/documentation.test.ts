/** Tests that the tables and examples of the documentation match the code. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { filesWithTables, writeTables } from "../../scripts/tables.ts";
import { python } from "../support/python.ts";
import { JSON_TYPE, TestService } from "../support/service.ts";
import { root, TreeCopy } from "../support/tree.ts";

const read = (file: string): string => readFileSync(join(root, file), "utf8");

/** Returns the fenced code blocks of a language, in order. */
const blocks = (text: string, language: string): readonly string[] =>
  [...text.matchAll(new RegExp(`^\`\`\`${language}\\n(.*?)^\`\`\`$`, "gms"))].map(([, block = ""]) => block);

test("generated tables agree with the code", () => {
  using tree = new TreeCopy(["docs"]);
  for (const file of filesWithTables) tree.write(file, tree.read(file).replace(/(<!-- begin [^>]*-->).*?(<!-- end)/gs, "$1\n$2"));
  writeTables(tree.path);
  for (const file of filesWithTables) assert.equal(tree.read(file), read(file), `${file}: run npm run generate`);
});

test("a page without its markers is an error", () => {
  using tree = new TreeCopy(["docs"]);
  tree.write("docs/settings.md", "# Settings\n");
  assert.throws(() => writeTables(tree.path), /docs\/settings\.md lacks the markers/);
});

test("the README's step with curl returns what the README shows", async () => {
  await using service = await TestService.start();
  const [command = ""] = blocks(read("README.md"), "sh").filter((block) => block.includes("/v1/step"));
  const [reply = ""] = blocks(read("README.md"), "json");
  const body = /-d '(.*?)'/s.exec(command)?.[1] ?? "";
  assert.equal(await (await service.post("/v1/step", body, JSON_TYPE)).text(), reply.trim());
});

test("the steps with Python in docs/wire-format.md print what the page shows, and a refusal as its message", async () => {
  await using service = await TestService.start();
  const [script = ""] = blocks(read("docs/wire-format.md"), "python");
  const [expected = ""] = blocks(read("docs/wire-format.md"), "text");
  const folder = mkdtempSync(join(os.tmpdir(), "stepd-page-"));
  const run = async (text: string): Promise<ReturnType<typeof spawnSync>> => {
    const file = join(folder, "step.py");
    writeFileSync(file, text.replace('"127.0.0.1", 8080', `"127.0.0.1", ${new URL(service.url).port}`));
    return spawnSync(await python(), [file], { encoding: "utf8" });
  };
  try {
    const { stdout, stderr } = await run(script);
    assert.equal(stdout, expected, String(stderr));
    const refused = await run(script.replace("adamw", "adamv"));
    assert.equal(refused.status, 1);
    assert.match(String(refused.stderr), /^\/optimizer\/name: expected one of .* found "adamv"\n$/);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("the tests that docs/operations.md names exist", () => {
  const [, table = ""] = /### What a byte may cost\n(.*?)\n\*\*Fairness/s.exec(read("docs/operations.md")) ?? [];
  const names = [...table.matchAll(/`([a-z]+\/[a-z-]+)`/g)].map(([, name]) => name as string);
  assert.ok(names.length > 20);
  for (const name of names) assert.ok(existsSync(join(root, `test/${name}.test.ts`)), name);
});

test("every hand-written example of a call checks the status", () => {
  const { stdout } = spawnSync("git", ["ls-files", "*.md"], { cwd: root, encoding: "utf8" });
  const pages = stdout.trim().split("\n");
  assert.ok(pages.includes("README.md") && pages.includes("docs/deployment.md"));
  const unchecked = pages.flatMap((page) => {
    const text = read(page);
    const curls = blocks(text, "sh").filter((block) => /\bcurl\b/.test(block) && !block.includes("--fail"));
    const scripts = blocks(text, "python").filter((block) => /getresponse|urlopen|requests\.|httpx\./.test(block) && !/status|raise_for_status/.test(block));
    return [...curls, ...scripts].map((block) => `${page}: ${block}`);
  });
  assert.deepEqual(unchecked, []);
});

test("the settings in docs/lamb.md are valid", async () => {
  await using service = await TestService.start();
  const settings = blocks(read("docs/lamb.md"), "json");
  assert.equal(settings.length, 6);
  for (const text of settings) {
    const tensors = { w: { shape: [2], values: [1, 2] } };
    await service.call("optimizer.step", { optimizer: JSON.parse(text), params: tensors, grads: tensors });
  }
});

/** The script starts the copied service and prints the parameters after a step. */
const STEP = `
  const { Service } = await import("./src/service.ts");
  const { readConfig } = await import("./src/config.ts");
  const service = await Service.start(readConfig({ STEPD_PORT: "0", STEPD_ARENA_MIB: "8", STEPD_LOG_LEVEL: "silent" }));
  const tensor = (values) => ({ w: { shape: [values.length], values } });
  const call = { optimizer: { name: "tiger", lr: 0.5 }, params: tensor([1, 1, 1, 1, 1]), grads: tensor([3, -2, 0, 1e-9, -4]) };
  const reply = await fetch(service.address + "/v1/step", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(call) });
  console.log(JSON.stringify((await reply.json()).params?.w.values));
  await service[Symbol.asyncDispose]();
`;

test("the optimizer in docs/adding-an-optimizer.md compiles and steps", () => {
  using tree = new TreeCopy(["src", "schemas", "docs", "tsconfig.json"]);
  for (const block of blocks(read("docs/adding-an-optimizer.md"), "ts")) {
    const [, file = "", text = ""] = /^\/\/ (\S+)\n(.*)$/s.exec(block) ?? [];
    tree.write(file, text);
  }
  for (const script of ["generate.ts", "build-kernels.ts"]) {
    const { status, stderr } = tree.run(script);
    assert.equal(status, 0, stderr);
  }
  assert.match(tree.read("docs/optimizers.md"), /^\| \[`tiger`\]/m);
  const compiled = spawnSync(join(root, "node_modules/.bin/tsc"), ["-p", "tsconfig.json"], { cwd: tree.path, encoding: "utf8" });
  assert.equal(compiled.status, 0, compiled.stdout);
  tree.write("step.mjs", STEP);
  const { stdout, stderr } = spawnSync(process.execPath, ["step.mjs"], { cwd: tree.path, encoding: "utf8" });
  assert.equal(stdout.trim(), "[0.5,1.5,1,0.5,1.5]", stderr);
});
