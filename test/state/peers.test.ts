/**
 * Tests the golden vectors as files of their peers: import the peer's state, take a step, export, and compare with the peer's
 * next state.
 */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { TestService } from "../support/service.ts";
import { writeTensors } from "../support/tensors.ts";
import { type Case, settings, tensors, ulp, vectorFiles } from "../support/vectors.ts";
import { formatOf, mostSteps, peerState, readEntries, writeEntries } from "./_foreign.ts";

const MAX_ULPS = 8;

/** qhoptim sums up its weights step by step, so they differ from the exact weights by this much. */
const MAX_WEIGHT_ERROR = 1e-12;

/** What a peer keeps for a group, including parameters without a gradient. */
const OF_GROUPS: Readonly<Record<string, RegExp>> = { timm: /\.step$/, prodigyopt: /\.(step|d|d_max|d_numerator|k)$/ };

let service: TestService;
before(async () => {
  service = await TestService.start();
});
after(() => service[Symbol.asyncDispose]());

interface Reply {
  readonly state: Uint8Array;
  readonly lost: readonly string[];
}

/** Returns a lower bound of a moment's spacing in bias-corrected form: float32's spacing divided by the correction. */
const minimumSpacing = (key: string, weight: number | undefined, betas: readonly number[]): number => {
  const beta = betas[key.endsWith("exp_avg_sq") ? 1 : 0] ?? 0;
  return 2 ** -149 / (weight === undefined || weight === 0 ? 1 : weight * (1 - beta));
};

const oneStep = async (testCase: Case): Promise<void> => {
  const names = Object.keys(testCase.initial).sort();
  const format = formatOf(testCase);
  const betas = testCase.hyperparameters["betas"] as readonly [number, number] | undefined;
  const shared = { format, ...(format !== "optax" && { names }), ...(format === "qhoptim" && betas && { betas }) };
  for (const [index, current] of testCase.steps.entries()) {
    const { optimizer, groups } = settings(testCase, current);
    const old = peerState(testCase, index, names);
    let state: Uint8Array | null = null;
    if (index > 0) {
      const from = { ...shared, optimizer: testCase.optimizer, step: mostSteps(testCase, index) };
      ({ state } = await service.call<Reply>("state.convert", { state: writeEntries(old), from }));
    }
    const params = writeTensors(tensors(index === 0 ? testCase.initial : (testCase.steps[index - 1]?.f32.params ?? {})));
    const grads = writeTensors(tensors(current.grads));
    const stepped = await service.call<Reply>("optimizer.step", { optimizer, groups, params, grads, state, non_finite: "propagate" });
    const exported = await service.call<Reply>("state.convert", { state: stepped.state, to: shared });
    const found = readEntries(exported.state);
    const expected = peerState(testCase, index + 1, names);
    // The slot z of the schedule-free optimizers starts as a copy of the parameter.
    const start = (key: string, i: number): number =>
      key.endsWith(".z") ? (tensors(testCase.initial)[names[Number(key.split(".")[1])] ?? ""]?.data[i] ?? 0) : 0;
    const where = `${testCase.name} step ${index + 1}`;
    // stepd keeps a qhoptim parameter only after its first gradient, and an optax count only for optimizers whose state has a
    // count.
    if (!("count" in expected)) delete found["count"];
    assert.deepEqual(Object.keys(found).sort(), Object.keys(expected).sort(), where);
    for (const [key, { values, dtype, shape }] of Object.entries(expected)) {
      if (OF_GROUPS[testCase.peer]?.test(key)) continue;
      assert.deepEqual([found[key]?.dtype, found[key]?.shape], [dtype, shape], `${where} ${key}`);
      const weight = found[key.replace(/exp_avg(_sq)?$/, (slot) => (slot === "exp_avg" ? "beta1_weight" : "beta2_weight"))]?.values[0];
      const least = format === "qhoptim" && key.includes("exp_avg") ? minimumSpacing(key, weight, betas ?? []) : 0;
      for (const [i, value] of values.entries()) {
        const ours = found[key]?.values[i] as number;
        if (!Number.isFinite(value)) assert.equal(ours, value, `${where} ${key}[${i}]`);
        else if (dtype === "F64") assert.ok(Math.abs(ours - value) <= MAX_WEIGHT_ERROR * value, `${where} ${key}: ${ours}, not ${value}`);
        else {
          const before = old[key]?.values[i] ?? start(key, i);
          const unit = Math.max(ulp(Math.max(Math.abs(value), Math.abs(before))), least);
          assert.ok(Math.abs(ours - value) <= MAX_ULPS * unit, `${where} ${key}[${i}]: ${ours}, not ${value}`);
        }
      }
    }
  }
};

for (const [file, cases] of vectorFiles) {
  // state.convert has no format for these states of optax.
  if (["adafactor.optax", "prodigy.optax", "rmsprop.optax"].includes(file)) continue;
  suite(file, () => {
    for (const testCase of cases) test(`${testCase.name} matches the peer's next state`, () => oneStep(testCase));
  });
}
