/** Tests that the committed files match the output of `npm run generate`, and that the output follows its sources. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { root, TreeCopy } from "../support/tree.ts";

const SOURCES = ["src", "schemas", "docs"];

const generated = [
  "schemas/optimizer.schema.json",
  "schemas/schedule.schema.json",
  ...readdirSync(join(root, "src"), { recursive: true, encoding: "utf8" })
    .filter((file) => file.endsWith(".gen.ts"))
    .map((file) => join("src", file)),
];

const generate = (tree: TreeCopy): void => {
  const { status, stderr } = tree.run("generate.ts");
  assert.equal(status, 0, stderr);
};

test("generated files agree with their sources", () => {
  using tree = new TreeCopy(SOURCES);
  for (const file of generated.filter((name) => !name.endsWith("_registry.gen.ts"))) tree.write(file, file.endsWith(".json") ? "{}" : "");
  tree.write("src/optimizers/_registry.gen.ts", "");
  generate(tree);
  for (const file of generated) assert.equal(tree.read(file), readFileSync(join(root, file), "utf8"), `${file}: run npm run generate`);
});

test("every generated file says that it is generated", () => {
  for (const file of generated) assert.match(readFileSync(join(root, file), "utf8").slice(0, 250), /DO NOT EDIT/, file);
});

test("a changed default reaches the schema, the types and the copies of the schemas", () => {
  using tree = new TreeCopy(SOURCES);
  const source = "src/optimizers/adamw.ts";
  tree.write(source, tree.read(source).replace("rate(0.01,", "rate(0.0625,"));
  generate(tree);
  for (const file of ["schemas/optimizer.schema.json", "src/generated/schemas.gen.ts"])
    assert.ok(tree.read(file).includes("0.0625") && !readFileSync(join(root, file), "utf8").includes("0.0625"), file);
});

test("a new optimizer enters the registry without a hand-written line", () => {
  using tree = new TreeCopy(SOURCES);
  tree.write("src/optimizers/planted.ts", tree.read("src/optimizers/qhm.ts").replace('name: "qhm"', 'name: "planted"'));
  generate(tree);
  assert.match(tree.read("src/optimizers/_registry.gen.ts"), /import planted from "\.\/planted\.ts"/);
  assert.match(tree.read("schemas/optimizer.schema.json"), /"const": "planted"/);
});

test("the chart's schema, rules and dashboard, and HAProxy's runbook agree with their sources", () => {
  using tree = new TreeCopy(["src", "deploy", "docs"]);
  const inChart = ["values.schema.json", "files/stepd.rules.yml", "files/stepd.json"].map((file) => join("deploy/helm/stepd", file));
  const files = [...inChart, "deploy/haproxy/runbook.html"];
  tree.write("src/config.ts", tree.read("src/config.ts").replace("const MAX_CONNECTIONS = 65536", "const MAX_CONNECTIONS = 65535"));
  tree.write(files[1] as string, "");
  const { status, stderr } = tree.run("generate-deploy.ts");
  assert.equal(status, 0, stderr);
  assert.match(tree.read(files[0] as string), /"maximum": 65535\b/, "a changed bound reaches the schema");
  tree.write("src/config.ts", readFileSync(join(root, "src/config.ts"), "utf8"));
  tree.run("generate-deploy.ts");
  for (const file of files) assert.equal(tree.read(file), readFileSync(join(root, file), "utf8"), `${file}: run npm run generate`);
});
