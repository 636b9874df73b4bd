/** Tests F64 parameters: every case of the vectors, run from the start, stays within 1e-12 of the peer's float64 run. */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { TestService } from "../support/service.ts";
import { readTyped, type Typed, writeTyped } from "../support/typed.ts";
import { type Case, gradientCounts, settings, values, vectorFiles } from "../support/vectors.ts";

const MAX_RELATIVE = 1e-12;

let service: TestService;
before(async () => {
  service = await TestService.start();
});
after(() => service[Symbol.asyncDispose]());

const typed = (raw: Case["initial"]): Record<string, Typed> =>
  Object.fromEntries(Object.entries(raw).map(([name, array]) => [name, { dtype: "F64", shape: array.shape, values: [...values(array)] }]));

const run = async (testCase: Case): Promise<void> => {
  let params = writeTyped(typed(testCase.initial));
  let state: Uint8Array | null = null;
  for (const [index, current] of testCase.steps.entries()) {
    const reply: { params: Uint8Array; state: Uint8Array } = await service.call("optimizer.step", {
      ...settings(testCase, current),
      params,
      grads: writeTyped(typed(current.grads)),
      state,
      non_finite: "propagate",
    });
    params = Buffer.from(reply.params);
    state = reply.state;
    const counts = gradientCounts(testCase, index + 1);
    for (const [name, { values: found }] of Object.entries(readTyped(params))) {
      // timm counts steps per group, and stepd counts them per tensor. After a missing gradient their bias corrections differ.
      if (testCase.peer === "timm" && counts[name] !== index + 1) continue;
      const expected = Float64Array.from(values(current.f64.params[name] as Case["initial"][string]));
      const scale = expected.reduce((most, value) => (Number.isFinite(value) ? Math.max(most, Math.abs(value)) : most), 0);
      for (const [i, value] of found.entries()) {
        const truth = expected[i] as number;
        if (!Number.isFinite(truth)) assert.equal(value, truth, `${testCase.name} step ${index + 1} ${name}[${i}]`);
        else assert.ok(Math.abs(value - truth) <= MAX_RELATIVE * scale, `${testCase.name} step ${index + 1} ${name}[${i}]: ${value}, not ${truth}`);
      }
    }
  }
};

for (const [file, cases] of vectorFiles) {
  suite(file, () => {
    // torch's Muon iterates in bfloat16, and optax computes Adafactor's t^-decay_rate in float32. muon.test.ts and adafactor.test.ts compare
    // ours with the formulas in float64.
    if (file === "muon.torch" || file === "adafactor.optax") return;
    for (const testCase of cases) test(`${testCase.name} is within 1e-12 of the peer`, () => run(testCase));
  });
}
