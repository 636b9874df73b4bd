/**
 * Tests state.convert to a format and back: equal bytes if the format can hold the state, and otherwise the differences in
 * `lost`.
 */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { run, SMALL } from "../support/run.ts";
import { requireSame } from "../support/same.ts";
import { JSON_TYPE, TestService } from "../support/service.ts";
import { random, readFile, readTensors, writeTensors } from "../support/tensors.ts";
import { variants } from "../support/variants.ts";
import { type Entries, type Entry, type Format, f32, f64, readEntries, scalar, writeEntries } from "./_foreign.ts";

let service: TestService;
before(async () => {
  service = await TestService.start();
});
after(() => service[Symbol.asyncDispose]());

interface Converted {
  readonly state: Uint8Array;
  readonly lost: readonly string[];
}

const convert = (params: Readonly<Record<string, unknown>>): Promise<Converted> => service.call("state.convert", params);

const NAMES = Object.keys(SMALL).sort();
const STEPS = 3;
const BETAS = [0.9, 0.999];

const metadata = (optimizer: string) => ({ format: "stepd.state/1", optimizer, revision: "1" });

/** Returns a stepd state built from entries. */
const stateOf = (optimizer: string, entries: Entries): Buffer => writeEntries(entries, metadata(optimizer));

const requireBytes = (found: Uint8Array, expected: Uint8Array, what: string): void => assert.ok(Buffer.compare(found, expected) === 0, `${what}: other bytes`);

/** For each format, a pattern for the optimizers whose state the format can hold. */
const CONVERTIBLE: Readonly<Record<Format, RegExp>> = {
  torch: /./,
  qhoptim: /^(sgd|qhm|adamw?|qhadamw?|lamb|nadam|radam)$/,
  optax: /^(sgd|lars|lion|adamw?|qhadamw?|lamb|nadam|radam)$/,
};

/** Returns patterns for the sentences in `lost` after a conversion to a format. */
const expectedLosses = (format: Format, optimizer: string, slots: readonly string[]): readonly RegExp[] => {
  const isAdam = CONVERTIBLE.qhoptim.test(optimizer) && !/^(sgd|qhm)$/.test(optimizer);
  return [
    ...(slots.includes("max_exp_avg_sq") && format !== "torch" ? [/has nothing that corresponds to max_exp_avg_sq: "b", "big"/] : []),
    ...(!isAdam && (format === "qhoptim" || (format === "torch" && /^(sgd|qhm|lars|lion|signum)$/.test(optimizer)))
      ? [/keeps no step of .*from.step 3: "b", "big"/]
      : []),
    ...(optimizer === "nadam" ? [format === "torch" ? /keeps mu_product in float32/ : /has nothing that corresponds to mu_product/] : []),
    ...(optimizer === "asgd" ? [/keeps eta in float32/] : []),
    ...(slots.length === 0 ? [/has no entry for a parameter that has no slots there/] : []),
    ...(isAdam && format === "qhoptim" ? [/^qhoptim keeps bias-corrected moments: \d+ of 2082 values are rounded/] : []),
  ];
};

/** Returns the number of differing values in two files with equal keys. */
const countDifferences = (found: Entries, expected: Entries): number => {
  let differences = 0;
  for (const [key, { values }] of Object.entries(expected)) {
    for (const [i, value] of values.entries()) {
      const other = found[key]?.values[i] as number;
      if (Object.is(other, value)) continue;
      differences++;
      assert.ok(Math.abs(other - value) <= Math.abs(value) * 2 ** -22, `${key}[${i}]: ${other}, not ${value}`);
    }
  }
  return differences;
};

for (const format of ["torch", "qhoptim", "optax"] as const) {
  suite(`state.convert to ${format} and back`, () => {
    for (const { label, optimizer } of variants) {
      if (!CONVERTIBLE[format].test(optimizer.name)) continue;
      test(`${label} keeps its state, or reports the loss`, async () => {
        const { state } = await run(service, { optimizer, shapes: SMALL, steps: STEPS });
        const slots = [...new Set([...readFile(state).entries.keys()].map((key) => key.split("/")[0] as string))].filter(
          (slot) => slot !== "step" && slot !== "mu_product",
        );
        const convention = { format, ...(format === "qhoptim" && { betas: BETAS }) };
        const losses = expectedLosses(format, optimizer.name, slots);
        for (const shared of format === "optax" ? [convention] : [convention, { ...convention, names: NAMES }]) {
          const there = await convert({ state, to: shared });
          assert.equal(there.lost.length, losses.length, there.lost.join("\n"));
          for (const [index, pattern] of losses.entries()) assert.match(there.lost[index] as string, pattern);
          const back = await convert({ state: there.state, from: { ...shared, optimizer: optimizer.name, step: STEPS } });
          const kept = Object.fromEntries(
            Object.entries(readEntries(state)).filter(([key]) => !/^(max_exp_avg_sq|mu_product)/.test(key) || (format === "torch" && slots.length > 0)),
          );
          if (slots.length === 0 && format !== "qhoptim") assert.deepEqual(readEntries(back.state), {});
          else if (there.lost.every((sentence) => /keeps no step/.test(sentence))) requireBytes(back.state, state, label);
          else if (format === "optax") requireSame(readEntries(back.state), kept);
          else if (slots.length > 0) {
            const lostValues = there.lost.map((sentence) => Number(/: (\d+) of /.exec(sentence)?.[1] ?? 0)).reduce((sum, count) => sum + count, 0);
            const products = format === "torch" ? NAMES.length : 0;
            assert.equal(countDifferences(readEntries(back.state), kept), lostValues + products);
          }
        }
      });
    }
  });
}

/** Returns a float64 state of two parameters, one of them a scalar. */
const float64State = (optimizer: string, step: number): Buffer => {
  const next = random(3);
  const numbers = Array.from({ length: 500 }, next);
  return stateOf(optimizer, {
    "step/s": scalar("I64", step),
    "step/w": scalar("I64", step),
    "exp_avg/s": scalar("F64", next()),
    "exp_avg/w": f64(...numbers),
    "exp_avg_sq/s": scalar("F64", Math.abs(next())),
    "exp_avg_sq/w": f64(...numbers.map((value) => value * value)),
  });
};

test("float64 slots keep their bits through torch and optax, and qhoptim reports how many last bits change", async () => {
  const state = (await convert({ state: float64State("adam", 7) })).state;
  for (const format of ["torch", "optax"]) {
    const there = await convert({ state, to: { format } });
    assert.deepEqual(there.lost, []);
    requireBytes((await convert({ state: there.state, from: { format, optimizer: "adam" } })).state, state, format);
  }
  const qhoptim = { format: "qhoptim", betas: BETAS };
  const there = await convert({ state, to: qhoptim });
  const back = await convert({ state: there.state, from: qhoptim, optimizer: "adam" });
  const lostValues = Number(/: (\d+) of 1002 /.exec(there.lost[0] ?? "")?.[1] ?? 0);
  assert.ok(lostValues > 0);
  assert.equal(countDifferences(readEntries(back.state), readEntries(state)), lostValues);
});

test("a foreign file keeps its numbers through stepd, in any order and with any dtype of steps", async () => {
  const slots: Entries = {
    "state.1.exp_avg": f32(1, -2),
    "state.1.exp_avg_sq": f32(1, 4),
    "state.0.exp_avg_sq": scalar("F32", 9),
    "state.0.exp_avg": scalar("F32", 3),
  };
  const steps = (dtype: Entry["dtype"]): Entries => ({ "state.1.step": scalar(dtype, 5), "state.0.step": scalar(dtype, 6) });
  const torch = { format: "torch", names: ["a", "b"] };
  for (const dtype of ["F32", "F64", "I64"] as const) {
    const given = writeEntries({ ...slots, ...steps(dtype) });
    const { state, lost } = await convert({ state: given, from: torch, to: torch, optimizer: "adamw" });
    assert.deepEqual(lost, []);
    requireSame(readEntries(state), { ...slots, ...steps("F32") });
    assert.deepEqual(readFile(state).metadata, { format: "torch", optimizer: "adamw" });
    requireBytes((await convert({ state, from: torch, to: torch, optimizer: "adamw" })).state, state, "its own file");
  }
});

test("names may contain dots and slashes, and need not occur in the file", async () => {
  const given = writeEntries({ "state.a.b/c.momentum_buffer": f32(1) });
  const { state } = await convert({ state: given, from: { format: "torch", step: 2 }, optimizer: "sgd" });
  requireSame(readEntries(state), { "step/a.b/c": scalar("I64", 2), "momentum_buffer/a.b/c": f32(1) });
  const { state: indexed } = await convert({ state, to: { format: "torch", names: ["x", "a.b/c", "y"] } });
  requireSame(readEntries(indexed), { "state.1.momentum_buffer": f32(1) });
});

test("BF16 slots become F32", async () => {
  const half: Entry = { dtype: "BF16", shape: [3], values: [1.5, -2, 3.140625] };
  const { state, lost } = await convert({
    state: writeEntries({ "mu/w": half, "nu/w": f32(1, 2, 3), count: scalar("I64", 4) }),
    from: { format: "optax", optimizer: "adam" },
  });
  assert.deepEqual(lost, []);
  requireSame(readEntries(state), { "step/w": scalar("I64", 4), "exp_avg/w": f32(1.5, -2, 3.140625), "exp_avg_sq/w": f32(1, 2, 3) });
});

test("JSON and MessagePack over RPC and REST give the same", async () => {
  const state = float64State("qhadam", 9);
  const to = { format: "qhoptim", betas: BETAS };
  const expected = await convert({ state, to });
  const body = JSON.stringify({ state: state.toString("base64"), to });
  const reply = (await (await service.post("/v1/state/convert", body, JSON_TYPE)).json()) as { state: string; lost: string[] };
  requireBytes(Buffer.from(reply.state, "base64"), expected.state, "JSON");
  assert.deepEqual(reply.lost, expected.lost);
});

test("a tensor larger than a slice has every element converted once", async () => {
  const values = Array.from({ length: 600_000 }, (_, index) => index % 1000);
  const state = stateOf("adam", {
    "step/w": scalar("I64", 1),
    "exp_avg/w": f32(...[0]),
    "step/big": scalar("I64", 1),
    "exp_avg/big": { dtype: "F32", shape: [600_000], values },
  });
  const { state: found } = await convert({ state, to: { format: "qhoptim", betas: [0.5, 0.999] } });
  const corrected = readEntries(found)["state.big.exp_avg"]?.values ?? [];
  assert.ok(corrected.length === 600_000 && corrected.every((value, index) => value === 2 * (index % 1000)));
});

test("torch: a step above float32's precision, master copies, and buffers before the first step are converted", async () => {
  const { state, lost } = await convert({
    state: stateOf("adamw", { "step/w": scalar("I64", 2 ** 24 + 1), "exp_avg/w": f32(1), "exp_avg_sq/w": f32(1), "master_param/w": f32(1) }),
    to: { format: "torch" },
  });
  assert.deepEqual(lost, [
    'torch has nothing that corresponds to master_param: "w"',
    'torch counts steps in float32, where 16777217 is 16777216 and nothing counts on beyond 16777216: "w"',
  ]);
  assert.deepEqual(readEntries(state)["state.w.step"]?.values, [2 ** 24]);
  const beforeFirstStep = await convert({ state: stateOf("sgd", { "step/w": scalar("I64", 0), "momentum_buffer/w": f32(0) }), to: { format: "torch" } });
  assert.match(beforeFirstStep.lost.join("\n"), /^torch has no momentum_buffer before the first step of sgd: "w"\n/);
  assert.deepEqual(readEntries(beforeFirstStep.state), {});
});

test("torch: a missing mu_product of NAdam is accepted, and reported as lost on the way back", async () => {
  const file = { "state.w.step": scalar("F32", 3), "state.w.exp_avg": f32(1), "state.w.exp_avg_sq": f32(1) };
  const { state } = await convert({ state: writeEntries(file), from: { format: "torch" }, optimizer: "nadam" });
  const { lost } = await convert({ state, to: { format: "torch" } });
  assert.deepEqual(lost, ['torch needs mu_product, which the state has only after a step of nadam: "w"']);
});

test("optax: parameters before their first step get the common count, and counts end at int32's limit", async () => {
  const slots = { "exp_avg/a": f32(1), "exp_avg/b": f32(0) };
  const mixed = await convert({ state: stateOf("lion", { "step/a": scalar("I64", 5), "step/b": scalar("I64", 0), ...slots }), to: { format: "optax" } });
  assert.deepEqual(mixed.lost, ['optax has one count, so that these go on from step 5 in place of 0: "b"']);
  requireSame(readEntries(mixed.state), { count: scalar("I32", 5), "mu/a": f32(1), "mu/b": f32(0) });
  const late = await convert({ state: stateOf("lion", { "step/a": scalar("I64", 2 ** 31), "exp_avg/a": f32(1) }), to: { format: "optax" } });
  assert.deepEqual(late.lost, ['optax counts steps in int32, where 2147483648 is 2147483647: "a"']);
  assert.deepEqual(readEntries(late.state)["count"]?.values, [2 ** 31 - 1]);
});

test("optax: the trace of lars has the opposite sign", async () => {
  const { state } = await convert({ state: writeEntries({ "trace/w": f32(1, -2, 0) }), from: { format: "optax", step: 3 }, optimizer: "lars" });
  requireSame(readEntries(state), { "step/w": scalar("I64", 3), "momentum_buffer/w": f32(-1, 2, -0) });
});

test("qhoptim: a parameter before its first step keeps weights of 0", async () => {
  const state = (await convert({ state: stateOf("qhadam", { "step/w": scalar("I64", 0), "exp_avg/w": f32(0), "exp_avg_sq/w": f32(0) }) })).state;
  const qhoptim = { format: "qhoptim", betas: BETAS };
  const there = await convert({ state, to: qhoptim });
  assert.deepEqual([there.lost, readEntries(there.state)["state.w.beta1_weight"]?.values], [[], [0]]);
  requireBytes((await convert({ state: there.state, from: qhoptim, optimizer: "qhadam" })).state, state, "step 0");
});

test("qhoptim: weights that no longer grow need a given step, which is then kept", async () => {
  const state = stateOf("qhadam", { "step/w": scalar("I64", 100_000), "exp_avg/w": f32(1), "exp_avg_sq/w": f32(1) });
  const qhoptim = { format: "qhoptim", betas: BETAS };
  const there = await convert({ state, to: qhoptim });
  await assert.rejects(convert({ state: there.state, from: qhoptim, optimizer: "qhadam" }), /\/from\/step: expected the count of steps.*none for "w"/);
  const back = await convert({ state: there.state, from: { ...qhoptim, step: 100_000 }, optimizer: "qhadam" });
  assert.deepEqual(readEntries(back.state)["step/w"]?.values, [100_000]);
  await assert.rejects(convert({ state: there.state, from: { ...qhoptim, step: 100 }, optimizer: "qhadam" }), /\/from\/step: .*as after 100 steps/);
});

suite("conversion to another optimizer", () => {
  const shared = { "step/w": scalar("I64", 3), "exp_avg/w": f32(1, 2), "exp_avg_sq/w": f32(3, 4) };
  test("keeps all slots within the family", async () => {
    const names = ["adam", "adamw", "qhadam", "qhadamw", "lamb", "nadam", "radam"];
    for (const from of names) {
      for (const to of names) {
        const { state, lost } = await convert({ state: stateOf(from, shared), optimizer: to });
        assert.deepEqual([readFile(state).metadata["optimizer"], lost], [to, []]);
        requireSame(readEntries(state), shared);
      }
    }
  });

  test("reports a slot that the other optimizer lacks as lost", async () => {
    const { state, lost } = await convert({ state: stateOf("nadam", { ...shared, "mu_product/w": scalar("F64", 0.5) }), optimizer: "adam" });
    assert.deepEqual(lost, ['adam has no slot mu_product: "w"']);
    requireSame(readEntries(state), shared);
  });

  test("reads a foreign file of one optimizer as a state of another", async () => {
    const given = writeEntries({ "mu/w": f32(1, 2), "nu/w": f32(3, 4), count: scalar("I32", 3) });
    const { state } = await convert({ state: given, from: { format: "optax", optimizer: "adamw" }, optimizer: "qhadamw" });
    assert.equal(readFile(state).metadata["optimizer"], "qhadamw");
    requireSame(readEntries(state), shared);
  });
});

suite("fill adds slots", () => {
  test("max_exp_avg_sq is a copy of exp_avg_sq, and a step with amsgrad continues from it", async () => {
    const { state, params } = await run(service, { optimizer: { name: "adam" }, shapes: SMALL, steps: 2 });
    const filled = await convert({ state, fill: ["max_exp_avg_sq"] });
    const entries = readEntries(filled.state);
    for (const name of NAMES) requireSame({ [name]: entries[`max_exp_avg_sq/${name}`] }, { [name]: entries[`exp_avg_sq/${name}`] });
    const { state: again } = await convert({ state: filled.state, fill: ["max_exp_avg_sq", "max_exp_avg_sq"] });
    requireBytes(again, filled.state, "filled twice");
    const next = await run(service, { optimizer: { name: "adam", amsgrad: true }, shapes: SMALL, steps: 1, from: 2, params, state: filled.state });
    assert.equal(next.step, 3);
  });

  test("momentum_buffer and grad_avg are zeros", async () => {
    const { state } = await run(service, { optimizer: { name: "rmsprop" }, shapes: SMALL, steps: 1 });
    const entries = readEntries((await convert({ state, fill: ["momentum_buffer", "grad_avg"] })).state);
    for (const name of NAMES) {
      for (const slot of ["momentum_buffer", "grad_avg"]) {
        const { shape, values } = entries[`${slot}/${name}`] as Entry;
        assert.deepEqual(shape, entries[`square_avg/${name}`]?.shape);
        assert.ok(values.every((value) => value === 0));
      }
    }
  });

  test("filled slots are written in the target's format", async () => {
    const given = { "state.0.step": scalar("F32", 2), "state.0.exp_avg": f32(1), "state.0.exp_avg_sq": f32(4) };
    const torch = { format: "torch", names: ["w"] };
    const { state } = await convert({ state: writeEntries(given), from: torch, to: torch, optimizer: "adam", fill: ["max_exp_avg_sq"] });
    requireSame(readEntries(state), { ...given, "state.0.max_exp_avg_sq": f32(4) });
  });
});

test("a run whose state goes through torch ends with the same bytes", async () => {
  const optimizer = { name: "adamw", amsgrad: true };
  const whole = await run(service, { optimizer, shapes: SMALL, steps: 4 });
  const half = await run(service, { optimizer, shapes: SMALL, steps: 2 });
  const torch = { format: "torch", names: NAMES };
  const { state } = await convert({ state: (await convert({ state: half.state, to: torch })).state, from: torch, optimizer: "adamw" });
  const rest = await run(service, { optimizer, shapes: SMALL, steps: 2, from: 2, params: writeTensors(readTensors(half.params)), state });
  requireBytes(rest.state, whole.state, "state");
  requireSame(readTensors(rest.params), readTensors(whole.params));
});
