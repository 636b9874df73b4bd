/**
 * Tests the rules of deploy/prometheus: they are well-formed, and each alert has unit tests in which it fires and in which it
 * stays silent.
 */
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import { join } from "node:path";
import { suite, test } from "node:test";
import { parse, stringify } from "yaml";
import { root } from "../support/tree.ts";
import { deployed, promtool } from "./_prometheus.ts";

const runbook = readFileSync(join(root, "docs/operations.md"), "utf8");

/** Every scalar is a text: 0x30 is a series of 31 zeros, and no number. */
const TEXT = { schema: "failsafe" } as const;

interface RuleTests {
  readonly tests: readonly { readonly alert_rule_test?: readonly { readonly alertname: string }[] }[];
}

/** A file of rules, with its unit tests. */
class RuleFile {
  readonly file: string;
  readonly text: string;
  readonly alerts: readonly string[];
  readonly recordings: readonly string[];
  readonly #tests: RuleTests;

  constructor(name: string) {
    this.file = `${name}.rules.yml`;
    this.text = readFileSync(join(deployed, this.file), "utf8");
    this.alerts = [...this.text.matchAll(/^ {6}- alert: (\w+)$/gm)].map(([, alert = ""]) => alert);
    this.recordings = [...this.text.matchAll(/^ {6}- record: (\S+)$/gm)].map(([, recording = ""]) => recording);
    this.#tests = parse(readFileSync(join(deployed, `${name}.rules.test.yml`), "utf8"), TEXT);
  }

  /** Runs the unit tests against given rules: all tests, or those of one alert. */
  async runUnitTests(rules: string, alert?: string) {
    const folder = mkdtempSync(join(os.tmpdir(), "stepd-rules-"));
    const tests = this.#tests.tests.filter(({ alert_rule_test: checks = [] }) => alert === undefined || checks.some(({ alertname }) => alertname === alert));
    try {
      writeFileSync(join(folder, this.file), rules);
      writeFileSync(join(folder, "tests.yml"), stringify({ ...this.#tests, tests }, TEXT));
      return await promtool(["test", "rules", "tests.yml"], "", folder);
    } finally {
      rmSync(folder, { recursive: true });
    }
  }

  /** Replaces the expression of one alert. */
  withExpression(name: string, edit: (expression: string) => string): string {
    const rule = new RegExp(`(- alert: ${name}\\n {8}expr: )((?:\\|\\n(?: {10}.*\\n)+)|.*\\n)`);
    assert.match(this.text, rule);
    return this.text.replace(rule, (_, head: string, expression: string) => `${head}${edit(expression)}\n`);
  }

  /** Returns the text of an alert's rule. */
  ruleOf(name: string): string {
    return this.text.slice(this.text.indexOf(`- alert: ${name}\n`)).split(/(?<=\n) {6}- alert: /)[0] ?? "";
  }
}

/** The comparisons of a burn rate with its budget. */
const BURN = / > [\d.]+ \* scalar\([^)]*\)/g;

/** The comparison at the end of an expression. */
const THRESHOLD = /\s+(?:>|==|<) [^}>=]+$/;

const withoutThreshold = (expression: string): string =>
  expression.includes(" * scalar(")
    ? expression.trimEnd().replaceAll(BURN, "")
    : expression.trimEnd().replace(THRESHOLD, "").replace('absent(up{job="stepd"})', "vector(1)");

const stepd = new RuleFile("stepd");
const haproxy = new RuleFile("haproxy");

test("promtool accepts the configuration and the rules", async () => {
  const configuration = await promtool(["check", "config", "prometheus.yml"]);
  assert.equal(configuration.status, 0, configuration.output);
  for (const { file, alerts, recordings } of [stepd, haproxy]) {
    const { status, output } = await promtool(["check", "rules", "--lint=all", "--lint-fatal", file]);
    assert.equal(status, 0, output);
    for (const text of [output, configuration.output]) assert.match(text, new RegExp(`SUCCESS: ${alerts.length + recordings.length} rules found`));
  }
});

test("promtool accepts the configuration in docs/recipes/dashboards.md", async () => {
  const [, block = ""] = /^```yaml\n(.*?)^```$/ms.exec(readFileSync(join(root, "docs/recipes/dashboards.md"), "utf8")) ?? [];
  assert.match(block, /job_name: stepd$/m);
  const folder = mkdtempSync(join(os.tmpdir(), "stepd-recipe-"));
  try {
    // The paths of the rules are relative to the root of a checkout.
    writeFileSync(join(folder, "prometheus.yml"), block.replaceAll("deploy/", `${root}/deploy/`));
    const { status, output } = await promtool(["check", "config", join(folder, "prometheus.yml")]);
    assert.equal(status, 0, output);
    assert.match(output, /SUCCESS: 1 rule files found/);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("the expected alerts exist", () => {
  assert.deepEqual(stepd.alerts, [
    "StepdDown",
    "StepdReplicaDown",
    "StepdAbsent",
    "StepdRestarts",
    "StepdFailuresBurnFast",
    "StepdFailuresBurnSlow",
    "StepdInstanceFails",
    "StepdOverloaded",
    "StepdCallerOverloads",
    "StepdCallersRefused",
    "StepdSlowBurnFast",
    "StepdSlowBurnSlow",
    "StepdInstanceSlow",
    "StepdPhaseStuck",
    "StepdArenaNearlyFull",
    "StepdHandlesMissing",
    "StepdWorkerLost",
    "StepdNonFiniteGradients",
    "StepdCallerDiverges",
    "StepdDrains",
    "StepdEventLoopBlocked",
    "StepdReloadFails",
    "StepdCertificateExpires",
  ]);
  assert.deepEqual(haproxy.alerts, ["StepdBalancerDown", "StepdBalancerEmpty", "StepdBalancerReplicaOut", "StepdBalancerErrors", "StepdBalancerFull"]);
});

for (const rules of [stepd, haproxy]) {
  suite(rules.file, () => {
    test("the unit tests pass", async () => {
      const { status, output } = await rules.runUnitTests(rules.text);
      assert.equal(status, 0, output);
    });

    for (const name of rules.alerts) {
      const requireFailure = async (changed: string): Promise<void> => {
        const { status, output } = await rules.runUnitTests(changed, name);
        assert.notEqual(status, 0);
        assert.match(output, new RegExp(`alertname: ?${name}`));
      };

      test(`${name} fails its unit tests if it never fires`, () => requireFailure(rules.withExpression(name, () => 'up{job="nothing"} == 0')));

      test(`${name} fails its unit tests without its threshold`, () => requireFailure(rules.withExpression(name, withoutThreshold)));

      if (rules.ruleOf(name).includes("        for: ")) {
        test(`${name} fails its unit tests if it does not wait`, () =>
          requireFailure(rules.text.replace(rules.ruleOf(name), rules.ruleOf(name).replace(/ {8}for: .*\n/, ""))));
      }

      test(`${name} has a severity, a summary, a description and a runbook section`, () => {
        const rule = rules.ruleOf(name);
        assert.match(rule, /^ {10}severity: (critical|warning)$/m);
        assert.match(rule, /^ {10}summary: \S/m);
        assert.match(rule, /^ {10}description: \S/m);
        assert.match(rule, new RegExp(`^ {10}runbook_url: http://127\\.0\\.0\\.1:8404/runbook#${name.toLowerCase()}$`, "m"));
        assert.match(runbook, new RegExp(`^### ${name}$`, "m"));
      });
    }
  });
}

for (const name of ["StepdFailuresBurnFast", "StepdSlowBurnFast"]) {
  test(`${name} fails its unit tests without the pair of windows for failures of hours`, async () => {
    const { status } = await stepd.runUnitTests(
      stepd.withExpression(name, (expression) =>
        expression
          .trim()
          .replace(/^\|\n\s*/, "")
          .replace(/\n\s*or .*/s, ""),
      ),
      name,
    );
    assert.notEqual(status, 0);
  });
}

test("every section of the runbook from the first alert on belongs to an alert", () => {
  const sections = [...runbook.slice(runbook.indexOf("\n## Runbook")).matchAll(/^### (\w+)$/gm)].map(([, name]) => name);
  assert.deepEqual(sections.sort(), [...stepd.alerts, ...haproxy.alerts].sort());
});
