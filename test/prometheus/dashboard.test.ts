/** Tests the Grafana dashboard: it matches its builder and Grafana's schema, without gaps or overlaps in the layout. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { dashboard, dashboardJson } from "../../deploy/grafana/dashboard.ts";
import { dashboardSchema } from "../support/go.ts";
import { root } from "../support/tree.ts";
import { type Panel, panelsOf } from "./_dashboard.ts";

const text = readFileSync(join(root, "deploy/grafana/stepd.json"), "utf8");
const panels = panelsOf(text);

/** Validates a dashboard with Grafana's schema. */
const check = async (json: string) => spawnSync(await dashboardSchema(), { input: json, encoding: "utf8" });

test("stepd.json matches dashboard.ts", () => {
  assert.ok(text === dashboardJson(), "run node deploy/grafana/dashboard.ts");
});

test("Grafana's schema accepts stepd.json", async () => {
  const { status, stderr } = await check(text);
  assert.equal(status, 0, stderr);
});

for (const [what, broken, message] of [
  ["a field that Grafana does not know", { ...dashboard(), titel: "stepd" }, /titel/],
  ["a title that is no string", { ...dashboard(), title: 1 }, /title/],
  ["a month that there is not", { ...dashboard(), fiscalYearStartMonth: 12 }, /fiscalYearStartMonth/],
  ["a panel option that its kind does not have", JSON.parse(text.replace('"colorMode"', '"colourMode"')), /colourMode/],
  ["a query with a field of another data source", JSON.parse(text.replace('"legendFormat"', '"rawSql"')), /rawSql/],
] as const) {
  test(`Grafana's schema refuses ${what}`, async () => {
    const { status, stderr } = await check(JSON.stringify(broken));
    assert.equal(status, 1);
    assert.match(stderr, message);
  });
}

test("each panel has a description, a unit, and the dashboard's data source", () => {
  assert.ok(panels.length >= 20, `${panels.length}`);
  assert.equal(new Set(panels.map(({ title }) => title)).size, panels.length);
  assert.equal(new Set(panels.map(({ id }) => id)).size, panels.length);
  for (const { title, description, unit, queries, sources } of panels) {
    assert.ok(description.length > 5 && unit.length > 0 && queries.length > 0, title);
    for (const source of sources) assert.deepEqual(source, { type: "prometheus", uid: "$datasource" }, title);
  }
});

test("panels fill the rows of the grid without overlap", () => {
  const cells = new Map<string, string>();
  for (const { title, grid } of panels) {
    assert.ok(grid.x >= 0 && grid.x + grid.w <= 24, title);
    for (let x = grid.x; x < grid.x + grid.w; x++) {
      for (let y = grid.y; y < grid.y + grid.h; y++) {
        assert.equal(cells.get(`${x} ${y}`), undefined, `${title} lies on ${cells.get(`${x} ${y}`)}`);
        cells.set(`${x} ${y}`, title);
      }
    }
  }
  const widths = new Map<number, number>();
  for (const { grid } of panels satisfies readonly Panel[]) widths.set(grid.y, (widths.get(grid.y) ?? 0) + grid.w);
  assert.deepEqual([...new Set(widths.values())], [24]);
});
