/** Tests optimizer.average, which returns the parameters with which a model is evaluated. */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { Recipes } from "../../src/engine/recipe.ts";
import { type Hyperparameters, type OptimizerDefinition, registry, type Values } from "../../src/optimizers/registry.ts";
import { type RpcError, TestService } from "../support/service.ts";
import { readState, readTensors, type TestTensors, writeState, writeTensors } from "../support/tensors.ts";

let service: TestService;
before(async () => {
  service = await TestService.start();
});
after(() => service[Symbol.asyncDispose]());

const tensor = (...data: number[]): TestTensors[string] => ({ shape: [data.length], data: Float32Array.from(data) });

interface Reply {
  readonly params: Uint8Array;
  readonly state: Uint8Array;
}

const defaultsOf = ({ hyperparameters }: OptimizerDefinition): object =>
  Object.fromEntries(Object.entries(hyperparameters).map(([name, schema]) => [name, "default" in schema ? schema.default : undefined]));

const average = async (call: object): Promise<TestTensors> => readTensors((await service.call<{ params: Uint8Array }>("optimizer.average", call)).params);

suite("optimizer.average", () => {
  for (const name of ["schedule_free_sgd", "schedule_free_adamw"]) {
    test(`${name}: with equal weights, the average of z after three steps`, async () => {
      const optimizer = { name, lr: 0.25 };
      let params: TestTensors = { w: tensor(1, -2, 3), rest: tensor(5) };
      let state: Uint8Array | null = null;
      const sums = [0, 0, 0];
      for (let step = 1; step <= 3; step++) {
        const grads = writeTensors({ w: tensor(step, 1, -1) });
        const reply: Reply = await service.call("optimizer.step", { optimizer, params: writeTensors(params), grads, state });
        params = readTensors(reply.params);
        state = reply.state;
        for (const [index, value] of [...(readState(reply.state).slots["z"]?.["w"]?.data ?? [])].entries()) sums[index] = (sums[index] as number) + value;
      }
      const found = await average({ optimizer, params: writeTensors(params), state });
      for (const [index, sum] of sums.entries()) assert.ok(Math.abs((found["w"]?.data[index] as number) - sum / 3) < 1e-6, `${index}`);
      assert.deepEqual(found["rest"]?.data, Float32Array.of(5), "a parameter without steps");
    });
  }

  test("parameters without steps are unchanged, though z is 0 in their state", async () => {
    const optimizer = { name: "schedule_free_adamw" };
    const params = writeTensors({ w: tensor(1, 2, 3) });
    const { state } = await service.call<Reply>("optimizer.init", { optimizer, params });
    assert.deepEqual((await average({ optimizer, params, state }))["w"]?.data, Float32Array.of(1, 2, 3));
  });

  test("a master copy is averaged, not the rounded parameter", async () => {
    const optimizer = { name: "schedule_free_sgd", lr: 2 ** -10 };
    const start = { w: { shape: [2], dtype: "BF16", values: [1, 2] } };
    const grads = { w: { shape: [2], values: [1, 1] } };
    const first = await service.call<{ state: Uint8Array; params: object }>("optimizer.step", { optimizer, params: start, grads, master_weights: true });
    const second = await service.call<{ state: Uint8Array; params: object }>("optimizer.step", {
      optimizer,
      params: first.params,
      grads: { w: { shape: [2], values: [512, 512] } },
      state: first.state,
      master_weights: true,
    });
    const { params } = await service.call<{ params: { w: { values: number[] } } }>("optimizer.average", {
      optimizer,
      params: second.params,
      state: second.state,
    });
    // z is 1 - 2^-10, then 2^-1 - 2^-10 lower; their mean is 0.749, which BF16 rounds to 0.75.
    assert.deepEqual(params.w.values, [0.75, 1.75]);
  });

  test("the slot ema is neither needed nor written", () => {
    const optimizer = registry.get("schedule_free_sgd");
    assert.ok(optimizer);
    const names: string[] = [];
    const recipes = new Recipes((name) => names.push(name) - 1);
    const values = { ...defaultsOf(optimizer), ema: { decay: 0.5 } } as unknown as Values<Hyperparameters>;
    const slots = ["z", "ema"].map((slot) => [slot, slot === "ema", "F32"] as const);
    const input = { param: "F32", grad: "F32", optimizer, values, shape: [], slots, isFirst: false, slotsRequiredLater: [] };
    const options = { lossScale: 1, maxValue: undefined, isMeasured: false, gradientCheck: undefined, wantsStats: false, seed: undefined, isRounded: false };
    const { average, phases } = recipes.step(input, options);
    const kernelsOf = (calls: readonly { readonly kernel: number }[]): readonly (string | undefined)[] => calls.map(({ kernel }) => names[kernel]);
    assert.deepEqual(kernelsOf(average), ["schedule_free_average_f32"]);
    assert.ok(kernelsOf(phases[0]?.calls ?? []).includes("ema_f32"), "a step writes it");
  });

  const optimizer = { name: "schedule_free_sgd" };
  const params = writeTensors({ w: tensor(1) });
  const state = writeState({ optimizer: "schedule_free_sgd", steps: { w: 1 }, slots: {}, scalars: { lr_max: { w: 1 }, weight_sum: { w: 1 } } });
  const adamw = writeState({ optimizer: "adamw", steps: { w: 1 }, slots: { exp_avg: { w: tensor(1) }, exp_avg_sq: { w: tensor(1) } } });
  for (const [what, call, expected] of [
    ["an optimizer without an average", { optimizer: { name: "adamw" }, params, state: adamw }, "INVALID_PARAMS /optimizer/name"],
    ["a state of another optimizer", { optimizer, params, state: adamw }, "STATE_MISMATCH /state"],
    ["a state without z", { optimizer, params, state }, "STATE_MISMATCH /state"],
    ["no state", { optimizer, params }, "INVALID_PARAMS /state"],
    ["beta1 0", { optimizer: { name: "schedule_free_adamw", betas: [0, 0.9] }, params, state }, "INVALID_PARAMS /optimizer/betas"],
  ] as const) {
    test(`is refused: ${what}`, async () => {
      await assert.rejects(service.call("optimizer.average", call), ({ data, message }: RpcError) => {
        assert.equal(`${data.name} ${data.field}`, expected, message);
        return true;
      });
    });
  }
});
