/** Tests properties of schedules that do not depend on any peer: ends, periods, late steps, equal bits everywhere. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";
import { evaluate, prepare, registry } from "../../src/schedules/registry.ts";
import { examples, type Given } from "../support/schedules.ts";

const LR = 0.1;
const LATE_STEPS = [1e6, 2 ** 32 + 1, 2 ** 53 - 1];

const lr = (schedule: Given, step: number): number => evaluate(schedule, LR, step).lr;
const momentum = (schedule: Given, step: number): number | undefined => evaluate(schedule, LR, step).momentum;

test("the examples cover every schedule", () => {
  assert.deepEqual([...new Set(examples.map(({ name }) => name))].sort(), [...registry.keys()].sort());
});

test("the first 500 values of all examples have a pinned digest, so their bits are the same on every machine", () => {
  const hash = createHash("sha256");
  for (const schedule of examples) {
    const at = prepare(schedule);
    const values = Array.from({ length: 500 }, (_, step) => at(LR, step)).flatMap((rates) => [rates.lr, rates.momentum ?? -1]);
    const view = new DataView(new ArrayBuffer(8 * values.length));
    values.forEach((value, index) => {
      view.setFloat64(8 * index, value);
    });
    hash.update(view);
  }
  assert.equal(hash.digest("hex"), "21b356e1bda2169c780cc3ef4506c227b21be266793df234894294ca2205fb8a");
});

for (const schedule of examples) {
  test(`${JSON.stringify(schedule)} depends only on the step, and has values at late steps`, () => {
    const at = prepare(schedule);
    const forward = Array.from({ length: 500 }, (_, step) => at(LR, step));
    for (let step = 499; step >= 0; step--) assert.deepEqual(evaluate(schedule, LR, step), forward[step]);
    if (schedule.name === "one_cycle") return;
    for (const step of LATE_STEPS) {
      const { lr: late } = at(LR, step);
      assert.ok(late >= 0 && late <= 0.3, `${late} at step ${step}`);
    }
  });
}

test("a schedule with factor 1 or gamma 1 gives the base rate, bit for bit", () => {
  for (const schedule of [
    { name: "constant", factor: 1 },
    { name: "step", step_size: 3, gamma: 1 },
    { name: "multistep", milestones: [1, 5], gamma: 1 },
    { name: "exponential", gamma: 1 },
    { name: "linear", start_factor: 1 },
    { name: "polynomial", power: 0 },
    { name: "cosine", T_max: 7, eta_min: LR },
  ])
    for (const step of [0, 1, 4, 17, ...LATE_STEPS]) assert.equal(lr(schedule, step), LR, `${schedule.name} at ${step}`);
});

test("constant gives the factor up to total_iters, then the base rate; total_iters 0 gives the base rate", () => {
  const schedule = { name: "constant", factor: 0.5, total_iters: 3 };
  assert.deepEqual(
    [0, 2, 3, 4, 2 ** 53 - 1].map((step) => lr(schedule, step)),
    [LR / 2, LR / 2, LR, LR, LR],
  );
  assert.equal(lr({ ...schedule, total_iters: 0 }, 0), LR);
});

test("step and multistep decay at the step itself; a milestone listed twice decays twice, one at 0 from the start", () => {
  const close = (found: number, expected: number): void => assert.ok(Math.abs(found - expected) < 1e-15 * expected, `${found}, not ${expected}`);
  for (const [step, expected] of [0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.025].entries()) close(lr({ name: "step", step_size: 3, gamma: 0.5 }, step), expected);
  const twice = { name: "multistep", milestones: [0, 2, 2], gamma: 0.5 };
  for (const [step, expected] of [0.05, 0.05, 0.0125, 0.0125].entries()) close(lr(twice, step), expected);
  close(lr({ name: "multistep", milestones: [] }, 1e6), LR);
});

test("linear and polynomial are exact at both ends, and stay at the second", () => {
  const linear = { name: "linear", start_factor: 0.3, end_factor: 0.7, total_iters: 9 };
  assert.equal(lr(linear, 0), LR * 0.3);
  for (const step of [9, 10, ...LATE_STEPS]) assert.equal(lr(linear, step), LR * 0.7);
  assert.equal(lr({ name: "linear", start_factor: 0 }, 0), 0);
  const polynomial = { name: "polynomial", total_iters: 9, power: 0.9 };
  assert.equal(lr(polynomial, 0), LR);
  for (const step of [9, 10, ...LATE_STEPS]) assert.equal(lr(polynomial, step), 0);
});

test("cosine falls to eta_min at T_max, rises again, and has the period 2 T_max, bit for bit", () => {
  const schedule = { name: "cosine", T_max: 33, eta_min: 0.01 };
  assert.equal(lr(schedule, 0), LR);
  assert.equal(lr(schedule, 33), 0.01);
  assert.equal(lr(schedule, 66), LR);
  for (let step = 0; step <= 66; step++) {
    assert.equal(lr(schedule, step), lr(schedule, 66 - step));
    assert.equal(lr(schedule, step), lr(schedule, step + 66 * 2 ** 40));
  }
});

test("cosine_warm_restarts restarts at the base rate after T_0 * (1 + T_mult + ...) steps", () => {
  const schedule = { name: "cosine_warm_restarts", T_0: 5, T_mult: 2 };
  const restarts = [0, 5, 15, 35, 75, 5 * (2 ** 45 - 1)];
  for (const step of restarts) assert.equal(lr(schedule, step), LR, `step ${step}`);
  for (const step of restarts.slice(1)) assert.ok(lr(schedule, step - 1) < 0.1 * LR, `step ${step - 1}`);
  assert.equal(lr({ ...schedule, T_mult: 1 }, 5 * 2 ** 40 + 3), lr(schedule, 3));
});

test("one_cycle reaches its rates and momentums at the ends of its phases, for any base rate", () => {
  const two = { name: "one_cycle", max_lr: 0.5, total_steps: 101, pct_start: 50 / 101, div_factor: 20, final_div_factor: 50 };
  assert.deepEqual(evaluate(two, 7, 0), { peak: 0.5, lr: 0.025, momentum: 0.95 });
  assert.deepEqual(evaluate(two, 7, 49), { peak: 0.5, lr: 0.5, momentum: 0.85 });
  assert.deepEqual(evaluate(two, 7, 100), { peak: 0.5, lr: 0.025 / 50, momentum: 0.95 });
  const three = { ...two, three_phase: true, pct_start: 30 / 101, base_momentum: 0.5 };
  assert.deepEqual(evaluate(three, 7, 29), { peak: 0.5, lr: 0.5, momentum: 0.5 });
  assert.deepEqual(evaluate(three, 7, 58), { peak: 0.5, lr: 0.025, momentum: 0.95 });
  for (let step = 59; step < 101; step++) assert.equal(momentum(three, step), 0.95);
  assert.equal(momentum({ ...two, cycle_momentum: false }, 5), undefined);
});

test("one_cycle has a rate in every step for every length, even if a phase has no step", () => {
  for (const three_phase of [false, true])
    for (const pct_start of [0, 0.1, 0.3, 0.5, 0.9, 1])
      for (let total_steps = 1; total_steps < 25; total_steps++)
        for (let step = 0; step < total_steps; step++) {
          const { lr: found, momentum: other } = evaluate({ name: "one_cycle", max_lr: 1, total_steps, pct_start, three_phase } as Given, LR, step);
          const label = `${JSON.stringify({ three_phase, pct_start, total_steps, step })}: ${found}, ${other}`;
          assert.ok(found >= 0.04 / 1e4 && found <= 1 && (other ?? 0) >= 0.85 && (other ?? 0) <= 0.95, label);
        }
});

test("cyclic is at base_lr and max_lr at its turning points, with the momentum opposite", () => {
  const schedule = { name: "cyclic", base_lr: 0.01, max_lr: 0.3, step_size_up: 13, step_size_down: 5 };
  for (const cycle of [0, 18, 180, 18 * 2 ** 40]) {
    assert.deepEqual(evaluate(schedule, 7, cycle), { peak: 0.3, lr: 0.01, momentum: 0.9 });
    assert.deepEqual(evaluate(schedule, 7, cycle + 13), { peak: 0.3, lr: 0.3, momentum: 0.8 });
  }
  assert.equal(lr({ ...schedule, step_size_down: null }, 26), 0.01);
  const halved = { ...schedule, mode: "triangular2" };
  assert.ok(Math.abs(lr(halved, 18 + 13) - (0.01 + 0.29 / 2)) < 1e-15);
  assert.equal(lr(halved, 18 * 2 ** 40 + 13), 0.01);
  const shrinking = { ...schedule, mode: "exp_range", gamma: 0.9 };
  assert.ok(Math.abs(lr(shrinking, 13) - (0.01 + 0.29 * 0.9 ** 13)) < 1e-15);
});

test("a sequence switches at its milestones, and each part starts at its own step 0 and the base rate", () => {
  const parts: readonly Given[] = [
    { name: "linear", start_factor: 0.25, total_iters: 5 },
    { name: "exponential", gamma: 0.9 },
    { name: "cosine", T_max: 10 },
  ];
  const schedule = { name: "sequence", schedules: parts, milestones: [5, 12] };
  for (let step = 0; step < 30; step++) {
    const [index, start] = step < 5 ? [0, 0] : step < 12 ? [1, 5] : [2, 12];
    assert.equal(lr(schedule, step), lr(parts[index] as Given, step - start), `step ${step}`);
  }
  // The schedule is a warm-up to the base rate, followed by a schedule that starts at the base rate. There is no jump between
  // them.
  assert.equal(lr(schedule, 5), LR);
});

test("a nested sequence equals the sequence of its parts", () => {
  const [a, b, c] = [{ name: "linear" }, { name: "step", step_size: 4 }, { name: "exponential", gamma: 0.5 }];
  const inner = { name: "sequence", schedules: [a, b], milestones: [6] };
  const nested = { name: "sequence", schedules: [inner, c], milestones: [20] };
  const flat = { name: "sequence", schedules: [a, b, c], milestones: [6, 20] };
  for (let step = 0; step < 40; step++) assert.equal(lr(nested, step), lr(flat, step));
});
