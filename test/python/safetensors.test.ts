/**
 * Tests that Python's safetensors package reads and writes states, and that stepd continues from a state that the package
 * wrote.
 */
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { registry } from "../../src/optimizers/registry.ts";
import { runPython } from "../support/python.ts";
import { TestService } from "../support/service.ts";
import { randomTensors, readFile, readState, writeState, writeTensors } from "../support/tensors.ts";
import { root } from "../support/tree.ts";

const fixture = join(root, "test/fixtures/adamw.safetensors");

/** Other languages sort, quote or parse these names differently. */
const shapes = { "layer.weight": [5, 7], "layer.bias": [7], scalar: [], 'a/b "ü" \u{1f600}': [3], "\uffee": [2], empty: [0, 4] };

interface Result {
  readonly params: Uint8Array;
  readonly state: Uint8Array;
}

interface PythonView {
  readonly metadata: Readonly<Record<string, string>>;
  readonly names: readonly string[];
  readonly entries: Readonly<Record<string, { readonly dtype: string; readonly shape: readonly number[]; readonly values: readonly number[] }>>;
}

const stepOn = (service: TestService, optimizer: unknown, params: Uint8Array, seed: number, state?: Uint8Array): Promise<Result> =>
  service.call<Result>("optimizer.step", { optimizer, params, grads: writeTensors(randomTensors(shapes, seed)), ...(state && { state }) });

for (const optimizer of [{ name: "adamw", amsgrad: true }, { name: "sgd", lr: 0.1, momentum: 0.9 }, { name: "lamb" }]) {
  test(`Python reads a state of ${optimizer.name} and writes one that stepd continues with, bit for bit`, async () => {
    await using service = await TestService.start();
    const folder = mkdtempSync(join(os.tmpdir(), "stepd-python-"));
    try {
      const first = await stepOn(service, optimizer, writeTensors(randomTensors(shapes, 1)), 2);
      const second = await stepOn(service, optimizer, first.params, 3, first.state);
      const [ours, theirs] = [join(folder, "ours.safetensors"), join(folder, "theirs.safetensors")];
      writeFileSync(ours, second.state);
      const seen = JSON.parse(await runPython("test/python/state.py", ours, theirs)) as PythonView;

      assert.deepEqual(seen.metadata, { format: "stepd.state/1", optimizer: optimizer.name, revision: String(registry.get(optimizer.name)?.revision) });
      const { steps, slots } = readState(second.state);
      const expected = new Map<string, unknown>(Object.entries(steps).map(([name, step]) => [`step/${name}`, { dtype: "int64", shape: [], values: [step] }]));
      for (const [slot, tensors] of Object.entries(slots)) {
        for (const [name, { shape, data }] of Object.entries(tensors)) expected.set(`${slot}/${name}`, { dtype: "float32", shape, values: [...data] });
      }
      assert.deepEqual(new Map(Object.entries(seen.entries)), expected);
      assert.deepEqual(Object.values(steps), Object.values(steps).fill(2));

      const fromOurs = await stepOn(service, optimizer, second.params, 4, second.state);
      const fromTheirs = await stepOn(service, optimizer, second.params, 4, readFileSync(theirs));
      assert.deepEqual(Buffer.from(fromTheirs.params), Buffer.from(fromOurs.params));
      assert.deepEqual(Buffer.from(fromTheirs.state), Buffer.from(fromOurs.state));
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
}

test("stepd's canonical order and layout match the package's, except for metadata", async () => {
  await using service = await TestService.start();
  const folder = mkdtempSync(join(os.tmpdir(), "stepd-python-"));
  try {
    const { state } = await stepOn(service, { name: "adamw" }, writeTensors(randomTensors(shapes, 1)), 2);
    const [ours, theirs] = [join(folder, "ours.safetensors"), join(folder, "theirs.safetensors")];
    writeFileSync(ours, state);
    await runPython("test/python/state.py", ours, theirs);
    assert.deepEqual([...readFile(readFileSync(theirs)).entries], [...readFile(state).entries]);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("a stored state written by the package steps like the same state from elsewhere", async () => {
  await using service = await TestService.start();
  const file = readFileSync(fixture);
  const state = readState(file);
  assert.deepEqual(state.steps, { "layer.bias": 41, "layer.weight": 41 });
  assert.deepEqual([...(state.slots["exp_avg"]?.["layer.bias"]?.data ?? [])], [0.5, -0.25, 0.125]);

  const own = { "layer.weight": [2, 3], "layer.bias": [3] };
  const call = { optimizer: { name: "adamw" }, params: writeTensors(randomTensors(own, 5)), grads: writeTensors(randomTensors(own, 6)) };
  const stored = await service.call<Result>("optimizer.step", { ...call, state: file });
  const rewritten = await service.call<Result>("optimizer.step", { ...call, state: writeState(state) });
  assert.deepEqual(Buffer.from(stored.params), Buffer.from(rewritten.params));
  assert.deepEqual(Buffer.from(stored.state), Buffer.from(rewritten.state));
  assert.deepEqual(readState(stored.state).steps, { "layer.bias": 42, "layer.weight": 42 });
});
