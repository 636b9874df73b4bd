/** Tests that the reductions of both clients have the bits of plain loops in float64, in one call or in several. */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { TestService } from "../../../test/support/service.ts";
import { Client, type ReduceInput, type ReduceResult, ShardedClient, StepdError, type Tensor, type Tensors, type Update } from "../src/index.ts";
import { bits } from "./_tensors.ts";

const wave = (count: number, seed: number): Tensor => ({
  shape: [count],
  data: Float32Array.from({ length: count }, (_, i) => Math.sin((i + 1) * (seed + 1))),
});

const SIZES = { w: 400, b: 7, "😀": 33, "￿": 300 };

const tensorsOf = (seed: number): Tensors => Object.fromEntries(Object.entries(SIZES).map(([name, size], index) => [name, wave(size, seed + 10 * index)]));

const params = tensorsOf(100);
const updates: readonly Update[] = [3, 0.5, 11, 2].map((weight, index) => ({ tensors: tensorsOf(index), weight }));

const float32 = ({ data }: Tensor): Float32Array => data as Float32Array;

const meanAt = (name: string, index: number): number => {
  const sum = updates.reduce((total, { tensors, weight = 1 }) => total + (float32(tensors[name] as Tensor)[index] as number) * weight, 0);
  return sum / updates.reduce((total, { weight = 1 }) => total + weight, 0);
};

const sameGrads = (found: ReduceResult, expected: ReduceResult): void => {
  assert.deepEqual(Object.keys(found.grads), Object.keys(expected.grads));
  for (const [name, { data }] of Object.entries(expected.grads)) assert.deepEqual(bits(found.grads[name]?.data as Float32Array), bits(data), name);
};

let service: TestService;
const clients: { [name: string]: Client | ShardedClient } = {};
before(async () => {
  service = await TestService.start();
  clients["Client"] = new Client(service.url);
  clients["ShardedClient"] = new ShardedClient([service.url], { requestBytes: 3000 });
});
after(() => service[Symbol.asyncDispose]());

for (const name of ["Client", "ShardedClient"]) {
  const reduce = (input: ReduceInput): Promise<ReduceResult> => clients[name]?.reduce(input) as Promise<ReduceResult>;

  suite(name, () => {
    test("the mean has the bits of loops in float64", async () => {
      const result = await reduce({ params, updates });
      assert.deepEqual([result.count, result.weight, result.dropped, result.skipped], [4, 16.5, [], false]);
      for (const [tensor, param] of Object.entries(params)) {
        const expected = Float32Array.from(float32(param), (value, index) => value - meanAt(tensor, index));
        assert.deepEqual(bits(result.grads[tensor]?.data as Float32Array), bits(expected), tensor);
      }
    });

    test("a median of int8 values with scales", async () => {
      const codes = (value: number): Update => ({
        tensors: { w: { shape: [2], data: Int8Array.of(value, -value) }, "w.scale": { shape: [], data: Float32Array.of(0.5) } },
      });
      const { grads } = await reduce({ updates: [codes(4), codes(-100), codes(6)], form: "gradients", method: { name: "median" } });
      assert.deepEqual([...float32(grads["w"] as Tensor)], [2, -2]);
      assert.deepEqual(Object.keys(grads), ["w"]);
    });

    test("an accumulator carries the sums", async () => {
      const whole = await reduce({ updates, form: "deltas" });
      let accumulator: Uint8Array | undefined;
      for (const update of updates) ({ accumulator } = await reduce({ updates: [update], form: "deltas", finish: false, accumulator }));
      sameGrads(await reduce({ updates: [], form: "deltas", accumulator }), whole);
    });

    test("drop leaves out an update of which one call has NaN", async () => {
      const spoilt = updates.with(2, { weight: 11, tensors: { ...updates[2]?.tensors, b: { shape: [7], data: new Float32Array(7).fill(Number.NaN) } } });
      const result = await reduce({ params, updates: spoilt, non_finite: "drop" });
      assert.deepEqual([result.dropped, result.count, result.weight], [[2], 3, 5.5]);
      sameGrads(result, await reduce({ params, updates: updates.filter((_, index) => index !== 2) }));
      await assert.rejects(reduce({ params, updates: spoilt }), (error) => {
        assert.ok(error instanceof StepdError);
        assert.deepEqual([error.code, error.field, error.tensors], ["NON_FINITE_GRADIENT", "/updates/2/tensors", ["b"]]);
        return true;
      });
    });

    test("distances have the numbers of loops in float64", async () => {
      const found = (await clients[name]?.distances({ updates })) as number[][];
      for (const [i, one] of updates.entries()) {
        for (const [j, other] of updates.entries()) {
          let expected = 0;
          for (const [tensor, { data }] of Object.entries(one.tensors))
            for (const [index, value] of data.entries()) expected += (value - (other.tensors[tensor]?.data[index] as number)) ** 2;
          assert.ok(Math.abs((found[i]?.[j] as number) - expected) <= 1e-12 * expected, `${i}, ${j}: ${found[i]?.[j]}, not ${expected}`);
        }
      }
      assert.deepEqual(found, await clients["Client"]?.distances({ updates }));
      await assert.rejects(clients[name]?.distances({ updates, distances: 3 } as never) as Promise<unknown>, /distances: expected an earlier result, found 3/);
    });

    test("a step with reduce has the bits of a step with the pseudo-gradient", async () => {
      const client = clients[name] as Client;
      const settings = { optimizer: { name: "adamw", lr: 0.01 }, params, clip: { max_norm: 0.5 } } as const;
      const { grads, ...report } = await reduce({ params, updates });
      const expected = await client.step({ ...settings, grads });
      const found = await client.step({ ...settings, reduce: { updates } });
      assert.deepEqual(found.params, expected.params);
      assert.deepEqual(found.state.bytes, expected.state.bytes);
      assert.deepEqual(found.reduce, report);
      const none = await client.step({ ...settings, state: found.state, reduce: { updates: [] } });
      assert.deepEqual([none.skipped, none.reduce?.skipped, none.warnings], [true, true, undefined]);
      assert.deepEqual(none.params, params);
      assert.deepEqual(none.state.bytes, found.state.bytes);
      await assert.rejects(client.step({ ...settings, grads, reduce: { updates } } as never), /grads: expected none beside reduce, found/);
      await assert.rejects(client.step({ ...settings, reduce: { updates: 3 } } as never), /updates: expected a list/);
    });

    test("no update skips", async () => {
      const result = await reduce({ params, updates: [] });
      assert.deepEqual([result.skipped, result.count, result.grads], [true, 0, {}]);
    });

    test("arguments of the wrong kind are refused before anything is sent", async () => {
      const wrong: readonly (readonly [unknown, RegExp])[] = [
        [{}, /updates: expected a list/],
        [{ updates: [tensorsOf(1)] }, /updates\[0\]\.tensors: expected tensors by name/],
        [{ updates: [], accumulator: "x" }, /accumulator: expected the bytes/],
        [{ updates: [], method: "median" }, /method: expected a method/],
      ];
      for (const [input, says] of wrong) await assert.rejects(reduce(input as ReduceInput), says);
    });
  });
}

test("both clients make the same accumulator", async () => {
  const [one, many] = await Promise.all(["Client", "ShardedClient"].map((name) => clients[name]?.reduce({ updates, form: "deltas", finish: false })));
  assert.deepEqual(Buffer.from(one?.accumulator as Uint8Array), Buffer.from(many?.accumulator as Uint8Array));
});
