/** Tests what prodigy's tensors share: estimates in the state, groups, tensors that rest, and states that disagree. */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { gradsAt, type StepReply, startParams } from "../support/run.ts";
import { type RpcError, TestService } from "../support/service.ts";
import { readState, readTensors, type TestTensors, writeState, writeTensors } from "../support/tensors.ts";
import { readTyped } from "../support/typed.ts";

let service: TestService;
before(async () => {
  service = await TestService.start();
});
after(() => service[Symbol.asyncDispose]());

const SHAPES = { w: [30, 11], b: [70_001], s: [] } as const;
const optimizer = { name: "prodigy", d0: 1e-3, d_coef: 10 };
const params = startParams(SHAPES);

const step = (given: object = {}): Promise<StepReply> =>
  service.call<StepReply>("optimizer.step", { optimizer, params: writeTensors(params), grads: writeTensors(gradsAt(SHAPES, 0)), ...given });

const pick = (all: TestTensors, ...names: string[]): TestTensors => Object.fromEntries(names.map((name) => [name, all[name] as TestTensors[string]]));

const ESTIMATES = ["d", "d_max", "d_numerator", "k"];

/** Returns the estimates of each tensor, in the order of SHAPES. */
const estimatesOf = (state: Uint8Array): Readonly<Record<string, readonly number[]>> => {
  const all = readTyped(state);
  return Object.fromEntries(ESTIMATES.map((slot) => [slot, Object.keys(SHAPES).flatMap((name) => (all[`${slot}/${name}`]?.values ?? []) as number[])]));
};

/** Takes four steps along the same gradients, so that the estimate grows. Step 2 lacks `resting`. */
const fourSteps = async (resting: readonly string[]): Promise<Uint8Array[]> => {
  const grads = gradsAt(SHAPES, 0);
  const states: Uint8Array[] = [];
  let from: { params: Uint8Array; state: Uint8Array | null } = { params: writeTensors(params), state: null };
  for (let index = 0; index < 4; index++) {
    const names = Object.keys(grads).filter((name) => index !== 1 || !resting.includes(name));
    const { params: next, state } = await step({ ...from, grads: writeTensors(pick(grads, ...names)) });
    from = { params: next, state };
    states.push(state);
  }
  return states;
};

test("all tensors have the same estimates, which grow", async () => {
  const [first, , , last] = (await fourSteps([])).map(estimatesOf);
  for (const values of Object.values(last ?? {})) assert.deepEqual(new Set(values).size, 1);
  assert.deepEqual(first?.["d"], [1e-3, 1e-3, 1e-3]);
  assert.deepEqual(last?.["k"], [4, 4, 4]);
  assert.ok((last?.["d"]?.[0] ?? 0) > 1e-3);
});

test("a tensor without a gradient keeps its estimates, and takes the newest in its next step", async () => {
  const [, second, third] = (await fourSteps(["w"])).map(estimatesOf);
  assert.deepEqual(second?.["k"]?.toSorted(), [1, 2, 2]);
  assert.deepEqual(third?.["k"], [3, 3, 3]);
  assert.equal(new Set(third?.["d_numerator"]).size, 1);
});

test("estimates sum over prodigy's tensors alone, beside another optimizer", async () => {
  const grads = gradsAt(SHAPES, 0);
  const both = await step({ optimizer: { name: "adamw" }, groups: [{ tensors: ["w", "s"], optimizer }] });
  const alone = await step({ params: writeTensors(pick(params, "w", "s")), grads: writeTensors(pick(grads, "w", "s")) });
  const again = (from: StepReply, given: object): Promise<StepReply> => step({ params: from.params, state: from.state, ...given });
  const [second, secondAlone] = [
    await again(both, { optimizer: { name: "adamw" }, groups: [{ tensors: ["w", "s"], optimizer }] }),
    await again(alone, { grads: writeTensors(pick(grads, "w", "s")) }),
  ];
  assert.deepEqual(estimatesOf(second.state), estimatesOf(secondAlone.state));
  assert.deepEqual(readState(second.state).slots["s"], readState(secondAlone.state).slots["s"]);
});

test("gradients of zeros change neither parameters nor estimates", async () => {
  const first = await step();
  const zeros = Object.fromEntries(Object.entries(params).map(([name, { shape, data }]) => [name, { shape, data: new Float32Array(data.length) }]));
  const idle = await step({ optimizer: { ...optimizer, weight_decay: 0.1 }, grads: writeTensors(zeros) });
  assert.deepEqual(readTensors(idle.params), params);
  assert.deepEqual(estimatesOf(idle.state)["k"], [0, 0, 0]);
  assert.deepEqual(estimatesOf(first.state)["k"], [1, 1, 1]);
});

suite("refused", () => {
  const refused = (what: string, given: () => Promise<object>, expected: RegExp): void => {
    test(what, async () => {
      await assert.rejects(step(await given()), ({ data: { name, field, expected: wanted, found } }: RpcError) => {
        assert.match(`${name} ${field}: ${wanted}, found ${found}`, expected);
        return true;
      });
    });
  };

  refused(
    "groups with other estimates",
    async () => ({ groups: [{ tensors: ["b"], optimizer: { d0: 0.5 } }] }),
    /^INVALID_PARAMS \/groups\/0\/optimizer\/d0: 0.001, as in \/optimizer, because all tensors share it, found 0.5/,
  );
  refused(
    "two groups of prodigy beside another optimizer",
    async () => ({
      optimizer: { name: "adamw" },
      groups: [
        { tensors: ["b"], optimizer },
        { tensors: ["w"], optimizer: { ...optimizer, betas: [0.8, 0.99] } },
      ],
    }),
    /^INVALID_PARAMS \/groups\/1\/optimizer\/betas: \[0.9,0.999\], as in \/groups\/0\/optimizer/,
  );
  refused(
    "a state whose tensors disagree",
    async () => {
      const { state } = await step();
      const scalars = Object.fromEntries(ESTIMATES.map((slot) => [slot, { w: 1, b: 1, s: 1 }]));
      return { state: writeState({ ...readState(state), scalars: { ...scalars, d: { w: 1, b: 2, s: 1 } } }) };
    },
    /^STATE_MISMATCH \/state: d\/s to be 2, as d\/b at the same k, found 1/,
  );
  refused("an estimate of 0", async () => ({ optimizer: { name: "prodigy", d0: 0 } }), /^INVALID_PARAMS \/optimizer\/d0/);
});
