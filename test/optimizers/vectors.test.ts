/**
 * Compares the running service with the golden vectors of independent peers. One-step tests start each step from the peer's
 * float32 parameters and state. Tests from the start compare stepd's error with the peer's own error, both against the peer's
 * float64 run.
 */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { optaxStep } from "../support/optax.ts";
import { TestService } from "../support/service.ts";
import { readState, readTensors, type TestState, type TestTensors, writeState, writeTensors } from "../support/tensors.ts";
import { averagesAfter, type Case, gradientCounts, settings, slotsAfter, stateAfter, tensors, ulp, values, vectorFiles } from "../support/vectors.ts";

/** The allowed difference from the peer's parameters and moments, in ulp of the larger of the old and the new value. */
const MAX_ULPS = 8;

/** The allowed RMS error relative to the peer's: over all cases of a file, and in any single case. */
const MAX_POOLED = 1.05;
const MAX_SINGLE = 1.5;

let service: TestService;
before(async () => {
  service = await TestService.start();
});
after(() => service[Symbol.asyncDispose]());

interface Reply {
  readonly params: Uint8Array;
  readonly state: Uint8Array;
}

const step = (testCase: Case, index: number, params: TestTensors, state: Uint8Array | null): Promise<Reply> => {
  const current = testCase.steps[index];
  if (!current) throw new Error(`no step ${index}`);
  return service.call("optimizer.step", {
    ...settings(testCase, current),
    params: writeTensors(params),
    grads: writeTensors(tensors(current.grads)),
    state,
    non_finite: "propagate",
  });
};

/** Returns the peer's float32 parameters after `count` steps. */
const paramsAfter = (testCase: Case, count: number): TestTensors => tensors(count === 0 ? testCase.initial : (testCase.steps[count - 1]?.f32.params ?? {}));

/** torch's muon iterates in bfloat16, so its parameters differ by up to this fraction of the largest step of an element. */
const ROUGH = 2.5e-2;

/** Returns the allowed difference of parameters, in addition to the ulp. */
const toleranceOf = ({ optimizer, hyperparameters }: Case, name: string, shape: readonly number[]): number => {
  if (optimizer !== "muon") return 0;
  const { lr, adjust_lr_fn } = hyperparameters as { lr: number; adjust_lr_fn: string | null };
  const [rows = 1, columns = 1] = shape;
  assert.ok(shape.length === 2, name);
  if (adjust_lr_fn === "match_rms_adamw") return ROUGH * lr * 0.2 * Math.sqrt(Math.max(rows, columns));
  return ROUGH * lr * Math.sqrt(adjust_lr_fn === "spectral_unclamped" ? rows / columns : Math.max(1, rows / columns));
};

/** Compares element by element. NaN and infinities must match exactly. */
const requireClose = (where: string, found: ArrayLike<number>, expected: ArrayLike<number>, old: ArrayLike<number> | undefined, tolerance = 0): void => {
  assert.equal(found.length, expected.length, where);
  for (let i = 0; i < expected.length; i++) {
    const a = found[i] as number;
    const b = expected[i] as number;
    if (!Number.isFinite(Math.fround(b))) {
      assert.equal(a, Math.fround(b), `${where}[${i}]`);
      continue;
    }
    const unit = ulp(Math.max(Math.abs(b), Math.abs((old?.[i] as number | undefined) ?? 0)) || 0);
    assert.ok(Math.abs(a - b) <= MAX_ULPS * unit + tolerance, `${where}[${i}]: ${a}, not ${b}: ${Math.abs(a - b) / unit} ulp`);
  }
};

/** For these optimizers, optax and Keras compute 1 - beta^t in float32. */
const IMPRECISE = { optax: ["adam", "adamw", "lamb", "yogi", "adabelief"], keras: ["adam", "adamw"] };

const isImprecise = ({ peer, optimizer }: Case): boolean => IMPRECISE[peer as keyof typeof IMPRECISE]?.includes(optimizer) ?? false;

/**
 * Returns the expected parameters of a step: the peer's float32 values, or its formula in float64 if the peer itself is
 * imprecise.
 */
const expectedAfter = (testCase: Case, index: number, params: TestTensors, state: TestState | null): Readonly<Record<string, ArrayLike<number>>> => {
  const current = testCase.steps[index];
  const names = Object.keys(params);
  if (!current || !isImprecise(testCase)) {
    const after = paramsAfter(testCase, index + 1);
    return Object.fromEntries(names.map((name) => [name, after[name]?.data ?? []]));
  }
  const { optimizer } = settings(testCase, current);
  const undecayed = (testCase.hyperparameters["no_decay"] ?? []) as readonly string[];
  const grads = tensors(current.grads);
  return Object.fromEntries(
    names.map((name) => [name, optaxStep(optimizer as unknown as Parameters<typeof optaxStep>[0], name, params, grads, state, !undecayed.includes(name))]),
  );
};

const oneStep = async (testCase: Case): Promise<void> => {
  for (let index = 0; index < testCase.steps.length; index++) {
    const params = paramsAfter(testCase, index);
    const state = stateAfter(testCase, index);
    const reply = await step(testCase, index, params, state && writeState(state));
    const where = `${testCase.name} step ${index + 1}`;
    const expected = expectedAfter(testCase, index, params, state);
    for (const [name, { data, shape }] of Object.entries(readTensors(reply.params))) {
      requireClose(`${where} ${name}`, data, expected[name] ?? [], params[name]?.data, toleranceOf(testCase, name, shape));
    }
    const { slots, steps } = readState(reply.state);
    for (const [slot, byName] of Object.entries(slotsAfter(testCase, index + 1, "f32"))) {
      for (const [name, data] of Object.entries(byName)) {
        // The slot z of the schedule-free optimizers starts as a copy of the parameter.
        const old = state?.slots[slot]?.[name]?.data ?? (slot === "z" ? params[name]?.data : undefined);
        requireClose(`${where} ${slot}/${name}`, slots[slot]?.[name]?.data ?? [], data, old);
      }
    }
    await requireAverages(testCase, index, where);
    const before = state?.steps ?? {};
    for (const name of Object.keys(testCase.steps[index]?.grads ?? {})) assert.equal(steps[name], (before[name] ?? 0) + 1, `${where} step/${name}`);
  }
};

/** Compares optimizer.average with the peer's averages, which it computes from its parameters and state. */
const requireAverages = async (testCase: Case, index: number, where: string): Promise<void> => {
  const expected = averagesAfter(testCase, index + 1, "f32");
  const current = testCase.steps[index];
  if (!expected || !current) return;
  const params = paramsAfter(testCase, index + 1);
  const { params: averages } = await service.call<{ params: Uint8Array }>("optimizer.average", {
    optimizer: settings(testCase, current).optimizer,
    params: writeTensors(params),
    state: writeState(stateAfter(testCase, index + 1) as TestState),
  });
  for (const [name, { data }] of Object.entries(readTensors(averages))) requireClose(`${where} x/${name}`, data, expected[name] ?? [], params[name]?.data);
};

interface Errors {
  ours: number;
  peer: number;
}

/** Returns the sums of squared parameter errors against the float64 run, in units of the learning rate. */
const fromStart = async (testCase: Case): Promise<Errors> => {
  const errors: Errors = { ours: 0, peer: 0 };
  let params = paramsAfter(testCase, 0);
  let state: Uint8Array | null = null;
  for (let index = 0; index < testCase.steps.length; index++) {
    const reply = await step(testCase, index, params, state);
    params = readTensors(reply.params);
    state = reply.state;
    const current = testCase.steps[index];
    const counts = gradientCounts(testCase, index + 1);
    const unit = current?.lr || (testCase.hyperparameters["lr"] as number) || 1;
    for (const [name, { data }] of Object.entries(params)) {
      // timm counts steps per group, and stepd counts them per tensor, as torch does. After a missing gradient their bias
      // corrections differ.
      if (testCase.peer === "timm" && counts[name] !== index + 1) continue;
      const truth = values(current?.f64.params[name] ?? { dtype: "f64", shape: [], b64: "" });
      const peer = values(current?.f32.params[name] ?? { dtype: "f32", shape: [], b64: "" });
      for (let i = 0; i < data.length; i++) {
        const exact = truth[i] as number;
        if (!Number.isFinite(exact)) {
          assert.equal(data[i], Math.fround(exact), `${testCase.name} step ${index + 1} ${name}[${i}]`);
          continue;
        }
        errors.ours += (((data[i] as number) - exact) / unit) ** 2;
        errors.peer += (((peer[i] as number) - exact) / unit) ** 2;
      }
    }
  }
  return errors;
};

const ratio = ({ ours, peer }: Errors): number => (peer === 0 && ours === 0 ? 1 : Math.sqrt(ours / peer));

for (const [file, cases] of vectorFiles) {
  suite(file, () => {
    for (const testCase of cases) test(`${testCase.name} matches the peer, one step at a time`, () => oneStep(testCase));

    // muon.test.ts compares muon with float64, because torch rounds to bfloat16 in both runs.
    if (file === "muon.torch") return;
    test("from the start, the error against float64 does not exceed the peer's", async () => {
      const pooled: Errors = { ours: 0, peer: 0 };
      for (const testCase of cases.filter(({ f32_range }) => !f32_range)) {
        const errors = await fromStart(testCase);
        pooled.ours += errors.ours;
        pooled.peer += errors.peer;
        assert.ok(ratio(errors) <= MAX_SINGLE, `${testCase.name}: ${ratio(errors)} times the peer's error`);
      }
      assert.ok(ratio(pooled) <= MAX_POOLED, `all cases: ${ratio(pooled)} times the peer's error`);
    });
  });
}
