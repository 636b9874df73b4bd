/**
 * Tests the rules of deploy/prometheus: they are well-formed, and each alert has unit tests in which it fires and in which it
 * stays silent.
 */
import assert from "node:assert/strict";
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { root } from "../support/tree.ts";
import { deployed, promtool } from "./_prometheus.ts";

const text = readFileSync(join(deployed, "stepd.rules.yml"), "utf8");

const runbook = readFileSync(join(root, "docs/operations.md"), "utf8");

const alerts = [...text.matchAll(/^ {6}- alert: (\w+)$/gm)].map(([, name = ""]) => name);
const recordings = [...text.matchAll(/^ {6}- record: (\S+)$/gm)].map(([, name = ""]) => name);

/** Runs the unit tests against modified rules. */
const runUnitTests = async (rules: string) => {
  const folder = mkdtempSync(join(os.tmpdir(), "stepd-rules-"));
  try {
    cpSync(deployed, folder, { recursive: true });
    writeFileSync(join(folder, "stepd.rules.yml"), rules);
    return await promtool(["test", "rules", "stepd.rules.test.yml"], "", folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
};

/** Replaces the expression of one alert. */
const withExpression = (name: string, edit: (expression: string) => string): string => {
  const rule = new RegExp(`(- alert: ${name}\\n {8}expr: )((?:\\|\\n(?: {10}.*\\n)+)|.*\\n)`);
  assert.match(text, rule);
  return text.replace(rule, (_, head: string, expression: string) => `${head}${edit(expression)}\n`);
};

/** Returns the text of an alert's rule. */
const ruleOf = (name: string): string => text.slice(text.indexOf(`- alert: ${name}\n`)).split(/(?<=\n) {6}- alert: /)[0] ?? "";

/** Matches the comparison at the end of an expression. */
const THRESHOLD = /\s+(?:>|==) [^}>=]+$/;

test("promtool accepts the configuration and the rules", async () => {
  for (const values of [
    ["check", "config", "prometheus.yml"],
    ["check", "rules", "--lint=all", "--lint-fatal", "stepd.rules.yml"],
  ]) {
    const { status, output } = await promtool(values);
    assert.equal(status, 0, output);
    assert.match(output, new RegExp(`SUCCESS: ${alerts.length + recordings.length} rules found`));
  }
});

test("the unit tests of the rules pass", async () => {
  const { status, output } = await runUnitTests(text);
  assert.equal(status, 0, output);
});

test("the expected alerts exist", () => {
  assert.deepEqual(alerts, [
    "StepdDown",
    "StepdAbsent",
    "StepdRestarts",
    "StepdFailures",
    "StepdOverloaded",
    "StepdCallersRefused",
    "StepdSlow",
    "StepdArenaNearlyFull",
    "StepdHandlesMissing",
    "StepdWorkerLost",
    "StepdNonFiniteGradients",
    "StepdDrains",
    "StepdEventLoopBlocked",
    "StepdCertificateExpires",
  ]);
});

for (const name of alerts) {
  test(`${name} fails its unit tests if it never fires`, async () => {
    const { status, output } = await runUnitTests(withExpression(name, () => 'up{job="nothing"} == 0'));
    assert.notEqual(status, 0);
    assert.match(output, new RegExp(`alertname: ?${name}`));
  });

  test(`${name} fails its unit tests without its threshold`, async () => {
    const { status, output } = await runUnitTests(
      withExpression(name, (expression) => expression.trimEnd().replace(THRESHOLD, "").replace('absent(up{job="stepd"})', "vector(1)")),
    );
    assert.notEqual(status, 0);
    assert.match(output, new RegExp(`alertname: ?${name}`));
  });

  if (ruleOf(name).includes("        for: ")) {
    test(`${name} fails its unit tests if it does not wait`, async () => {
      const { status, output } = await runUnitTests(text.replace(ruleOf(name), ruleOf(name).replace(/ {8}for: .*\n/, "")));
      assert.notEqual(status, 0);
      assert.match(output, new RegExp(`alertname: ?${name}`));
    });
  }

  test(`${name} has a severity, a summary, a description and a runbook section`, () => {
    const rule = ruleOf(name);
    assert.match(rule, /^ {10}severity: (critical|warning)$/m);
    assert.match(rule, /^ {10}summary: \S/m);
    assert.match(rule, /^ {10}description: \S/m);
    assert.match(rule, new RegExp(`^ {10}runbook_url: http://127\\.0\\.0\\.1:8404/runbook#${name.toLowerCase()}$`, "m"));
    assert.match(runbook, new RegExp(`^### ${name}$`, "m"));
  });
}
