/** Tests docs/metrics.md: its table matches a real server, its alerts match the rules, and its reasons match the code. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { deployed } from "./_prometheus.ts";
import { page, withTable } from "./_table.ts";

const text = readFileSync(page, "utf8");

test("the table of metrics matches a real server", async () => {
  assert.equal(await withTable(text), text, "run node test/prometheus/_table.ts");
});

test("the alerts match the rules, with their severities", () => {
  const rules = ["stepd.rules.yml", "haproxy.rules.yml"].map((file) => readFileSync(join(deployed, file), "utf8")).join("");
  const expected = [...rules.matchAll(/- alert: (\w+)\n.*?severity: (\w+)/gs)].map(([, name, severity]) => `${name} ${severity}`);
  const found = [...text.matchAll(/^\| (Stepd\w+) \| (\w+) \|/gm)].map(([, name, severity]) => `${name} ${severity}`);
  assert.ok(expected.length > 0);
  assert.deepEqual(found, expected);
});

test("the reasons of refusals match the code", () => {
  const code = readFileSync(join(import.meta.dirname, "../../src/telemetry/telemetry.ts"), "utf8");
  const expected = [...(/const REFUSALS = \[(.*?)\]/s.exec(code)?.[1] ?? "").matchAll(/"(\w+)"/g)].map(([, reason]) => reason);
  const [row = ""] = /^\| `reason` .*$/m.exec(text) ?? [];
  assert.ok(expected.length > 0);
  assert.deepEqual(
    [...row.matchAll(/`([A-Z_]+)`/g)].map(([, reason]) => reason).filter((reason) => !reason?.startsWith("STEPD_")),
    expected,
  );
});
