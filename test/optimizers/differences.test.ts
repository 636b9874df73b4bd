/** Tests differences that may round below zero before a root or a division: results stay finite and close to float64. */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { registry } from "../../src/optimizers/registry.ts";
import { MAX_SCALARS } from "../../src/pool/_job.ts";
import type { StepReply } from "../support/run.ts";
import { JSON_TYPE, TestService } from "../support/service.ts";
import { readTensors, type TestState, writeState, writeTensors } from "../support/tensors.ts";
import { variants } from "../support/variants.ts";

let service: TestService;
before(async () => {
  service = await TestService.start();
});
after(() => service[Symbol.asyncDispose]());

suite("rmsprop, centered", () => {
  const lr = 0.01;
  const alpha = 0.99;
  const eps = 1e-8;
  const optimizer = { name: "rmsprop", centered: true, lr };

  /** Takes one step in float64. Returns the parameter's change and the new averages. */
  const stepOf = (squareAvg: number, gradAvg: number, g: number) => {
    const s = alpha * squareAvg + (1 - alpha) * g * g;
    const h = alpha * gradAvg + (1 - alpha) * g;
    return { s, h, change: (lr * g) / (Math.sqrt(Math.max(s - h * h, 0)) + eps) };
  };

  test("centered rmsprop stays finite where float32 averages give a negative variance", async () => {
    const gradient = 16.031227111816406;
    const [gradAvg, squareAvg] = [16.031322479248047, 257.0033264160156];
    const one = (value: number) => ({ w: { shape: [1], data: Float32Array.of(value) } });
    const state: TestState = { optimizer: "rmsprop", steps: { w: 1537 }, slots: { grad_avg: one(gradAvg), square_avg: one(squareAvg) } };
    const call = { optimizer, params: writeTensors(one(1)), grads: writeTensors(one(gradient)), state: writeState(state) };
    const { params } = await service.call<StepReply>("optimizer.step", call);
    const expected = 1 - stepOf(squareAvg, gradAvg, gradient).change;
    const found = readTensors(params)["w"]?.data[0] as number;
    assert.ok(Math.abs(found - expected) < 1e-4, `${found}, not ${expected}`);
    // The same step is sent as JSON too.
    const values = (value: number) => ({ w: { shape: [1], values: [value] } });
    const json = JSON.stringify({ optimizer, params: values(1), grads: values(gradient), state: writeState(state).toString("base64") });
    const reply = (await (await service.post("/v1/step", json, JSON_TYPE)).json()) as { params: { w: { values: number[] } } };
    assert.equal(reply.params.w.values[0], found);
  });

  test("centered rmsprop takes a variance below 0 for 0", async () => {
    const seven = (value: number) => ({ w: { shape: [7], data: new Float32Array(7).fill(value) } });
    const state: TestState = { optimizer: "rmsprop", steps: { w: 9 }, slots: { grad_avg: seven(1), square_avg: seven(0) } };
    const call = { optimizer: { ...optimizer, eps: 1 }, params: writeTensors(seven(1)), grads: writeTensors(seven(1)), state: writeState(state) };
    const { params } = await service.call<StepReply>("optimizer.step", call);
    assert.deepEqual(readTensors(params)["w"]?.data, new Float32Array(7).fill(1 - lr));
  });

  test("centered rmsprop on gradients that shrink to a constant stays near float64 while float32 can, and finite afterwards", async () => {
    const size = 256;
    const shrinkAt = 300;
    const grads = Float32Array.from({ length: size }, (_, i) => (i + 1) / 7);
    const file = (factor: number) => writeTensors({ w: { shape: [size], data: grads.map((g) => factor * g) } });
    const [before, behind] = [file(2), file(1)];
    let reply: StepReply = { params: writeTensors({ w: { shape: [size], data: new Float32Array(size) } }), state: new Uint8Array(), step: 0 };
    const truth = Array.from(grads, () => ({ s: 0, h: 0, p: 0 }));
    for (let step = 0; step < 3000; step++) {
      const state = step === 0 ? null : reply.state;
      reply = await service.call<StepReply>("optimizer.step", { optimizer, params: reply.params, grads: step < shrinkAt ? before : behind, state });
      if (step >= 500) continue;
      truth.forEach((element, i) => {
        const { s, h, change } = stepOf(element.s, element.h, (step < shrinkAt ? 2 : 1) * (grads[i] as number));
        Object.assign(element, { s, h, p: element.p - change });
      });
      if (step < 499) continue;
      for (const [i, found] of (readTensors(reply.params)["w"]?.data ?? []).entries())
        assert.ok(Math.abs(found / (truth[i]?.p as number) - 1) < 1e-3, `${i}: ${found}, not ${truth[i]?.p}`);
    }
    assert.ok(readTensors(reply.params)["w"]?.data.every(Number.isFinite));
  });
});

/** The largest decay rate below 1. */
const LARGEST_BETA = 1 - 2 ** -53;

const BETAS = [0, 5e-324, 1e-300, 0.5, 0.9, 0.999, 1 - 1e-12, LARGEST_BETA];
const STEPS = [1, 2, 3, 10, 1e6, 2 ** 31, Number.MAX_SAFE_INTEGER];

/** Returns all tuples of `length` decay rates. */
const tuplesOf = (length: number): readonly (readonly number[])[] =>
  length === 0 ? [[]] : tuplesOf(length - 1).flatMap((tuple) => BETAS.map((beta) => [...tuple, beta]));

suite("scalars are finite for all decay rates and step counts", () => {
  for (const { label, optimizer } of variants) {
    test(`scalars of ${label}`, () => {
      const definition = registry.get(optimizer.name);
      assert.ok(definition);
      const defaults = Object.fromEntries(
        Object.entries(definition.hyperparameters).map(([name, { default: value }]: [string, { default?: unknown }]) => [name, value]),
      );
      const { name: _, ...given } = optimizer;
      const { default: ownBetas = [] } = (definition.hyperparameters as { betas?: { default: readonly number[] } }).betas ?? {};
      for (const betas of ownBetas.length > 0 ? tuplesOf(ownBetas.length) : [undefined]) {
        const values = { ...defaults, ...given, ...(betas && { betas }) } as never;
        for (const step of STEPS) {
          const at = { step, lr: 1e-3, isFirst: step === 1, elements: 7, sums: [[3, 5]], allSums: [[1, 1]], scalarSlots: {} };
          for (const { kernel, scalars } of definition.stages(values, [])) {
            const found = scalars(at);
            assert.ok(found.length <= MAX_SCALARS);
            assert.ok(found.every(Number.isFinite), `${kernel}: ${found} with betas ${betas} at step ${step}`);
          }
          const slots = definition.nextScalarSlots?.(values, at) ?? {};
          assert.ok(Object.values(slots).every((value) => value >= 0 && Number.isFinite(value)));
          assert.ok((slots["mu_product"] ?? 0) < 1);
        }
      }
    });
  }
});
