/** Tests that finite input at the ends of its range gives no NaN, and takes no longer than a step. */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { TestService } from "../support/service.ts";
import { readTensors, type TestTensors, writeState, writeTensors } from "../support/tensors.ts";
import { variants } from "../support/variants.ts";

/** The square of this gradient overflows float32. */
const LARGE_GRADIENT = 1e20;

/** The limit is far longer than a step, and far shorter than a loop over 10^12 steps. */
const MAX_MILLISECONDS = 30_000;

let service: TestService;
before(async () => {
  service = await TestService.start();
});
after(() => service[Symbol.asyncDispose]());

const tensor = (...data: number[]): TestTensors => ({ w: { shape: [data.length], data: Float32Array.from(data) } });

const step = async (optimizer: unknown, grads: TestTensors, params = tensor(1, 2, 3, 4, 5), state: Uint8Array | null = null) => {
  const reply: { params: Uint8Array; state: Uint8Array } = await service.call("optimizer.step", {
    optimizer,
    params: writeTensors(params),
    grads: writeTensors(grads),
    state,
  });
  return { params: readTensors(reply.params), state: reply.state };
};

const requireNumbers = (params: TestTensors): void => {
  for (const value of params["w"]?.data ?? []) assert.ok(Number.isFinite(value), String(params["w"]?.data));
};

suite("results are finite if a gradient's square overflows, in a vector and in the tail", () => {
  for (const { label, optimizer } of variants) {
    test(label, async () => {
      const first = await step(optimizer, tensor(LARGE_GRADIENT, 1, -1, 0, -LARGE_GRADIENT));
      requireNumbers(first.params);
      requireNumbers((await step(optimizer, tensor(1, 1, 1, 1, 1), first.params, first.state)).params);
    });
  }
});

suite("results are finite with hyperparameters at the ends of their range", () => {
  const ends: readonly object[] = [
    { name: "nadam", momentum_decay: 3e38 },
    { name: "nadam", momentum_decay: 0 },
    { name: "nadam", betas: [0, 0] },
    { name: "radam", betas: [0, 0] },
    { name: "adamax", betas: [0, 0] },
    { name: "rmsprop", alpha: 0 },
    { name: "rmsprop", alpha: 1 },
    { name: "adagrad", lr_decay: 3e38 },
    { name: "adadelta", rho: 0 },
    { name: "adadelta", rho: 1 },
    { name: "lars", lr: 0, trust_coefficient: 0, trust_clip: true, always_adapt: true },
    { name: "lars", eps: 0, always_adapt: true, trust_denominator: "decayed_grad" },
    { name: "lion", betas: [0, 0], caution: true },
    { name: "schedule_free_adamw", lr: 0 },
    { name: "schedule_free_adamw", betas: [0.5, 0], r: 8, weight_lr_power: 4 },
    { name: "schedule_free_sgd", momentum: 1, warmup_steps: 3e38, weight_lr_power: 0 },
  ];
  for (const optimizer of ends) {
    test(JSON.stringify(optimizer), async () => {
      const first = await step(optimizer, tensor(1, -1, 0.5, 0.25, 2));
      requireNumbers(first.params);
      requireNumbers((await step(optimizer, tensor(1, -1, 0.5, 0.25, 2), first.params, first.state)).params);
    });
  }
});

suite("nadam continues an Adam state of 10^12 steps without a loop over them", () => {
  const slots = { exp_avg: tensor(0.1), exp_avg_sq: tensor(0.1) };
  for (const momentum_decay of [0, 4e-3, 0.3, 1e3]) {
    for (const beta1 of [0.9, 1 - 1e-12]) {
      test(`momentum_decay ${momentum_decay}, beta1 ${beta1}`, async () => {
        const start = performance.now();
        const state = writeState({ optimizer: "adam", steps: { w: 1e12 }, slots });
        requireNumbers((await step({ name: "nadam", betas: [beta1, 0.999], momentum_decay }, tensor(1), tensor(1), state)).params);
        assert.ok(performance.now() - start < MAX_MILLISECONDS);
      });
    }
  }
});
