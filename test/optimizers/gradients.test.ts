/**
 * Tests the processing of gradients before the update: clipping, norms over shards, loss scale, non-finite gradients,
 * statistics.
 */
import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { gradsAt, LARGE, SMALL, type StepReply, startParams } from "../support/run.ts";
import { requireSame } from "../support/same.ts";
import { type RpcError, TestService } from "../support/service.ts";
import { readState, readTensors, type TestTensors, writeTensors } from "../support/tensors.ts";
import { type Dtype, readTyped, typed, writeTyped } from "../support/typed.ts";
import { variants } from "../support/variants.ts";

let service: TestService;
before(async () => {
  service = await TestService.start();
});
after(() => service[Symbol.asyncDispose]());

interface Stats {
  readonly grad_norm: number;
  readonly param_norm: number;
  readonly update_norm: number;
  readonly zeros: number;
  readonly non_finite: number;
  readonly clipped: boolean;
  readonly tensors?: Readonly<
    Record<string, { readonly grad_norm: number; readonly param_norm: number; readonly update_norm: number; readonly trust_ratio?: number }>
  >;
}

interface Reply extends StepReply {
  readonly skipped: boolean;
  readonly stats?: Stats;
  readonly warnings?: readonly string[];
}

const step = (params: TestTensors, grads: TestTensors, more: Readonly<Record<string, unknown>> = {}): Promise<Reply> =>
  service.call("optimizer.step", { optimizer: { name: "adamw" }, params: writeTensors(params), grads: writeTensors(grads), ...more });

const mapValues = (tensors: TestTensors, change: (value: number) => number): TestTensors =>
  Object.fromEntries(Object.entries(tensors).map(([name, { shape, data }]) => [name, { shape, data: data.map(change) }]));

const norm = (tensors: TestTensors): number =>
  Math.sqrt(Object.values(tensors).reduce((sum, { data }) => sum + data.reduce((part, value) => part + value * value, 0), 0));

const near = (found: number | undefined, expected: number): void =>
  assert.ok(found !== undefined && Math.abs(found - expected) <= 1e-6 * Math.abs(expected), `${found}, not ${expected}`);

const pick = (all: TestTensors, names: readonly string[]): TestTensors => Object.fromEntries(Object.entries(all).filter(([name]) => names.includes(name)));

suite("clipping", () => {
  const params = startParams(SMALL);
  const grads = gradsAt(SMALL, 0);
  const sgd = { optimizer: { name: "sgd", lr: 1 } };

  test("max_norm multiplies gradients by max_norm / (norm + 1e-6), like torch", async () => {
    const factor = Math.fround(0.5 / (norm(grads) + 1e-6));
    const clipped = await step(params, grads, { ...sgd, clip: { max_norm: 0.5 }, stats: "global" });
    const scaled = await step(
      params,
      mapValues(grads, (value) => value * factor),
      sgd,
    );
    requireSame(readTensors(clipped.params), readTensors(scaled.params));
    assert.equal(clipped.stats?.clipped, true);
    near(clipped.stats?.grad_norm, norm(grads));
  });

  test("the optimizer's own max_grad_norm limits the gradients that clip.max_norm has clipped", async () => {
    const grads = gradsAt(SMALL, 0);
    const all = norm(grads);
    const lamb = (max_grad_norm: number | null, max_norm: number) =>
      step(startParams(SMALL), grads, { optimizer: { name: "lamb", max_grad_norm }, clip: { max_norm } });
    const once = await lamb(null, all / 4);
    assert.deepEqual(Buffer.from((await lamb(all / 2, all / 4)).state), Buffer.from(once.state), "clipped below the optimizer's limit");
    assert.notDeepEqual(Buffer.from((await lamb(all / 8, all / 4)).state), Buffer.from(once.state), "clipped twice");
  });

  test("max_norm above the norm changes nothing", async () => {
    const clipped = await step(params, grads, { clip: { max_norm: 1e6 }, stats: "global" });
    assert.ok(Buffer.from(clipped.params).equals(Buffer.from((await step(params, grads)).params)));
    assert.equal(clipped.stats?.clipped, false);
  });

  test("max_value bounds each value", async () => {
    const clipped = await step(params, grads, { ...sgd, clip: { max_value: 0.25 } });
    const clamped = await step(
      params,
      mapValues(grads, (value) => Math.min(Math.max(value, -0.25), 0.25)),
      sgd,
    );
    requireSame(readTensors(clipped.params), readTensors(clamped.params));
  });

  test("total_norm requires max_norm or max_value, and max_norm excludes max_value", async () => {
    await assert.rejects(step(params, grads, { clip: { total_norm: 1 } }), ({ data }: RpcError) => data.field === "/clip/total_norm");
    await assert.rejects(step(params, grads, { clip: { max_norm: 1, max_value: 1 } }), ({ data }: RpcError) => data.field === "/clip");
    await assert.rejects(step(params, grads, { clip: { max_norm: 0 } }), ({ data }: RpcError) => data.field === "/clip/max_norm");
    await assert.rejects(step(params, grads, { clip: {} }), ({ data }: RpcError) => data.field === "/clip");
  });

  for (const { label, optimizer } of variants) {
    test(`norms and steps over shards give the bits of the whole step: ${label}`, async () => {
      const [large, largeGrads] = [startParams(LARGE), gradsAt(LARGE, 0)];
      const shards = [
        ["encoder/bias", "scale", "ünï"],
        ["encoder.weight", "empty"],
      ];
      const squares: Record<string, number> = {};
      for (const names of shards) {
        const { tensors } = await service.call<{ tensors: Record<string, { grad_squares: number }> }>("optimizer.norms", {
          grads: writeTensors(pick(largeGrads, names)),
        });
        for (const [name, { grad_squares }] of Object.entries(tensors)) squares[name] = grad_squares;
      }
      const inOrder = Object.keys(squares).sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
      const total_norm = Math.sqrt(inOrder.reduce((sum, name) => sum + (squares[name] ?? 0), 0));
      const whole = await step(large, largeGrads, { optimizer, clip: { max_norm: 1 } });
      for (const names of shards) {
        const part = await step(pick(large, names), pick(largeGrads, names), { optimizer, clip: { max_norm: 1, total_norm } });
        requireSame(readTensors(part.params), pick(readTensors(whole.params), names), "params");
        for (const [slot, tensors] of Object.entries(readState(part.state).slots)) {
          requireSame(tensors, pick(readState(whole.state).slots[slot] ?? {}, names), slot);
        }
      }
    });
  }

  test("norms returns counts, and the parameters' sums if parameters are sent", async () => {
    const some = { w: { shape: [4], data: Float32Array.of(0, 3, Number.NaN, 4) }, v: { shape: [2], data: Float32Array.of(0, 2) } };
    const { tensors } = await service.call<{ tensors: Record<string, unknown> }>("optimizer.norms", {
      grads: writeTensors(some),
      params: writeTensors({ w: { shape: [4], data: Float32Array.of(1, 1, 1, 1) }, v: { shape: [2], data: Float32Array.of(3, 4) } }),
      loss_scale: 2,
    });
    assert.deepEqual(tensors["v"], { grad_squares: 1, param_squares: 25, zeros: 1, non_finite: 0 });
    assert.deepEqual(tensors["w"], { grad_squares: Number.NaN, param_squares: 4, zeros: 1, non_finite: 1 });
  });

  for (const dtype of ["F32", "F64"] as const) {
    test(`norms counts values in whole vectors and in the tail, in ${dtype}`, async () => {
      const w = { shape: [7], data: Float32Array.of(0, 3, Number.NaN, 4, Number.POSITIVE_INFINITY, 0, -0) };
      const { tensors } = await service.call<{ tensors: Record<string, unknown> }>("optimizer.norms", { grads: writeTyped(typed({ w }, dtype)) });
      assert.deepEqual(tensors["w"], { grad_squares: Number.NaN, zeros: 3, non_finite: 2 });
    });
  }
});

suite("a step split over several calls", () => {
  const names = [["w", "empty"], ["b", "scale"], ["big"]];
  const params = startParams(SMALL);
  const withValue = (value: number): TestTensors => ({ ...gradsAt(SMALL, 1), b: { shape: [7], data: Float32Array.of(0, value, 1, 2, 3, 4, 5) } });

  const inParts = async (grads: TestTensors, more: { readonly clip: object; readonly loss_scale?: number }): Promise<readonly Reply[]> => {
    const found: Record<string, { readonly grad_squares: number; readonly non_finite: number }> = {};
    for (const part of names) {
      const call = { grads: writeTensors(pick(grads, part)), loss_scale: more.loss_scale ?? 1 };
      Object.assign(found, (await service.call<{ tensors: typeof found }>("optimizer.norms", call)).tensors);
    }
    const total = Math.sqrt(
      Object.keys(found)
        .sort()
        .reduce((sum, name) => sum + (found[name]?.grad_squares ?? 0), 0),
    );
    const norms = {
      clip: { ...more.clip, total_norm: Number.isFinite(total) ? total : String(total) },
      others_non_finite: Object.values(found).some(({ non_finite }) => non_finite > 0),
    };
    return Promise.all(names.map((part) => step(pick(params, part), pick(grads, part), { ...more, ...norms })));
  };

  for (const { label, optimizer } of variants.filter((variant) => !variant.isShared)) {
    for (const [what, value, more] of [
      ["NaN, skipped", Number.NaN, { non_finite: "skip" }],
      ["infinity, skipped", Number.POSITIVE_INFINITY, { non_finite: "skip" }],
      ["NaN, propagated", Number.NaN, { non_finite: "propagate" }],
      ["infinity, propagated", Number.POSITIVE_INFINITY, { non_finite: "propagate" }],
      ["a loss scale by which a gradient overflows, propagated", 1e30, { non_finite: "propagate", loss_scale: 1e-30 }],
      ["a loss scale by which a gradient overflows, skipped", 1e30, { non_finite: "skip", loss_scale: 1e-30 }],
    ] as const) {
      test(`equals the whole step: ${label}: ${what}`, async () => {
        const given = { optimizer, clip: { max_norm: 1 }, ...more };
        const whole = await step(params, withValue(value), given);
        for (const [index, part] of (await inParts(withValue(value), given)).entries()) {
          const own = names[index] as string[];
          requireSame(readTensors(part.params), pick(readTensors(whole.params), own), "params");
          const [{ steps, slots }, of] = [readState(part.state), readState(whole.state)];
          assert.deepEqual(
            [part.skipped, part.step, Object.keys(steps)],
            [whole.skipped, whole.step, Object.keys(of.steps).filter((name) => own.includes(name))],
          );
          for (const [slot, tensors] of Object.entries(slots)) requireSame(tensors, pick(of.slots[slot] ?? {}, own), slot);
        }
      });
    }
  }

  test("an infinite total_norm sets finite gradients to 0, with one warning", async () => {
    const result = await step(params, gradsAt(SMALL, 0), { clip: { max_norm: 1, total_norm: "Infinity" }, optimizer: { name: "sgd" } });
    requireSame(readTensors(result.params), params);
    assert.deepEqual(result.warnings, ["The norm of all gradients is infinite, so that clipping made all of them 0; clip by value, or use a loss scale"]);
  });

  test("others_non_finite refuses finite gradients; non-finite gradients are named first", async () => {
    const refused = async (grads: TestTensors, more: object = {}): Promise<RpcError["data"] & { readonly tensors?: readonly string[] }> => {
      const error: unknown = await step(params, grads, { others_non_finite: true, ...more }).catch((error) => error);
      return (error as RpcError).data;
    };
    for (const more of [{}, { stats: "global" }, { clip: { max_norm: 1 } }, { optimizer: { name: "lamb" } }]) {
      const { name, field } = await refused(gradsAt(SMALL, 0), more);
      assert.deepEqual([name, field], ["NON_FINITE_GRADIENT", "/others_non_finite"]);
      const own = await refused(withValue(Number.NaN), more);
      assert.deepEqual([own.name, own.field, own.tensors], ["NON_FINITE_GRADIENT", "/grads", ["b"]]);
    }
    const empty = await refused({});
    assert.deepEqual([empty.name, empty.field], ["NON_FINITE_GRADIENT", "/others_non_finite"], "also a call without gradients");
  });

  test("an error names eight tensors with gradients that are not finite, and counts the rest", async () => {
    const many = Object.fromEntries(Array.from({ length: 10 }, (_, index) => [`w${index}`, { shape: [1], data: Float32Array.of(Number.NaN) }]));
    await assert.rejects(step(many, many), ({ data }: RpcError & { data: { tensors?: readonly string[] } }) => {
      assert.deepEqual(data.tensors, Object.keys(many).slice(0, 8));
      assert.match(String(data.found), /"w7" \(1 value\) and 2 more tensors$/);
      return true;
    });
  });

  test("others_non_finite skips a call without gradients, like the rest of its step", async () => {
    const first = await step(params, gradsAt(SMALL, 0));
    const skipped = await step(params, {}, { state: first.state, non_finite: "skip", others_non_finite: true });
    assert.deepEqual([skipped.skipped, skipped.warnings, Buffer.from(skipped.state)], [true, undefined, Buffer.from(first.state)]);
  });

  test("total_norm accepts Infinity and NaN by name only, in both formats", async () => {
    for (const total_norm of [-1, "-Infinity", "Inf", Number.NaN, Number.POSITIVE_INFINITY, null]) {
      await assert.rejects(step(params, gradsAt(SMALL, 0), { clip: { max_norm: 1, total_norm } }), ({ data }: RpcError) => {
        assert.deepEqual([data.field, data.expected], ["/clip/total_norm", "a finite number of at least 0 or one of Infinity, NaN"]);
        return true;
      });
    }
  });
});

suite("loss scale", () => {
  test("a power of two divides exactly", async () => {
    const grads = gradsAt(SMALL, 0);
    const scaled = await step(
      startParams(SMALL),
      mapValues(grads, (value) => value * 65536),
      { loss_scale: 65536 },
    );
    const plain = await step(startParams(SMALL), grads);
    assert.ok(Buffer.from(scaled.params).equals(Buffer.from(plain.params)));
    assert.ok(Buffer.from(scaled.state).equals(Buffer.from(plain.state)));
  });

  test("other scales divide with one rounding, before clipping", async () => {
    const grads = gradsAt(SMALL, 0);
    const divided = mapValues(grads, (value) => Math.fround(value / 3));
    for (const clip of [undefined, { max_norm: 0.1 }, { max_value: 0.1 }]) {
      const more = clip ? { clip } : {};
      const scaled = await step(startParams(SMALL), grads, { loss_scale: 3, stats: "global", ...more });
      const plain = await step(startParams(SMALL), divided, { stats: "global", ...more });
      assert.ok(Buffer.from(scaled.params).equals(Buffer.from(plain.params)));
      assert.deepEqual(scaled.stats, plain.stats);
    }
  });

  /**
   * Each of these options selects another path of a gradient to its kernel: with or without a norm beforehand, kept for a
   * second stage or not.
   */
  const pathOptions = [{}, { stats: "tensor" }, { clip: { max_norm: 1e30 } }, { non_finite: "skip" }, { optimizer: { name: "lamb" } }];

  for (const dtype of ["F32", "BF16"] as const) {
    const params = writeTyped({ w: { dtype, shape: [3], values: [1, 2, 3] } });
    const take = (more: object, gradDtype: Dtype, values: readonly number[], loss_scale: number): Promise<Reply> =>
      service.call("optimizer.step", {
        optimizer: { name: "sgd", lr: 1e-30 },
        params,
        grads: writeTyped({ w: { dtype: gradDtype, shape: [3], values } }),
        loss_scale,
        ...more,
      });

    test(`float64 gradients are divided before they are rounded to float32: ${dtype} parameters`, async () => {
      const wide = [1e39, -2.5e42, 3e10];
      for (const more of pathOptions) {
        const { params: found, ...rest } = await take(more, "F64", wide, 2 ** 40);
        const divided = wide.map((value) => Math.fround(value / 2 ** 40));
        const { params: expected, ...expectedRest } = await take(more, "F32", divided, 1);
        assert.deepEqual([readTyped(found), rest], [readTyped(expected), expectedRest], JSON.stringify(more));
      }
      const { tensors } = await service.call<{ tensors: Record<string, unknown> }>("optimizer.norms", {
        params,
        grads: writeTyped({ w: { dtype: "F64", shape: [3], values: [3 * 2 ** 127, 0, 2 ** 129] } }),
        loss_scale: 2 ** 127,
      });
      assert.deepEqual(tensors["w"], { grad_squares: 25, param_squares: 14, zeros: 1, non_finite: 0 });
    });

    test(`float64 gradients within float32's range give the bits of float32 gradients: ${dtype} parameters`, async () => {
      const values = [0.1, -1 / 3, 1e20];
      for (const loss_scale of [3, 1000.7, 0.3, 1 + 2 ** -20]) {
        for (const more of pathOptions) {
          const found = await take(more, "F64", values, loss_scale);
          assert.deepEqual(found, await take(more, "F32", values.map(Math.fround), loss_scale), `${loss_scale} ${JSON.stringify(more)}`);
        }
      }
    });

    test(`every scale can divide float64 gradients to the end of float32's range: ${dtype} parameters`, async () => {
      const large = 3.4e38;
      for (const loss_scale of [1.1, 1.9, 1e4, large]) {
        const { params: found } = await take({ optimizer: { name: "sgd", lr: 2 ** -120 } }, "F64", [large * loss_scale, 0, -large * loss_scale], loss_scale);
        const [first = 0, , last = 0] = readTyped(found)["w"]?.values ?? [];
        assert.ok(
          Math.abs(first / (1 - large * 2 ** -120) - 1) < 0.01 && Math.abs(last / (3 + large * 2 ** -120) - 1) < 0.01,
          `${loss_scale}: ${first}, ${last}`,
        );
      }
    });
  }

  test("a scale that is no normal number of float32 is refused, since gradients would become 0 or infinite", async () => {
    for (const loss_scale of [0, -1, 1e-39, 3.5e38, 1e300])
      await assert.rejects(step(startParams(SMALL), gradsAt(SMALL, 0), { loss_scale }), ({ data }: RpcError) => data.field === "/loss_scale", `${loss_scale}`);
    for (const [loss_scale, gradient] of [
      [3.4028234663852886e38, 1.7014117331926443e38],
      [1.1754943508222875e-38, 5.877471754111438e-39],
    ] as const) {
      const grads = writeTyped({ w: { dtype: "F32", shape: [1], values: [gradient] } });
      const params = writeTyped({ w: { dtype: "F32", shape: [1], values: [1] } });
      const { params: found } = await service.call<Reply>("optimizer.step", { optimizer: { name: "sgd", lr: 1 }, params, grads, loss_scale });
      assert.deepEqual(readTyped(found)["w"]?.values, [0.5]);
    }
  });
});

suite("non-finite gradients", () => {
  const params = startParams(SMALL);
  const grads = { ...gradsAt(SMALL, 0), b: { shape: [7], data: Float32Array.of(0, Number.NaN, 1, Number.POSITIVE_INFINITY, 2, 3, 4) } };

  for (const more of [{}, { stats: "global" }, { clip: { max_norm: 1 } }, { clip: { max_value: 1 } }, { optimizer: { name: "lamb", max_grad_norm: 1 } }]) {
    test(`error names the tensor and the number of values, with ${JSON.stringify(more)}`, async () => {
      await assert.rejects(step(params, grads, more), (error: RpcError & { message: string }) => {
        assert.equal(error.data.name, "NON_FINITE_GRADIENT");
        assert.match(error.message, /"b" \(2 values\)/);
        return true;
      });
    });
  }

  test("skip returns everything unchanged and counts no step", async () => {
    const first = await step(params, gradsAt(SMALL, 0));
    const skipped = await step(readTensors(first.params), grads, { state: first.state, non_finite: "skip" });
    assert.equal(skipped.skipped, true);
    assert.equal(skipped.step, 1);
    requireSame(readTensors(skipped.params), readTensors(first.params));
    assert.ok(Buffer.from(skipped.state).equals(Buffer.from(first.state)));
    const taken = await step(params, gradsAt(SMALL, 0), { non_finite: "skip" });
    assert.equal(taken.skipped, false);
    assert.ok(Buffer.from(taken.params).equals(Buffer.from(first.params)));
  });

  for (const dtype of ["F32", "F16", "BF16"] as const) {
    test(`a skipped step honours reply.params: ${dtype} parameters in BF16`, async () => {
      const tensor = (values: readonly number[]) => ({ w: { dtype, shape: [values.length], values } });
      const call = { optimizer: { name: "adamw" }, params: writeTyped(tensor([1, -1.00390625, 3.1234567, 1e-3])), non_finite: "skip" };
      const grads = writeTyped(tensor([1, 2, 3, 4]));
      const take = (more: object): Promise<Reply> => service.call("optimizer.step", { ...call, ...more });
      const { state } = await take({ grads });
      for (const more of [{}, { state }, { master_weights: dtype !== "F32" }, { loss_scale: 8, clip: { max_norm: 1 } }]) {
        const reply = { reply: { params: "bf16" }, ...more };
        // A step without gradients leaves the parameters unchanged as well.
        const { params: expected, state: kept } = await take({ grads: writeTyped({}), ...reply });
        const found = await take({ grads: writeTyped(tensor([1, Number.NaN, 3, 4])), ...reply });
        assert.deepEqual([found.skipped, readTyped(found.params)["w"]?.dtype, readTyped(found.params)], [true, "BF16", readTyped(expected)]);
        assert.ok(Buffer.from(found.state).equals(Buffer.from(kept)));
        assert.deepEqual(await take({ grads, others_non_finite: true, ...reply }), found);
      }
    });
  }

  test("a skipped step has no statistics; norms reports the non-finite gradients", async () => {
    const skipped = await step(params, grads, { non_finite: "skip", stats: "tensor" });
    assert.deepEqual(Object.keys(skipped).sort(), ["lr", "params", "skipped", "state", "step"]);
    const { tensors } = await service.call<{ tensors: Record<string, { non_finite: number }> }>("optimizer.norms", { grads: writeTensors(grads) });
    assert.deepEqual(
      Object.entries(tensors)
        .filter(([, { non_finite }]) => non_finite > 0)
        .map(([name, { non_finite }]) => [name, non_finite]),
      [["b", 2]],
    );
  });

  test("propagate takes the step", async () => {
    const { params: after } = await step(params, grads, { non_finite: "propagate" });
    const { b, w } = readTensors(after);
    assert.deepEqual([...(b?.data ?? [])].map(Number.isNaN), [false, true, false, true, false, false, false]);
    assert.ok([...(w?.data ?? [])].every(Number.isFinite));
  });

  test("a gradient whose square overflows gives a warning if the optimizer keeps squares", async () => {
    const huge = { ...gradsAt(SMALL, 0), b: { shape: [7], data: Float32Array.of(0, 1e30, 1, 1e19, 2, 3, 4) } };
    assert.match((await step(params, huge)).warnings?.[0] ?? "", /"b" \(1 value\)/);
    assert.equal((await step(params, huge, { optimizer: { name: "sgd" } })).warnings, undefined);
    assert.equal((await step(params, huge, { clip: { max_norm: 1 } })).warnings, undefined);
    assert.equal((await step(params, gradsAt(SMALL, 0))).warnings, undefined);
  });

  test("a step without any gradient gives a warning with all options; one gradient is enough to avoid it", async () => {
    const [name, only] = Object.entries(gradsAt(SMALL, 0))[0] as [string, TestTensors[string]];
    const { state } = await step(params, gradsAt(SMALL, 0));
    for (const more of [{}, { state }, { clip: { max_norm: 1 } }, { non_finite: "skip" }, { non_finite: "propagate" }, { stats: "tensor" }]) {
      const { warnings, skipped } = await step(params, {}, more);
      assert.deepEqual([warnings?.length, skipped], [1, false]);
      assert.match(warnings?.[0] ?? "", /^No parameter has a gradient/);
      assert.equal((await step(params, { [name]: only }, more)).warnings, undefined);
    }
  });

  test("a norm that overflows float64 clips all gradients to 0, with a warning", async () => {
    const wide = (value: number) => writeTyped({ w: { dtype: "F64", shape: [2], values: [value, 1] } });
    const call = { optimizer: { name: "sgd", lr: 1 }, params: wide(3), clip: { max_norm: 1 } };
    const { params: after, warnings } = await service.call<Reply>("optimizer.step", { ...call, grads: wide(1e200) });
    assert.deepEqual(readTyped(after)["w"]?.values, [3, 1]);
    assert.match(warnings?.[0] ?? "", /norm of all gradients is infinite/);
    assert.equal((await service.call<Reply>("optimizer.step", { ...call, grads: wide(1e100) })).warnings, undefined);
  });
});

suite("statistics", () => {
  for (const { label, optimizer } of variants) {
    test(`statistics change no bit, and equal the norms of inputs and outputs: ${label}`, async () => {
      const params = startParams(LARGE);
      const grads = gradsAt(LARGE, 0);
      const plain = await step(params, grads, { optimizer });
      const { stats, ...reply } = await step(params, grads, { optimizer, stats: "tensor" });
      assert.ok(Buffer.from(reply.params).equals(Buffer.from(plain.params)));
      assert.ok(Buffer.from(reply.state).equals(Buffer.from(plain.state)));
      const after = readTensors(reply.params);
      const change = Object.fromEntries(
        Object.entries(after).map(([name, { shape, data }]) => [
          name,
          { shape, data: data.map((value, i) => Math.fround(value - (params[name]?.data[i] as number))) },
        ]),
      );
      near(stats?.grad_norm, norm(grads));
      near(stats?.param_norm, norm(params));
      near(stats?.update_norm, norm(change));
      assert.equal(stats?.non_finite, 0);
      for (const [name, tensor] of Object.entries(stats?.tensors ?? {})) {
        if (name === "empty") continue;
        near(tensor.grad_norm, norm(pick(grads, [name])));
        near(tensor.update_norm, norm(pick(change, [name])));
        if (["lamb", "lars"].includes(optimizer.name)) assert.ok((tensor.trust_ratio ?? 0) > 0);
      }
      assert.deepEqual(Object.keys(stats?.tensors ?? {}).sort(), Object.keys(grads).sort());
    });
  }

  test("global omits the tensors, and without stats there are no statistics", async () => {
    const global = await step(startParams(SMALL), gradsAt(SMALL, 0), { stats: "global" });
    assert.equal(global.stats?.tensors, undefined);
    assert.equal((await step(startParams(SMALL), gradsAt(SMALL, 0))).stats, undefined);
  });
});
