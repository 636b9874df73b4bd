/** Tests that optimizer.plan predicts the real cost of a step. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { SMALL, type StepReply } from "../support/run.ts";
import { type RpcError, TestService } from "../support/service.ts";
import { DTYPES, type Dtype, type Typed, writeTyped } from "../support/typed.ts";
import { variants } from "../support/variants.ts";

let service: TestService;
before(async () => {
  service = await TestService.start({ STEPD_ARENA_MIB: "64" });
});
after(() => service[Symbol.asyncDispose]());

interface Cost {
  readonly parameters: number;
  readonly bytes_in: number;
  readonly bytes_out: number;
  readonly state_bytes: number;
  readonly arena_bytes: number;
  readonly fits: boolean;
  readonly requests: number;
  readonly too_large: readonly string[];
}

const ones = (dtype: Dtype): Record<string, Typed> =>
  Object.fromEntries(
    Object.entries(SMALL).map(([name, shape]) => [
      name,
      { dtype, shape, values: new Array<number>(shape.reduce((product: number, size) => product * size, 1)).fill(1) },
    ]),
  );

for (const { label, optimizer } of variants) {
  test(`plan predicts the bytes of a real step: ${label}`, async () => {
    for (const dtype of DTYPES) {
      const master_weights = dtype === "BF16";
      const tensors = Object.fromEntries(Object.entries(SMALL).map(([name, shape]) => [name, { shape, dtype }]));
      const cost = await service.call<Cost>("optimizer.plan", { optimizer, tensors, grad_dtype: "F32", master_weights });
      const call = { optimizer, params: writeTyped(ones(dtype)), grads: writeTyped(ones("F32")), master_weights };
      const { params, state } = await service.call<StepReply>("optimizer.step", call);
      const next = await service.call<StepReply>("optimizer.step", { ...call, params, state });
      assert.equal(cost.state_bytes, next.state.length);
      const close = (found: number, exact: number): void => assert.ok(Math.abs(found - exact) <= 128, `${found}, not ${exact}`);
      close(cost.bytes_out, next.params.length + next.state.length);
      close(cost.bytes_in, params.length + call.grads.length + state.length);
      assert.equal(cost.parameters, 33 + 7 + 1 + 1000);
      assert.ok(cost.fits);
      assert.equal(cost.requests, 1);
    }
  });
}

test("plan names the tensors that do not fit, and the number of calls to make", async () => {
  const many = Object.fromEntries(Array.from({ length: 8 }, (_, index) => [`layer.${index}`, { shape: [256, 1024] }]));
  const cost = await service.call<Cost>("optimizer.plan", { optimizer: { name: "adamw" }, tensors: many });
  assert.ok(cost.fits);
  assert.equal(cost.requests, 8);
  const tensors = { ...many, embedding: { shape: [100_000, 1024] } };
  const whole = await service.call<Cost>("optimizer.plan", { optimizer: { name: "lamb" }, tensors });
  assert.deepEqual([whole.fits, whole.requests, whole.too_large], [false, 0, ["embedding"]]);
  const cautious = await service.call<Cost>("optimizer.plan", { optimizer: { name: "adamw", caution: true }, tensors });
  assert.deepEqual([cautious.requests, cautious.too_large], [0, ["embedding"]]);
  // AdamW can have the tensor in slices. Each call takes at most an eighth of the arena.
  const large = await service.call<Cost>("optimizer.plan", { optimizer: { name: "adamw" }, tensors });
  assert.deepEqual([large.fits, large.too_large], [false, []]);
  const offset = 65_536;
  const slices = Math.ceil((100_000 * 1024) / offset);
  assert.ok(large.requests > 8 && large.requests <= 8 + slices, `${large.requests} calls`);
  const slice = await service.call<Cost>("optimizer.plan", {
    optimizer: { name: "adamw" },
    tensors: { embedding: { shape: [offset * Math.floor(slices / (large.requests - 8))] } },
  });
  assert.deepEqual([slice.fits, slice.requests], [true, 1]);
});

test("shapes above the limits of numbers and files are refused", async () => {
  const refused = async (shape: readonly number[]) => {
    const error = await service.call("optimizer.plan", { optimizer: { name: "adamw" }, tensors: { w: { shape } } }).catch((thrown: RpcError) => thrown);
    const { name, field } = (error as RpcError).data;
    return [name, field];
  };
  assert.deepEqual(await refused([2 ** 32, 2 ** 32, 0]), ["INVALID_PARAMS", "/tensors/w/shape"]);
  assert.deepEqual(await refused([2 ** 52, 2]), ["INVALID_PARAMS", "/tensors/w/shape"]);
  assert.deepEqual(await refused([2 ** 52]), ["INVALID_PARAMS", "/tensors"]);
});
