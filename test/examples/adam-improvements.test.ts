/**
 * Tests the experiments on improvements of Adam: every script trains in a tiny setting, and the page shows the measured
 * results.
 */
import assert from "node:assert/strict";
import { copyFileSync, cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { runCommand } from "../support/command.ts";
import "../support/python.ts";
import { TestService } from "../support/service.ts";
import { root } from "../support/tree.ts";

const example = join(root, "examples/adam-improvements");
const docs = join(root, "docs");
const pages = { "adam-improvements": ["annealing", "batch_size", "early_steps", "heat_map"], "narrow-moments": ["narrow_moments"] } as const;
const names = Object.values(pages).flat();
const LARGEST_FIGURE = 150_000;

const folder = mkdtempSync(join(tmpdir(), "stepd-adam-improvements-"));
after(() => rmSync(folder, { recursive: true, force: true }));

const execute = async (command: string, options: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<{ code: number; log: string }> => {
  const { code, out, log } = await runCommand(command, options, { env: { ...process.env, ...env } });
  return { code, log: out + log };
};

const page = (...options: string[]) => execute(process.env["PYTHON"] ?? "python3", [join(example, "page.py"), ...options]);

const results = (from: string, name: string) => JSON.parse(readFileSync(join(from, `${name}.json`), "utf8"));

/** Flattens nested lists and checks their lengths. */
const numbers = (value: unknown, ...lengths: readonly number[]): number[] => {
  const [length, ...inner] = lengths;
  if (length === undefined) {
    assert.ok(typeof value === "number" && Number.isFinite(value), String(value));
    return [value];
  }
  assert.ok(Array.isArray(value));
  assert.equal(value.length, length);
  return value.flatMap((entry) => numbers(entry, ...inner));
};

const assertWithin = (values: readonly number[], low: number, high: number): void => {
  for (const value of values) assert.ok(low <= value && value <= high, `expected ${low} to ${high}, found ${value}`);
};

const assertFigures = (from: string, names: readonly string[]): void => {
  for (const name of names) {
    const figure = join(from, `${name}.png`);
    const bytes = readFileSync(figure);
    assert.equal(bytes.toString("latin1", 1, 4), "PNG", figure);
    assert.ok(bytes.readUInt32BE(16) >= 300 && bytes.readUInt32BE(20) >= 300, `${figure}: width and height`);
    assert.ok(statSync(figure).size < LARGEST_FIGURE, `${figure}: ${bytes.length} bytes`);
  }
};

test("every script trains on stepd, and writes results and a figure", async () => {
  await using service = await TestService.start();
  const { code, log } = await execute(join(example, "run"), ["--quick", "--out", folder], { STEPD_URL: service.url });
  assert.equal(code, 0, log);
  assert.deepEqual(readdirSync(folder).sort(), names.flatMap((name) => [`${name}.json`, `${name}.png`]).sort());
  assertFigures(folder, names);
  assert.ok((await service.metric("stepd_elements_total")) > 0);
  for (const bar of ["annealing", "batch size", "early steps", "heat map", "narrow moments"]) assert.match(log, new RegExp(`${bar}: 100%`));

  const heatMap = results(folder, "heat_map");
  for (const { forms } of Object.values<{ forms: { test_error: unknown; valid_error: unknown }[] }>(heatMap.rows)) {
    assert.equal(forms.length, 2);
    for (const form of forms) {
      assertWithin(numbers(form.test_error, 2, 2, 2), 5, 100);
      // After eight steps some networks have learned something.
      assert.ok(Math.min(...numbers(form.valid_error, 2, 2, 2)) < 85);
    }
  }

  const annealing = results(folder, "annealing");
  for (const contender of Object.values<{ test_accuracy: [number, number][] }>(annealing.contenders)) {
    assertWithin(numbers(contender.test_accuracy, 2, 2), 25, 95);
    assertWithin(
      contender.test_accuracy.map(([, last]) => last),
      50,
      95,
    );
  }

  const early = results(folder, "early_steps");
  for (const name of ["adam", "qhadam", "adamw", "qhadamw"]) {
    const losses = numbers(early.loss[name], 1, 2, 4);
    assertWithin(losses, 0.5, 2.4);
    for (const [first, , , last] of early.loss[name][0]) assert.ok(last < first - 0.2, `${first} to ${last}`);
  }
  // Different losses show that the optimizers differ, not just their names.
  assert.notEqual(JSON.stringify(early.loss.adam), JSON.stringify(early.loss.qhadam));

  const batchSize = results(folder, "batch_size");
  for (const contender of Object.values<{ test_accuracy: unknown; best: unknown }>(batchSize.contenders)) {
    assertWithin(numbers(contender.best, 2), 0, 2);
    assert.ok(Math.max(...numbers(contender.test_accuracy, 2, 3, 2)) > 30);
  }

  const narrow = results(folder, "narrow_moments");
  for (const problem of Object.values<{ test_loss: [number[], number[], number[]][]; curve: number[][][][] }>(narrow.problems)) {
    assertWithin(numbers(problem.test_loss, 4, 3, 2), 0, 5);
    assert.ok(problem.curve.flat(2).every((curve) => (curve.at(-1) as number) < (curve[0] as number) || curve.length === 1));
    for (const [wide, , codes] of problem.test_loss) {
      for (const [seed, loss] of wide.entries()) assert.ok(Math.abs(loss / (codes[seed] as number) - 1) < 0.05);
    }
  }
});

test("run refuses unknown options by name", async () => {
  for (const [options, message] of [
    [["--only", "heat"], "expected heat_map, annealing, early_steps, batch_size or narrow_moments, found heat"],
    [["--fast"], "expected --only SCRIPT, --quick or --out FOLDER, found --fast"],
    [["--quick"], "--quick: expected --out FOLDER beside it"],
  ] as const) {
    const { code, log } = await execute(join(example, "run"), options);
    assert.equal(code, 2);
    assert.ok(log.includes(message), log);
  }
});

test("the pages show the figures, and their tables match the results of at least 5 seeds", async () => {
  for (const [stem, names] of Object.entries(pages)) {
    assertFigures(join(docs, stem), names);
    const text = readFileSync(join(docs, `${stem}.md`), "utf8");
    for (const name of names) {
      assert.ok(text.includes(`](${stem}/${name}.png)`), `the figure of ${name} is not shown`);
      assert.ok(results(join(docs, stem), name).seeds.length >= 5);
    }
  }
  const { code, log } = await page("--check");
  assert.equal(code, 0, log);
});

test("page.py --check fails if a number differs", async () => {
  const copy = join(folder, "copy.md");
  copyFileSync(join(docs, "adam-improvements.md"), copy);
  cpSync(join(docs, "adam-improvements"), join(folder, "copy"), { recursive: true });
  const changed = results(join(folder, "copy"), "annealing");
  changed.contenders.SGD.test_accuracy[0].splice(-1, 1, 0);
  writeFileSync(join(folder, "copy/annealing.json"), JSON.stringify(changed));
  const { code, log } = await page("--check", copy);
  assert.equal(code, 1);
  assert.match(log, /disagree; run page\.py/);
  assert.equal((await page(copy)).code, 0);
  assert.equal((await page("--check", copy)).code, 0);
});
