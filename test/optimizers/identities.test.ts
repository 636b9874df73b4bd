/** Tests that an optimizer with special settings gives the bits of a simpler optimizer: QHAdam with nus of 1 gives Adam's. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { isDeepStrictEqual } from "node:util";
import { gradsAt, LARGE, run, SMALL, type StepReply, startParams } from "../support/run.ts";
import { TestService } from "../support/service.ts";
import { readState, type TestTensors, writeState, writeTensors } from "../support/tensors.ts";

let service: TestService;
before(async () => {
  service = await TestService.start();
});
after(() => service[Symbol.asyncDispose]());

interface Identity {
  readonly name: string;
  readonly left: unknown;
  readonly right: unknown;
  /** True if both optimizers keep the same slots. */
  readonly hasSameSlots: boolean;
}

const identities: readonly Identity[] = [
  {
    name: "QHAdam(nus 1, 1) is Adam",
    left: { name: "qhadam", nus: [1, 1], betas: [0.9, 0.999], weight_decay: 0.1 },
    right: { name: "adam", betas: [0.9, 0.999], weight_decay: 0.1 },
    hasSameSlots: true,
  },
  {
    name: "QHAdamW(nus 1, 1) is AdamW",
    left: { name: "qhadamw", nus: [1, 1], betas: [0.9, 0.999], weight_decay: 0.1 },
    right: { name: "adamw", betas: [0.9, 0.999], weight_decay: 0.1 },
    hasSameSlots: true,
  },
  {
    name: "QHM(nu 0) is SGD",
    left: { name: "qhm", lr: 0.3, momentum: 0.9, nu: 0, weight_decay: 0.1 },
    right: { name: "sgd", lr: 0.3, weight_decay: 0.1 },
    hasSameSlots: false,
  },
  {
    name: "AdamW(weight_decay 0) is Adam(weight_decay 0)",
    left: { name: "adamw", weight_decay: 0 },
    right: { name: "adam", weight_decay: 0 },
    hasSameSlots: true,
  },
  {
    name: "AdamW(weight_decay 0) with caution is Adam with caution",
    left: { name: "adamw", weight_decay: 0, caution: true, betas: [0.4, 0.3] },
    right: { name: "adam", caution: true, betas: [0.4, 0.3] },
    hasSameSlots: true,
  },
  { name: "QHAdamW(weight_decay 0) is QHAdam(weight_decay 0)", left: { name: "qhadamw" }, right: { name: "qhadam" }, hasSameSlots: true },
  {
    name: "SGD(momentum 0) is SGD, whatever the dampening",
    left: { name: "sgd", lr: 0.3, momentum: 0, dampening: 0.5 },
    right: { name: "sgd", lr: 0.3 },
    hasSameSlots: true,
  },
  {
    name: "weight_decay_scale schedule without a schedule is none",
    left: { name: "adamw", weight_decay: 0.01, weight_decay_scale: "schedule" },
    right: { name: "adamw", weight_decay: 0.01, weight_decay_scale: "none" },
    hasSameSlots: true,
  },
  {
    name: "NAdam(beta1 0) is Adam(beta1 0)",
    left: { name: "nadam", lr: 1e-3, betas: [0, 0.999], weight_decay: 0.1 },
    right: { name: "adam", lr: 1e-3, betas: [0, 0.999], weight_decay: 0.1 },
    hasSameSlots: false,
  },
  {
    name: "Adamax without memory and eps is Lion without memory: both step along the sign",
    left: { name: "adamax", lr: 0.01, betas: [0, 0], eps: 0 },
    right: { name: "lion", lr: 0.01, betas: [0, 0] },
    hasSameSlots: false,
  },
  {
    name: "LARS(weight_decay 0), not adapted, is the same for every trust_coefficient and eps",
    left: { name: "lars", trust_coefficient: 5, eps: 1 },
    right: { name: "lars" },
    hasSameSlots: true,
  },
];

for (const { name, left, right, hasSameSlots } of identities) {
  for (const [size, shapes] of Object.entries({ small: SMALL, large: LARGE })) {
    test(`${name}, ${size}`, async () => {
      const [a, b] = [await run(service, { optimizer: left, shapes, steps: 4 }), await run(service, { optimizer: right, shapes, steps: 4 })];
      assert.ok(Buffer.from(a.params).equals(Buffer.from(b.params)));
      if (hasSameSlots) assert.ok(isDeepStrictEqual(slots(a), slots(b)), "slots");
    });
  }
}

const slots = ({ state }: StepReply): unknown => {
  const { steps, slots } = readState(state);
  return { steps, slots };
};

test("Adam with caution compares signs with the decayed gradient", async () => {
  const decay = 0.75;
  const params = startParams(SMALL);
  const grads = gradsAt(SMALL, 0);
  const decayed = Object.fromEntries(
    Object.entries(grads).map(([name, { shape, data }]) => [
      name,
      { shape, data: Float32Array.from(data, (g, i) => g + Math.fround(decay * (params[name]?.data[i] as number))) },
    ]),
  );
  const step = (weight_decay: number, grads: TestTensors): Promise<StepReply> =>
    service.call("optimizer.step", {
      optimizer: { name: "adam", lr: 0.01, caution: true, weight_decay },
      params: writeTensors(params),
      grads: writeTensors(grads),
    });
  const [coupled, plain] = [await step(decay, grads), await step(0, decayed)];
  assert.ok(Buffer.from(coupled.params).equals(Buffer.from(plain.params)));
  assert.ok(Buffer.from(coupled.state).equals(Buffer.from(plain.state)));
});

test("a state continues under another optimizer of the Adam family", async () => {
  const first = await run(service, { optimizer: { name: "adamw", betas: [0.9, 0.999] }, shapes: SMALL, steps: 2 });
  const switched = await run(service, {
    optimizer: { name: "qhadamw", nus: [1, 1], betas: [0.9, 0.999], weight_decay: 0.01 },
    shapes: SMALL,
    steps: 2,
    from: 2,
    ...first,
  });
  const straight = await run(service, { optimizer: { name: "adamw", betas: [0.9, 0.999] }, shapes: SMALL, steps: 4 });
  assert.ok(Buffer.from(switched.params).equals(Buffer.from(straight.params)));
  assert.equal(readState(switched.state).optimizer, "qhadamw");
  const lamb = await run(service, { optimizer: { name: "lamb" }, shapes: SMALL, steps: 1, from: 4, ...switched });
  assert.equal(lamb.step, 5);
});

// After 80 steps mu_product is so small that it no longer matters.
for (const [steps, momentum_decay] of [
  [3, 0.1],
  [80, 0.004],
] as const) {
  test(`nadam continues a state without mu_product like one with it, after ${steps} steps`, async () => {
    const optimizer = { name: "nadam", momentum_decay };
    const first = await run(service, { optimizer, shapes: SMALL, steps });
    const straight = await run(service, { optimizer, shapes: SMALL, steps: 1, from: steps, ...first });
    const adam = writeState({ ...readState(first.state), optimizer: "adam" });
    const switched = await run(service, { optimizer, shapes: SMALL, steps: 1, from: steps, params: first.params, state: adam });
    assert.ok(Buffer.from(switched.params).equals(Buffer.from(straight.params)));
    assert.ok(Buffer.from(switched.state).equals(Buffer.from(straight.state)));
  });
}

test("rmsprop keeps only the slots of its options", async () => {
  const slotsOf = async (more: object): Promise<readonly string[]> =>
    Object.keys(readState((await run(service, { optimizer: { name: "rmsprop", ...more }, shapes: SMALL, steps: 1 })).state).slots).sort();
  assert.deepEqual(await slotsOf({ momentum: 0 }), ["square_avg"]);
  assert.deepEqual(await slotsOf({ momentum: 0.9 }), ["momentum_buffer", "square_avg"]);
  assert.deepEqual(await slotsOf({ centered: true }), ["grad_avg", "square_avg"]);
});
