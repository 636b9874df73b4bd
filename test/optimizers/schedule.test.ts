/** Tests that a step with a schedule equals a step with the schedule's value at the state's own step count. */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { gradsAt, SMALL, type StepReply, startParams } from "../support/run.ts";
import { type RpcError, TestService } from "../support/service.ts";
import { readTensors, writeTensors } from "../support/tensors.ts";
import { variants } from "../support/variants.ts";

const STEPS = 6;

let service: TestService;
before(async () => {
  service = await TestService.start();
});
after(() => service[Symbol.asyncDispose]());

interface Reply extends StepReply {
  readonly lr: number;
}

const step = (optimizer: unknown, params: Uint8Array, index: number, state: Uint8Array | null, more = {}): Promise<Reply> =>
  service.call("optimizer.step", { optimizer, params, grads: writeTensors(gradsAt(SMALL, index)), state, ...more });

const rates = (schedule: unknown, lr: number): Promise<{ lrs: number[]; momentums?: number[] }> =>
  service.call("schedule.evaluate", { schedule, lr, from: 0, count: STEPS });

const warmup = {
  name: "sequence",
  schedules: [
    { name: "linear", start_factor: 0.25, total_iters: 3 },
    { name: "cosine", T_max: 10 },
  ],
  milestones: [3],
};

suite("a schedule gives the bits of its evaluated rates", () => {
  for (const { label, optimizer } of variants) {
    test(label, async () => {
      const base = (optimizer["lr"] as number | undefined) ?? 0.01;
      const { lrs } = await rates(warmup, base);
      let [scheduled, byHand] = [writeTensors(startParams(SMALL)) as Uint8Array, writeTensors(startParams(SMALL)) as Uint8Array];
      let [state, stateByHand]: [Uint8Array | null, Uint8Array | null] = [null, null];
      for (let index = 0; index < STEPS; index++) {
        const reply = await step({ ...optimizer, lr: base }, scheduled, index, state, { schedule: warmup });
        const expected = await step({ ...optimizer, lr: lrs[index] }, byHand, index, stateByHand);
        assert.equal(reply.lr, lrs[index]);
        assert.ok(Buffer.from(reply.params).equals(Buffer.from(expected.params)), `params of step ${index + 1}`);
        assert.ok(Buffer.from(reply.state).equals(Buffer.from(expected.state)), `state of step ${index + 1}`);
        [scheduled, state, byHand, stateByHand] = [reply.params, reply.state, expected.params, expected.state];
      }
    });
  }
});

suite("options without effect are accepted, because calls for all parts of a model carry the same options", () => {
  const [params, optimizer] = [writeTensors(startParams(SMALL)), { name: "adamw", lr: 0.1 }];
  for (const schedule of [
    { name: "one_cycle", max_lr: 0.5, total_steps: 10 },
    { name: "cyclic", base_lr: 0.1, max_lr: 0.5 },
  ]) {
    test(`a group's lr under ${schedule.name}, which replaces it`, async () => {
      const plain = await step(optimizer, params, 0, null, { schedule });
      assert.deepEqual(await step(optimizer, params, 0, null, { schedule, groups: [{ tensors: ["*"], optimizer: { lr: 9 } }] }), plain);
    });
  }

  test("a group that matches no parameter", async () => {
    const plain = await step(optimizer, params, 0, null);
    assert.deepEqual(await step(optimizer, params, 0, null, { groups: [{ tensors: ["head.*", "absent"], optimizer: { lr: 9 } }] }), plain);
  });

  test("stochastic rounding without BF16 parameters", async () => {
    const plain = await step(optimizer, params, 0, null);
    assert.deepEqual(await step(optimizer, params, 0, null, { stochastic_rounding: { seed: 7 } }), plain);
  });
});

suite("one_cycle moves the momentum opposite to the rate", () => {
  const schedule = { name: "one_cycle", max_lr: 0.5, total_steps: 10 };
  for (const [optimizer, withMomentum] of [
    [{ name: "sgd", momentum: 0.9 }, (momentum: number) => ({ momentum })],
    [{ name: "adamw", betas: [0.9, 0.99] }, (momentum: number) => ({ betas: [momentum, 0.99] })],
  ] as const) {
    test(`${optimizer.name} equals steps with the evaluated rates and momentums`, async () => {
      const { lrs, momentums } = await rates(schedule, 0.1);
      let [params, state]: [Uint8Array, Uint8Array | null] = [writeTensors(startParams(SMALL)), null];
      for (let index = 0; index < STEPS; index++) {
        const reply = await step(optimizer, params, index, state, { schedule });
        const expected = await step({ ...optimizer, lr: lrs[index], ...withMomentum(momentums?.[index] ?? 0) }, params, index, state);
        assert.ok(Buffer.from(reply.params).equals(Buffer.from(expected.params)), `step ${index + 1}`);
        [params, state] = [reply.params, reply.state];
      }
    });
  }

  test("a step past the schedule's end is an error that names the step", async () => {
    const params = writeTensors(startParams(SMALL));
    let state: Uint8Array | null = null;
    for (let index = 0; index < 3; index++) ({ state } = await step({ name: "sgd", momentum: 0.9 }, params, index, state));
    await assert.rejects(
      step({ name: "sgd", momentum: 0.9 }, params, 3, state, { schedule: { name: "one_cycle", max_lr: 1, total_steps: 3 } }),
      (error: RpcError) => {
        assert.equal(error.data.name, "INVALID_PARAMS");
        assert.match(error.data.field ?? "", /^\/schedule/);
        return true;
      },
    );
  });
});

test("groups keep their own base rates under a schedule", async () => {
  const schedule = { name: "constant", factor: 0.5, total_iters: 10 };
  const groups = [{ tensors: ["b"], optimizer: { lr: 0.4 } }];
  const reply = await step({ name: "sgd", lr: 0.2 }, writeTensors(startParams(SMALL)), 0, null, { schedule, groups });
  const expected = await step({ name: "sgd", lr: 0.1 }, writeTensors(startParams(SMALL)), 0, null, { groups: [{ tensors: ["b"], optimizer: { lr: 0.2 } }] });
  assert.ok(Buffer.from(reply.params).equals(Buffer.from(expected.params)));
});

suite('weight_decay_scale "schedule" follows the schedule, not the lr', () => {
  const zeros = Object.fromEntries(
    Object.entries(SMALL).map(([name, shape]) => [name, { shape, data: new Float32Array(shape.reduce((product: number, size) => product * size, 1)) }]),
  );
  const decayed = async (name: string, lr: number, scale: string): Promise<Buffer> => {
    let [params, state]: [Uint8Array, Uint8Array | null] = [writeTensors(startParams(SMALL)), null];
    for (let index = 0; index < STEPS; index++) {
      const optimizer = { name, lr, weight_decay: 0.05, weight_decay_scale: scale };
      ({ params, state } = await service.call<Reply>("optimizer.step", { optimizer, params, grads: writeTensors(zeros), state, schedule: warmup }));
    }
    return Buffer.from(params);
  };

  for (const name of ["adamw", "qhadamw"]) {
    test(`${name}: every lr gives the same decay`, async () => {
      const reference = await decayed(name, 0.001, "schedule");
      for (const lr of [0.5, 8, 1e-6]) assert.deepEqual(near(readTensors(await decayed(name, lr, "schedule"))), near(readTensors(reference)));
      assert.ok(!(await decayed(name, 0.5, "lr")).equals(await decayed(name, 0.001, "lr")), "with the scale lr it differs");
    });

    test(`${name}: scale schedule multiplies weight_decay by the schedule's factor, and scale none does not`, async () => {
      const { lrs } = await rates(warmup, 1);
      for (const [scale, factors] of [
        ["schedule", lrs],
        ["none", lrs.map(() => 1)],
      ] as const) {
        const kept = factors.reduce((product, factor) => product * (1 - factor * 0.05), 1);
        const after = readTensors(await decayed(name, 0.25, scale))["w"]?.data ?? [];
        for (const [i, value] of (startParams(SMALL)["w"]?.data ?? []).entries()) assert.ok(Math.abs((after[i] as number) - value * kept) < 1e-6);
      }
    });
  }

  for (const [schedule, peak] of [
    [{ name: "one_cycle", max_lr: 0.5, total_steps: STEPS, cycle_momentum: false }, 0.5],
    [{ name: "cyclic", base_lr: 0.01, max_lr: 0.2, step_size_up: 2, cycle_momentum: false }, 0.2],
  ] as const) {
    test(`${schedule.name}: the factor is relative to max_lr, and the base rate has no effect`, async () => {
      const { lrs } = await rates(schedule, 1);
      for (const lr of [1e-3, 8]) {
        let [params, state]: [Uint8Array, Uint8Array | null] = [writeTensors(startParams(SMALL)), null];
        for (let index = 0; index < STEPS; index++) {
          const optimizer = { name: "adamw", lr, weight_decay: 0.05, weight_decay_scale: "schedule" };
          ({ params, state } = await service.call<Reply>("optimizer.step", { optimizer, params, grads: writeTensors(zeros), state, schedule }));
        }
        const kept = lrs.reduce((product, rate) => product * (1 - (rate / peak) * 0.05), 1);
        const after = readTensors(params)["w"]?.data ?? [];
        for (const [i, value] of (startParams(SMALL)["w"]?.data ?? []).entries()) assert.ok(Math.abs((after[i] as number) - value * kept) < 1e-6);
      }
    });
  }

  test("a base rate of 0 is refused, because no factor can be derived from it", async () => {
    const optimizer = { name: "qhadamw", lr: 0, weight_decay: 0.05, weight_decay_scale: "schedule" };
    await assert.rejects(step(optimizer, writeTensors(startParams(SMALL)), 0, null, { schedule: warmup }), (error: RpcError) => {
      assert.deepEqual([error.data.name, error.data.field], ["INVALID_PARAMS", "/optimizer/lr"]);
      return true;
    });
  });

  /**
   * The quotient lr_t / lr rounds differently for different lr, in the last bit of float64. The difference hardly ever reaches
   * float32.
   */
  const near = (tensors: ReturnType<typeof readTensors>): unknown => Object.values(tensors).map(({ data }) => [...data].map((value) => value.toPrecision(6)));
});
